"""What a saved folder says of itself under the key `bertorch` of its config.json: task, head, and how to feed it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from bertorch.atomic import replacing, to_disk
from bertorch.errors import UserError
from bertorch.files import to_json, writing

KEY = "bertorch"


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What config and weights of a folder do not say."""

    task: str  # a key of `bertorch.tasks.registry.TASKS`
    head: str  # the name that the task has for its head
    max_seq_length: int  # tokens of an example in training
    # Of the task, which checks them when it is built from the folder; values as JSON has them.
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, config: PretrainedConfig) -> None:
        """Put the metadata into a model's config, with which it is saved."""
        values = {"task": self.task, "head": self.head, "max_seq_length": self.max_seq_length, **self.settings}
        setattr(config, KEY, values)

    @classmethod
    def read(cls, config: PretrainedConfig, folder: str, weight_names: Collection[str]) -> "ModelMetadata":
        """The metadata in a folder's config, which has some; the names of its weights show the head of older folders.

        Raises:
            UserError: it is not as `write` leaves it.
        """
        values, where = getattr(config, KEY), f"{folder}/config.json: {KEY}"
        if not isinstance(values, dict) or not {"task", "max_seq_length"} <= values.keys():
            raise UserError(f"{where}: expected the fields task, head, max_seq_length, got {values!r}")
        settings = _convert_legacy(values, weight_names)
        task, head, length = settings.pop("task"), settings.pop("head"), settings.pop("max_seq_length")
        if not isinstance(task, str) or not isinstance(head, str):
            raise UserError(f"{where}: expected task and head to be names, got {task!r} and {head!r}")
        if not isinstance(length, int) or length < 1:
            raise UserError(f"{where}: expected max_seq_length to be a whole number, got {length!r}")
        return cls(task=task, head=head, max_seq_length=length, settings=settings)

    def setting(self, name: str, allowed: tuple[Any, ...], folder: str) -> Any:
        """A setting, None if it is not there; a `UserError` if it is none of the values allowed."""
        value = self.settings.get(name)
        if value not in allowed:
            raise UserError(f"{folder}/config.json: {KEY}: {name}: expected one of {allowed}, got {value!r}")
        return value

    def size(self, name: str, folder: str) -> int | None:
        """A setting, None if it is not there; a `UserError` if it is no whole number."""
        value = self.settings.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{folder}/config.json: {KEY}: {name}: expected a whole number, got {value!r}")
        return value

    def text(self, name: str, folder: str) -> str:
        """A setting, "" if it is not there; a `UserError` if it is no text."""
        value = self.settings.get(name, "")
        if not isinstance(value, str):
            raise UserError(f"{folder}/config.json: {KEY}: {name}: expected a text, got {value!r}")
        return value


def update_settings(folder: str, settings: Mapping[str, Any]) -> None:
    """Change settings in the config.json of a folder that bertorch saved, and nothing else in it, atomically.

    The caller keeps other writers away.

    Raises:
        UserError: it cannot be written; the file is as it was.
    """
    path = Path(folder) / "config.json"
    with writing(path):
        config = json.loads(path.read_text(encoding="utf-8"))
        config[KEY] |= settings
        with replacing(path) as new:
            new.write_text(to_json(config, indent=2) + "\n", encoding="utf-8")
        to_disk(path.parent, deep=False)


def _convert_legacy(values: Mapping[str, Any], weight_names: Collection[str]) -> dict[str, Any]:
    """The fields of a folder that was saved before heads had names: it has the fields of all tasks, and no head."""
    if "head" in values:
        return dict(values)
    heads = {"classification": "linear", "sentence_bert": "siamese", "embedding": "pooling"}
    tagging_head = "crf" if "crf.transitions" in weight_names else "linear"
    return {name: value for name, value in values.items() if value is not None} | {
        "head": heads.get(str(values["task"]), tagging_head)
    }
