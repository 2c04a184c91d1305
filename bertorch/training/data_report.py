"""What stands in the data, told before training: labels and their counts, texts that are cut, dev texts seen before."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from loguru import logger

from bertorch.config import TrainingConfig
from bertorch.data.dataset import Examples
from bertorch.data.lines import first_few
from bertorch.data.several_files import named_files
from bertorch.tasks.base import Task
from bertorch.tasks.label_counts import LabelCounts, blocks_of, has_labels

SHOWN = 10  # labels, of more the most frequent ones


def log_data_report(
    config: TrainingConfig, task: Task[Any], train: Examples, dev: Examples | None, batches: Sequence[int] = ()
) -> None:
    """Log the facts of the examples as a short block, and as warnings what is likely to be a mistake.

    `batches` are those of an epoch of each training file, where there are several.
    """
    if len(files := named_files(train)) > 1:
        for (path, file), count in zip(files, batches, strict=True):
            cut = _cut_line({"examples cut": file})
            logger.info("data: {}: {} examples, {} batches an epoch, {}", path, len(file), count, cut)
    parts = {"train": train} if dev is None else {"train": train, "dev": dev}
    labelled = {name: part for name, part in parts.items() if has_labels(part)}
    counted = {name: found for name, part in labelled.items() if (found := task.label_counts(part)) is not None}
    for name, found in counted.items():
        logger.info("data: {}: {}", name, _counts_line(found))
    logger.info("data: cut at --max_seq_length {}: {}", config.max_seq_length, _cut_line(parts))
    if "train" in counted:
        for warning in _label_warnings(counted):
            logger.warning("data: {}", warning)
    if dev is not None and (shared := count_shared(train, dev)):
        logger.warning(
            "data: dev: {} stand in the training examples too, as tokens, and make the metric too good; python -m "
            "bertorch.prepare dedupe takes those that are equal to the last character out of files of columns "
            "(--texts 2 for pairs, where a file has no labels)",
            _share(shared, len(dev)),
        )


def count_shared(train: Examples, dev: Examples) -> int:
    """How many dev examples have exactly the tokens of a training example; memory for those of dev, and of a block."""
    hashes = np.concatenate([dev.hashes(indices) for indices in blocks_of(dev)])  # (N, 2)
    hashes = hashes[hashes[:, 0].argsort(kind="stable")]
    keys = np.ascontiguousarray(hashes[:, 0])  # (N,), rising; of equal ones the first stands for all
    seen = np.zeros(len(keys), np.bool_)
    for indices in blocks_of(train):
        found = train.hashes(indices)  # (block, 2)
        places = np.searchsorted(keys, found[:, 0]).clip(max=len(keys) - 1)  # (block,)
        seen[places[(hashes[places] == found).all(axis=1)]] = True
    return int(seen[np.searchsorted(keys, keys)].sum())


def _counts_line(found: LabelCounts) -> str:
    """The most frequent labels with their counts, and what the others are."""
    order = np.argsort(-found.counts, kind="stable")
    shown, others = order[:SHOWN], order[SHOWN:]
    line = f"{found.noun}: " + ", ".join(f"{first_few([found.names[index]])} {found.counts[index]}" for index in shown)
    if len(others):
        line += f", and {len(others)} more with {found.counts[others[-1]]} to {found.counts[others[0]]}"
    return line if found.unlabelled is None else f"{line}; examples without: {found.unlabelled}"


def _cut_line(parts: dict[str, Examples]) -> str:
    counts = {name: sum(int(part.cut(indices).sum()) for indices in blocks_of(part)) for name, part in parts.items()}
    return ", ".join(f"{name} {_share(count, len(parts[name]))}" for name, count in counts.items())


def _label_warnings(counted: dict[str, LabelCounts]) -> Iterator[str]:
    train = counted["train"]
    for name, found in counted.items():
        missing = [train.names[index] for index in np.flatnonzero(found.counts == 0).tolist()]
        if len(missing) == len(train.names):
            yield f"{name}: no {train.noun} at all"
        elif len(missing) == len(train.names) - 1 and train.noun == "labels" and not found.unlabelled:
            only = train.names[int(found.counts.argmax())]
            yield f"{name}: the only label is {first_few([only])}: there is nothing to tell apart"
        elif missing:
            yield f"{name}: no example of {len(missing)} of {len(train.names)} {train.noun}: {first_few(missing)}"


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.1%})"
