"""How often each label occurs, counted a block of examples at a time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bertorch.data.dataset import Examples

BLOCK = 2**13  # examples that are looked at together; with their tokens they take some megabytes


class LabelCounts(NamedTuple):
    """What the examples of a file are labelled with."""

    noun: str  # of what is counted: `labels` or `entities`
    names: Sequence[str]  # C of them
    counts: np.ndarray  # (C,) int64
    unlabelled: int | None = None  # examples without any of them; None where each has one


def has_labels(examples: Examples) -> bool:
    """Whether examples have something beside their texts, which dev data of retrieval has not."""
    return examples.labels_of(np.arange(1)).shape[1:] != (0,)


def blocks_of(examples: Examples, size: int = BLOCK) -> Iterator[np.ndarray]:
    """The indices of all examples, `size` at a time; int64."""
    for start in range(0, len(examples), size):
        yield np.arange(start, min(start + size, len(examples)))


def class_counts(examples: Examples, num_labels: int) -> np.ndarray:
    """Examples of each of C classes, (C,) int64; the labels are classes (N,), or (N, C) with 1 for each label."""
    counts = np.zeros(num_labels, np.int64)
    for indices in blocks_of(examples):
        labels = examples.labels_of(indices)
        counts += labels.sum(axis=0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=num_labels)
    return counts
