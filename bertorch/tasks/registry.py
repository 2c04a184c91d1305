"""The tasks by the names that config.json has for them."""

from typing import Any

from bertorch.errors import UserError
from bertorch.tasks.base import LoadedFolder, Task
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.tasks.sentence_bert import SentenceBertTask
from bertorch.tasks.tagging import TaggingTask

TASKS: dict[str, type[Task[Any]]] = {
    task.name: task for task in (ClassificationTask, SentenceBertTask, ContrastiveTask, TaggingTask)
}


def task_of(loaded: LoadedFolder) -> Task[Any]:
    """Build the task of a saved folder.

    Raises:
        UserError: config.json names no task that is known, or the folder is at fault.
    """
    name = loaded.metadata.task
    if name not in TASKS:
        raise UserError(f"{loaded.folder}/config.json: expected a task of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name].from_folder(loaded)
