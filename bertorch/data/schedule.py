"""Which examples come when: the order of an epoch, its cut into steps and shares, the batches of an evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np


def epoch_order(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation of `size` examples that all processes follow in an epoch; (size,) int64."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def share(examples: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This process's slice of the examples: W slices whose sizes differ by at most one, some empty if need be."""
    return np.array_split(examples, world_size)[rank]


class ScheduledStep(NamedTuple):
    """One optimisation step of a run.

    Attributes:
        number: of the step, from 1.
        epoch: from 1.
        last_batch: the number of its last batch within the epoch, from 1.
        batches: the numbers of the examples of each batch.
    """

    number: int
    epoch: int
    last_batch: int
    batches: list[np.ndarray]


@dataclass(frozen=True)
class TrainingSchedule:
    """Which examples make up each optimisation step of an epoch, the same on every process.

    Attributes:
        size: the number of training examples.
        batch_size: examples of a batch over all processes, W·B.
        accumulation: batches of one optimisation step.
        seed: of the order.
    """

    size: int
    batch_size: int
    accumulation: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps of an epoch; the last one may have fewer examples."""
        return -(-self.size // (self.batch_size * self.accumulation))

    def all_steps(self, last: int, *, after: int = 0) -> Iterator[ScheduledStep]:
        """The steps of a run up to the number `last`, those up to the number `after` left out."""
        for epoch in count(after // self.steps_per_epoch + 1):
            before = (epoch - 1) * self.steps_per_epoch
            if before >= last:
                return
            for place, batches in islice(enumerate(self.steps(epoch)), max(0, after - before), last - before):
                yield ScheduledStep(before + place + 1, epoch, place * self.accumulation + len(batches), batches)

    def steps(self, epoch: int) -> Iterator[list[np.ndarray]]:
        """For each optimisation step of the epoch its batches: arrays of at most `batch_size` example numbers."""
        order = epoch_order(self.size, seed=self.seed, epoch=epoch)
        batches = np.split(order, range(self.batch_size, self.size, self.batch_size))
        for start in range(0, len(batches), self.accumulation):
            yield batches[start : start + self.accumulation]


def evaluation_batches(
    lengths: np.ndarray, batch_size: int, rank: int, world_size: int, *, tokens: int = 0
) -> Iterator[np.ndarray]:
    """This process's batches of an evaluation, each example on one process only.

    Examples of like length go together, the longest first, which keeps the attention's blocks small and full, and the
    processes take turns, so that each has the same work.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples of a batch on one process, or more:
        rank, world_size: this process and how many there are.
        tokens: short examples fill a batch up to so many tokens.
    """
    mine = np.argsort(-lengths, kind="stable")[rank::world_size]
    start = 0
    while start < len(mine):
        end = start + max(batch_size, tokens // max(1, int(lengths[mine[start]])))
        yield mine[start:end]
        start = end
