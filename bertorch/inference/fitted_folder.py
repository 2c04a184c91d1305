"""A model's folder that gets something fitted to an evaluation: in config.json, and in the words of the model card."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch import distributed
from bertorch.errors import UserError
from bertorch.inference.load import is_own
from bertorch.tasks.base import Task
from bertorch.tasks.fitting import FITTINGS
from bertorch.tasks.metadata import update_settings
from bertorch.training.checkpoints import STATE
from bertorch.training.folds_folder import fold_folders
from bertorch.training.model_card import update_card
from bertorch.training.run_folder import LOCK
from bertorch.writer_lock import only_writer


def writing_to(folder: str) -> AbstractContextManager[None]:
    """Meanwhile no run replaces the weights that something is fitted to; all processes must enter.

    Raises:
        UserError: one writes there now.
    """
    path = Path(folder)
    owner = path.resolve().parent if os.path.exists(path / STATE) else path  # of a checkpoint: the run's
    return only_writer(owner / LOCK, f"--model_dir {folder}")


def require_fitting(task: Task[Any], option: str, folder: str) -> None:
    """Raise a `UserError` if an option fits nothing to models of a task, or the folder cannot keep it."""
    kind = FITTINGS[option]
    if folds := fold_folders(folder):
        raise UserError(
            f"--{option} stores the {kind.fitted} in the folder of one model, and --model_dir {folder} has those of "
            f"--folds; name one of them, such as {folds[0]}, whose {kind.fitted} all of them together use too"
        )
    if task.fitting is not kind:
        other = "" if task.fitting is None else f" (--{task.fitting.option} is for it)"
        raise UserError(
            f"--{option} is for {kind.suited}, and this one, of the task {task.name}, has no {kind.fitted}{other}; "
            "leave it out"
        )
    if not is_own(folder):
        raise UserError(
            f"--{option} stores the {kind.fitted} in --model_dir {folder}, which bertorch did not save; leave it out"
        )


def keep_fitted(task: Task[Any], folder: str) -> None:
    """Store what was fitted to a task in its folder, each file atomically; all processes must call it.

    Raises:
        UserError: a file cannot be written; it is as it was.
    """

    def write() -> None:
        update_settings(folder, task.settings())
        update_card(folder, task)

    distributed.on_main(write)
    for note in task.fitted_notes():
        logger.info("{}: {}", folder, note)
