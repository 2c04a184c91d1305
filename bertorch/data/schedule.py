"""The order of examples: epochs, their steps and batches, the shares of processes, the batches of an evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np


def epoch_order(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the indices, (size,) int64, the same on every process."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def share(indices: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This process's slice of the indices: one of W, whose sizes differ by at most one; it may be empty."""
    return np.array_split(indices, world_size)[rank]


class ScheduledStep(NamedTuple):
    """One optimisation step of a run."""

    number: int  # the global step, from 1
    epoch: int  # from 1
    last_batch: int  # the number of its last batch within the epoch, from 1
    batches: list[np.ndarray]  # of each batch the indices of its examples, int64


@dataclass(frozen=True)
class TrainingSchedule:
    """The examples of each optimisation step, the same on every process."""

    size: int  # number of training examples
    batch_size: int  # examples of a batch over all processes, W·B
    accumulation: int  # batches of an optimisation step
    seed: int  # of the order

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps of an epoch; the last one may have fewer examples."""
        return -(-sum(self.batches_by_file) // self.accumulation)

    @property
    def batches_by_file(self) -> tuple[int, ...]:
        """Batches of an epoch, of each file that the examples come from."""
        return (-(-self.size // self.batch_size),)

    def all_steps(self, last: int, *, after: int = 0) -> Iterator[ScheduledStep]:
        """The steps of a run with the numbers `after + 1` to `last`."""
        for epoch in count(after // self.steps_per_epoch + 1):
            before = (epoch - 1) * self.steps_per_epoch
            if before >= last:
                return
            for index, batches in islice(enumerate(self.steps(epoch)), max(0, after - before), last - before):
                yield ScheduledStep(before + index + 1, epoch, index * self.accumulation + len(batches), batches)

    def steps(self, epoch: int) -> Iterator[list[np.ndarray]]:
        """For each optimisation step of the epoch its batches, of at most `batch_size` indices each."""
        batches = self.batches(epoch)
        for start in range(0, len(batches), self.accumulation):
            yield batches[start : start + self.accumulation]

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of the epoch in order."""
        order = epoch_order(self.size, seed=self.seed, epoch=epoch)
        return np.split(order, range(self.batch_size, self.size, self.batch_size))


def evaluation_batches(
    lengths: np.ndarray, batch_size: int, rank: int, world_size: int, *, tokens: int = 0
) -> Iterator[np.ndarray]:
    """The batches of indices that this process evaluates; every example is evaluated by one process.

    Examples of similar length share a batch, the longest first, which keeps the padded blocks of attention small, and
    the processes take turns, so that all have the same amount of work. `lengths` are the tokens of each example, (N,);
    a batch has at least `batch_size` examples, and short ones may fill a budget of `tokens`.
    """
    mine = np.argsort(-lengths, kind="stable")[rank::world_size]
    start = 0
    while start < len(mine):
        end = start + max(batch_size, tokens // max(1, int(lengths[mine[start]])))
        yield mine[start:end]
        start = end
