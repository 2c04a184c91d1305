"""`--folds K`: which part of the training examples each of K models does not see."""

import hashlib
import heapq
from collections.abc import Iterator

import numpy as np

from bertorch.data.dataset import Examples, labels_each
from bertorch.data.schedule import epoch_order
from bertorch.errors import UserError

_BLOCK = 2**13  # examples that are looked at together


def assign_folds(examples: Examples, count: int, *, seed: int) -> np.ndarray:
    """The fold of each example, (N,) int64 from 1 to `count`, the same on every process.

    Examples of the same tokens stay in one fold, also where their labels differ; those that stand alone then even out
    what such groups weigh. So the counts of a label in two folds differ by at most one, or by the size of a group where
    too few others have the label, and the sizes of the folds are as even as that allows. An example with several
    labels, such as a sentence with tags, counts under the rarest, see `rarest_labels`.

    Raises:
        UserError: there are fewer different texts than folds.
    """
    hashes = np.concatenate([examples.hashes(indices) for indices in _blocks(len(examples))])  # (N, 2)
    _, groups, sizes = np.unique(hashes, axis=0, return_inverse=True, return_counts=True)  # (N,), (groups,)
    if len(sizes) < count:
        raise UserError(
            f"--folds {count}: expected at least as many different texts in the training examples, got {len(sizes)}; "
            "texts that are equal as tokens stay in one fold"
        )
    labels = rarest_labels(examples)  # (N,)
    order = epoch_order(len(examples), seed=seed, epoch=0)  # epochs count from 1
    return _dealt(labels, groups.reshape(-1), sizes, order, count)


def rarest_labels(examples: Examples) -> np.ndarray:
    """The label of each example, (N,) int64; of several the one that the fewest examples have, then the smallest id.

    So a sentence with a tag that few sentences have counts under it, and one with the tag O alone under O.
    """
    owners, labels = (np.concatenate(parts) for parts in zip(*_distinct_labels(examples), strict=True))
    order = np.lexsort((labels, np.bincount(labels)[labels], owners))
    return labels[order[np.unique(owners[order], return_index=True)[1]]]


def folds_digest(folds: np.ndarray) -> str:
    """A hash of an assignment."""
    return hashlib.blake2b(folds.astype("<i8").tobytes(), digest_size=16).hexdigest()


def _blocks(size: int) -> Iterator[np.ndarray]:
    for start in range(0, size, _BLOCK):
        yield np.arange(start, min(start + _BLOCK, size))


def _distinct_labels(examples: Examples) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Examples and their labels, (pairs,) each, every label of an example once; a block at a time."""
    for indices in _blocks(len(examples)):
        owners = np.repeat(indices, labels_each(examples, indices))
        pairs = np.unique(np.stack([owners, examples.labels_of(indices)]), axis=1)  # (2, pairs)
        yield pairs[0], pairs[1]


def _dealt(labels: np.ndarray, groups: np.ndarray, sizes: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """Deal examples with these labels and groups (N,) out to the folds; `sizes` are those of the groups.

    A fold without examples comes first wherever an example or group goes, so that none stays empty.
    """
    folds = np.zeros(len(labels), np.int64)
    of_label = np.zeros((int(labels.max()) + 1, count), np.int64)  # examples in each fold
    members = order[np.argsort(groups[order], kind="stable")]  # (N,), group by group
    ends = sizes.cumsum()
    first_in_order = np.minimum.reduceat(np.argsort(order)[members], ends - sizes)  # (groups,)
    large = np.flatnonzero(sizes > 1)
    for group in large[np.lexsort((first_in_order[large], -sizes[large]))].tolist():
        chosen = members[ends[group] - sizes[group] : ends[group]]
        found, counts = np.unique(labels[chosen], return_counts=True)
        # The sum of the squared counts, which is least where they are even, grows least there.
        fold = np.lexsort((of_label.sum(axis=0), counts @ of_label[found]))[0]
        folds[chosen] = fold
        of_label[found, fold] += counts
    evened = np.zeros(count, np.int64)  # examples of the labels so far
    single = order[sizes[groups[order]] == 1]
    of_singles = labels[single]
    totals = of_label.sum(axis=0)
    for label in range(len(of_label)):
        heap: list[tuple[int, ...]] = [
            (int(of_label[label, fold]), int(evened[fold]), int(totals[fold]), fold) for fold in range(count)
        ]
        heapq.heapify(heap)
        for index in single[of_singles == label].tolist():
            placed, *ties, fold = heap[0]
            heapq.heapreplace(heap, (placed + 1, *ties, fold))
            folds[index] = fold
            of_label[label, fold] += 1
            totals[fold] += 1
        evened += of_label[label]
    return folds + 1
