"""Training examples of several files, of which each batch has those of one: its negatives are of the same kind."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.schedule import TrainingSchedule, epoch_order


@dataclass(frozen=True)
class SeveralFiles(Examples):
    """The examples of F files, one file after the other; a batch has those of one file."""

    names: Sequence[str]  # F of them
    files: Sequence[Examples]
    mix: str  # of `bertorch.config.MIXES`

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples of each file."""
        return tuple(map(len, self.files))

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    @override
    def lengths(self) -> np.ndarray:
        return np.concatenate([file.lengths for file in self.files])

    @override
    def label_count(self, indices: np.ndarray) -> int:
        return sum(file.label_count(own) for file, own in self._by_file(indices))

    @override
    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._joined(lambda file, own: file.labels_of(own), indices)

    @override
    def cut(self, indices: np.ndarray) -> np.ndarray:
        return self._joined(lambda file, own: file.cut(own), indices)

    @override
    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return self._joined(lambda file, own: file.hashes(own), indices)

    @override
    def batch(self, indices: np.ndarray) -> PackedBatch:
        """The indices, all of one file; none at all give a batch of no examples of the first file.

        Raises:
            ValueError: they are of several files.
        """
        (file, own), *others = self._by_file(indices)
        if others:
            raise ValueError(f"expected a batch of one file, got examples of {1 + len(others)}")
        return file.batch(own)

    def _by_file(self, indices: np.ndarray) -> list[tuple[Examples, np.ndarray]]:
        """The files of these examples, as they come, and the indices within each; of no examples the first file."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])  # (F+1,)
        numbers = np.searchsorted(starts, indices, side="right") - 1  # (examples,), the file of each
        pieces = np.split(indices, np.flatnonzero(np.diff(numbers)) + 1)
        firsts = [int(np.searchsorted(starts, piece[0], side="right")) - 1 if len(piece) else 0 for piece in pieces]
        return [(self.files[file], piece - starts[file]) for file, piece in zip(firsts, pieces, strict=True)]

    def _joined(self, of: Callable[[Examples, np.ndarray], np.ndarray], indices: np.ndarray) -> np.ndarray:
        return np.concatenate([of(file, own) for file, own in self._by_file(indices)])


@dataclass(frozen=True)
class MixedSchedule(TrainingSchedule):
    """A schedule whose batches have examples of one file each; their order is drawn by the seed too.

    The batches of a pass over a file differ in size by one at most: of a small file, what would be left over, perhaps
    a single example, would come with each pass. With the mix `proportional` an epoch has every example of every file
    once. With `equal` every file has as many batches in an epoch as the one with the most, so that an epoch has every
    example at least once: a smaller file begins again in another order. A round robin that ends with the smallest file
    would leave most of a large one out.
    """

    sizes: tuple[int, ...]  # examples of each file, `size` in all
    mix: str

    @property
    @override
    def batches_by_file(self) -> tuple[int, ...]:
        counts = [-(-size // self.batch_size) for size in self.sizes]
        return tuple([max(counts)] * len(counts) if self.mix == "equal" else counts)

    @override
    def batches(self, epoch: int) -> list[np.ndarray]:
        ordered: list[np.ndarray] = []
        start = 0
        for file, (size, count) in enumerate(zip(self.sizes, self.batches_by_file, strict=True), start=1):
            ordered += [start + own for own in islice(self._passes(size, epoch, file), count)]
            start += size
        return [ordered[index] for index in epoch_order(len(ordered), seed=self.seed, epoch=epoch)]

    def _passes(self, size: int, epoch: int, file: int) -> Iterator[np.ndarray]:
        """The batches of a file without end, of indices within it; each pass over it has an order of its own."""
        number = 0
        while True:
            order = np.random.default_rng([self.seed, epoch, file, number]).permutation(size)
            yield from np.array_split(order, -(-size // self.batch_size))
            number += 1


def named_files(examples: Examples) -> Sequence[tuple[str, Examples]]:
    """The files of training examples with their names; those of one file are `train`."""
    if isinstance(examples, SeveralFiles):
        return list(zip(examples.names, examples.files, strict=True))
    return [("train", examples)]


def schedule_of(examples: Examples, batch_size: int, accumulation: int, seed: int) -> TrainingSchedule:
    """The schedule of training examples; see `TrainingSchedule` for the arguments."""
    if isinstance(examples, SeveralFiles):
        sizes, mix = examples.sizes, examples.mix
        return MixedSchedule(len(examples), batch_size, accumulation, seed, sizes=sizes, mix=mix)
    return TrainingSchedule(len(examples), batch_size, accumulation, seed)
