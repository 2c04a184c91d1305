"""What the result of a run depends on, to recognise the same run."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.data.dataset import Examples
from bertorch.data.fingerprint import content_digest
from bertorch.data.model_digests import ModelDigests
from bertorch.data.retrieval import files_of
from bertorch.errors import UserError
from bertorch.tasks.base import Negatives

Options = Mapping[str, Any]

_OF_ENCODER, _OF_WEIGHTS = "content of --pretrained_model_name_or_path", "content of --init_from_ckpt"

# Options that processes need not have in common.
_OF_THE_MACHINE = (
    "local_rank",
    "threads",
    "saved_dir",
    "cache_dir",
    "tensorboard_dir",
    "pretrained_model_name_or_path",
    "init_from_ckpt",
)

_noted: dict[str, list[tuple[int, ...]]] = {}  # by the path of an input


def note_inputs(config: TrainingConfig) -> None:
    """Note the state of the files with data before they are read, for `describe_run`."""
    _noted.clear()
    _noted.update({path: _states_of(path) for path in _inputs(config)})


def _require_unchanged(config: TrainingConfig) -> None:
    for path in _inputs(config):
        if path in _noted and _noted[path] != _states_of(path):
            raise UserError(f"{path}: expected a file that stays as it is while it is read, got another; start again")


def _inputs(config: TrainingConfig) -> Iterator[str]:
    """The paths of data that the options name."""
    for declared in fields(config):
        value = getattr(config, declared.name)
        if declared.metadata["is_input"] and value is not None:
            yield from value if isinstance(value, tuple) else [value]


def _states_of(path: str) -> list[tuple[int, ...]]:
    """Of each file that a path of data stands for; nothing of one that is not there."""
    found = (os.stat(each) for each in files_of(path) if os.path.exists(each))
    return [(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) for status in found]


def describe_run(
    config: TrainingConfig, digests: ModelDigests, *, precision: str, processes: int, negatives: Negatives
) -> dict[str, Any]:
    """What the result of a run depends on, by option.

    Of files the content counts, not the name; of batch size and processes the product, unless the loss takes its
    negatives from the process's own batch. `precision` is a resolved one, not `auto`.

    Raises:
        UserError: a file has changed since `note_inputs`.
    """
    _require_unchanged(config)
    described = plain_options(config) | _data_content(config) | _models_content(config, digests)
    described["--precision"] = precision
    described["--batch_size times processes"] = config.batch_size * processes
    if negatives is Negatives.LOCAL:
        described["processes, without --gather_negatives"] = processes
    if config.patience is not None or config.save_best_model:  # the result then depends on the evaluations
        described["steps between evaluations"] = config.evaluation_steps
    return described


def require_same_everywhere(config: TrainingConfig, examples: Examples) -> None:
    """Check that all processes have the same options, data and tokens of `examples`; all must call it.

    Where data and models are does not count: each machine may have its own.

    Raises:
        UserError: on all processes, if they do not: their batches would be of different data, or of different numbers.
    """
    if distributed.world_size() == 1:
        return
    values = {
        f"--{declared.name}": getattr(config, declared.name)
        for declared in fields(config)
        if not declared.metadata["is_input"] and declared.name not in _OF_THE_MACHINE
    }
    counts = {"number of examples": len(examples), "number of tokens": int(examples.lengths.sum())}
    distributed.require_same(values | _data_content(config) | counts, "options and data")


def _data_content(config: TrainingConfig) -> dict[str, Any]:
    """The content of the data that the options name, by option."""
    content: dict[str, Any] = {}
    for declared in fields(config):
        value, metadata = getattr(config, declared.name), declared.metadata
        if not metadata["is_input"] or (metadata["is_later"] and value == declared.default):
            continue
        if isinstance(value, tuple):
            content[f"content of --{declared.name}"] = [content_digest(each) or each for each in value]
        else:
            digest = None if value is None else content_digest(value)
            key = f"--{declared.name}" if digest is None else f"content of --{declared.name}"
            content[key] = value if digest is None else digest
    return content


def plain_options(config: TrainingConfig) -> dict[str, Any]:
    """The script, and those options of which nothing but the value counts."""
    described: dict[str, Any] = {"script": type(config).__name__}
    for declared in fields(config):
        value, metadata = getattr(config, declared.name), declared.metadata
        is_plain = metadata["shapes_result"] and not metadata["is_input"]
        is_new_default = metadata["is_later"] and value == declared.default
        if is_plain and not is_new_default and declared.name not in ("precision", "batch_size"):
            described[f"--{declared.name}"] = value
    return described


def data_files(config: TrainingConfig) -> dict[str, str]:
    """Where the training and dev examples of a run are, by option; a run is the same wherever they are."""
    names = {"--train_data_file": config.train_data_file, "--dev_data_file": config.dev_data_file}
    return {option: str(Path(name).absolute()) for option, name in names.items() if name is not None}


def _models_content(config: TrainingConfig, digests: ModelDigests) -> dict[str, str]:
    """The digests of the models that a run starts from, unless its own saves replace them."""
    name, source = config.pretrained_model_name_or_path, config.init_from_ckpt
    content: dict[str, str] = {}
    if not _is_inside(name, config.saved_dir):
        content = {f"{_OF_ENCODER}, {file}": digest for file, digest in digests.of_model(name).items()}
    if source is not None and not _is_inside(source, config.saved_dir):
        digest = digests.of_weights(source)
        content |= {} if digest is None else {_OF_WEIGHTS: digest}
    return content


def sources_inside(config: TrainingConfig) -> list[str]:
    """The options that name a model which the run's own saves replace."""
    sources = {
        "--pretrained_model_name_or_path": config.pretrained_model_name_or_path,
        "--init_from_ckpt": config.init_from_ckpt,
    }
    return [f"{option} {name}" for option, name in sources.items() if name and _is_inside(name, config.saved_dir)]


def _is_inside(name: str, saved_dir: str) -> bool:
    """Whether a model is `saved_dir`, or a file in it."""
    path = Path(name)
    return path.exists() and Path(saved_dir).resolve() in (path.resolve(), path.resolve().parent)


def differing(there: Options, now: Options, *, with_models: bool) -> list[str]:
    """The options in which two runs differ, with both values; without models, the content of these is left out."""

    def given(options: Options, name: str) -> Any:
        """The value; an option that is off counts as one that came after the record was written. 0 is not off."""
        return None if options.get(name) is False else options.get(name)

    def short(options: Options, name: str) -> str:
        value = options.get(name)
        return value[:12] if name.startswith("content") and isinstance(value, str) else repr(value)

    return [
        f"{name}: {short(there, name)} there, {short(now, name)} now"
        for name in dict.fromkeys([*there, *now])
        if given(there, name) != given(now, name) and (with_models or not name.startswith((_OF_ENCODER, _OF_WEIGHTS)))
    ]
