"""`--folds K`: K runs of the same options, each without a part of the training examples, which it then predicts."""

import gc
from collections.abc import Callable, Mapping, Sequence
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
from bertorch.errors import InterruptedRunError, UserError
from bertorch.tasks.base import Task
from bertorch.training.folds_folder import FoldsFolder, fold_folder
from bertorch.training.loop import fit
from bertorch.training.out_of_fold import predict_out_of_fold
from bertorch.training.run_folder import RECORD
from bertorch.training.start import started


def fit_folds(
    config: FoldsConfig,
    plan_task: Callable[[Examples], Callable[[], Task[Any]]],
    train: Examples,
    dev: Examples | None,
    label_names: Sequence[str],
) -> None:
    """Train a task as `fit` does, or with `--folds` one in each fold, and evaluate them on what they have not seen.

    A fold's run is that of the script on the other folds as training data, with its own as dev data, bit for bit.

    Args:
        config: the options.
        plan_task: takes training examples, on which the loss may depend, and returns what builds the task for them.
        train, dev: see `fit`.
        label_names: of the task.

    Raises:
        UserError: as `fit`, or there are fewer different texts than folds.
        InterruptedRunError: as `fit`; the same command goes on in the fold that was stopped.
    """
    if config.folds is None:
        fit(config, plan_task(train)(), train, dev)
        return
    folds = assign_folds(train, config.folds, seed=config.seed)  # (N,)
    parts = {fold: np.flatnonzero(folds == fold) for fold in range(1, config.folds + 1)}  # indices of examples
    seen = {fold: Subset(train, np.flatnonzero(folds != fold)) for fold in parts}
    make_tasks = {fold: plan_task(seen[fold]) for fold in parts}  # their errors come before the first fold is trained
    folder = FoldsFolder(config, folds_digest(folds))
    trained, is_complete = distributed.on_main(folder.open)
    _require_shared(config)
    if is_complete:
        return
    _log_folds(train, parts, label_names)
    for fold in range(trained + 1, config.folds + 1):
        logger.info("fold {} of {}", fold, config.folds)
        try:
            is_asked_to_stop = _fit_fold(config, fold, make_tasks[fold], seen[fold], Subset(train, parts[fold]))
        except InterruptedRunError as stopped:  # there is always something to go on from: the folds before
            raise InterruptedRunError(f"{stopped}, in fold {fold} of {config.folds}", goes_on=True) from None
        distributed.on_main(partial(folder.note_trained, fold))
        if is_asked_to_stop:
            raise InterruptedRunError(f"stopped after fold {fold} of {config.folds}", goes_on=True)
    distributed.on_main(folder.note_results)
    predict_out_of_fold(config, train, folds)
    distributed.on_main(folder.note_complete)


def _require_shared(config: FoldsConfig) -> None:
    """Each process predicts with the models of all folds, which the first one saves: all must see its folder."""
    sees = torch.tensor(float((Path(config.saved_dir) / RECORD).exists()), device=distributed.device())
    if distributed.all_reduce_sum(sees) < distributed.world_size():
        raise UserError(
            f"--folds: expected --saved_dir {config.saved_dir} on all machines alike, since each predicts with the "
            "models saved there; name a folder that they share"
        )


def _fit_fold(
    config: FoldsConfig, fold: int, make_task: Callable[[], Task[Any]], seen: Examples, held_out: Examples
) -> bool:
    """Train a fold; returns what `fit` does."""
    name = fold_folder(config.saved_dir, fold)
    tensorboard_dir = None if config.tensorboard_dir is None else fold_folder(config.tensorboard_dir, fold)
    # What is there is of this run: those before it are removed.
    resume = distributed.on_main((Path(name) / RECORD).exists)
    of_fold = replace(config, saved_dir=name, tensorboard_dir=tensorboard_dir, resume=resume, overwrite=False)
    if fold > 1:
        clock.note_run()
    torch.manual_seed(config.seed)  # as where a run begins
    with started(of_fold):
        is_asked_to_stop = fit(of_fold, make_task(), seen, held_out)
    gc.collect()  # a model in a cycle of references would stay in the device's memory
    return is_asked_to_stop


def _log_folds(examples: Examples, parts: Mapping[int, np.ndarray], label_names: Sequence[str]) -> None:
    """The sizes of the folds, and the labels that cannot be in each; of several the rarest of an example counts."""
    sizes = ", ".join(str(len(part)) for part in parts.values())
    logger.info("{} folds of {} examples: {}", len(parts), len(examples), sizes)
    counts = np.bincount(rarest_labels(examples))
    rare = [label_names[index] for index in np.flatnonzero((counts > 0) & (counts < len(parts))).tolist()]
    if rare:
        logger.warning("--folds {}: labels with fewer examples than folds: {}", len(parts), first_few(rare))
