"""`--folds K`: K runs of the same options, each without a part of the training examples, which it then predicts."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger

from bertorch import clock, distributed
from bertorch.config import FoldsConfig
from bertorch.data.dataset import Examples, Subset
from bertorch.data.folding import assign_folds, folds_digest, rarest_labels
from bertorch.data.lines import first_few
from bertorch.tasks.base import Task
from bertorch.training.folds_folder import FoldsFolder, fold_folder
from bertorch.training.loop import fit
from bertorch.training.out_of_fold import predict_out_of_fold
from bertorch.training.run_folder import RECORD
from bertorch.training.start import started


def fit_folds(
    config: FoldsConfig, make_task: Callable[[Examples], Task[Any]], train: Examples, dev: Examples | None
) -> None:
    """Train a task as `fit` does, or with `--folds` one in each fold, and evaluate them on what they have not seen.

    A fold's run is that of the script on the other folds as training data, with its own as dev data, bit for bit.

    Args:
        config: the options.
        make_task: builds the task for training examples, on which its loss may depend.
        train, dev: see `fit`.

    Raises:
        UserError: as `fit`, or there are fewer different texts than folds.
        InterruptedRunError: as `fit`; the same command goes on in the fold that was stopped.
    """
    if config.folds is None:
        fit(config, make_task(train), train, dev)
        return
    folds = assign_folds(train, config.folds, seed=config.seed)  # (N,)
    folder = FoldsFolder(config, folds_digest(folds))
    trained, is_complete = distributed.on_main(folder.open)
    if is_complete:
        return
    sizes = ", ".join(map(str, np.bincount(folds)[1:].tolist()))
    logger.info("{} folds of {} examples: {}", config.folds, len(train), sizes)
    for fold in range(trained + 1, config.folds + 1):
        _train(config, make_task, train, folds, fold)
        distributed.on_main(partial(folder.note_trained, fold))
    distributed.on_main(folder.note_results)
    predict_out_of_fold(config, train, folds)
    distributed.on_main(folder.note_complete)


def _train(
    config: FoldsConfig, make_task: Callable[[Examples], Task[Any]], train: Examples, folds: np.ndarray, fold: int
) -> None:
    logger.info("fold {} of {}", fold, config.folds)
    name = fold_folder(config.saved_dir, fold)
    tensorboard_dir = None if config.tensorboard_dir is None else fold_folder(config.tensorboard_dir, fold)
    # What is there is of this run: those before it are removed.
    resume = distributed.on_main((Path(name) / RECORD).exists)
    of_fold = replace(config, saved_dir=name, tensorboard_dir=tensorboard_dir, resume=resume, overwrite=False)
    if fold > 1:
        clock.note_run()
    torch.manual_seed(config.seed)  # as where a run begins
    seen, held_out = Subset(train, np.flatnonzero(folds != fold)), Subset(train, np.flatnonzero(folds == fold))
    with started(of_fold):
        task = make_task(seen)
        if fold == 1:
            _warn_of_rare_labels(train, task, folds)
        fit(of_fold, task, seen, held_out)
    del task
    gc.collect()  # a model in a cycle of references would stay in the device's memory


def _warn_of_rare_labels(examples: Examples, task: Task[Any], folds: np.ndarray) -> None:
    """Name the labels that do not occur in each fold; where examples have several, by the rarest of each."""
    counts = np.bincount(rarest_labels(examples), minlength=len(task.label_names))
    rare = [task.label_names[index] for index in np.flatnonzero((counts > 0) & (counts < folds.max())).tolist()]
    if rare:
        logger.warning("--folds {}: labels with fewer examples than folds: {}", folds.max(), first_few(rare))
