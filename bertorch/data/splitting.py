"""Part of a dataset as a dataset: dev examples that are split off from the training examples."""

from dataclasses import dataclass

import numpy as np

from bertorch.data.batching import Examples, PackedBatch
from bertorch.data.schedule import epoch_order
from bertorch.errors import UserError


@dataclass(frozen=True)
class Subset:
    """Some examples of a dataset, without a copy of their tokens.

    Attributes:
        whole: the dataset.
        numbers: (N,) int64, which examples of it.
    """

    whole: Examples
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, a length of each example."""
        return self.whole.lengths[self.numbers]

    def labels_of(self, examples: np.ndarray) -> int:
        """How many labels these examples have."""
        return self.whole.labels_of(self.numbers[examples])

    def batch(self, examples: np.ndarray) -> PackedBatch:
        """Gather the examples with these numbers, in this order, into a packed batch on the CPU."""
        return self.whole.batch(self.numbers[examples])


def split_off(examples: Examples, ratio: float, *, seed: int) -> tuple[Subset, Subset]:
    """Split a dataset in two by chance: the same two parts wherever size, ratio and seed are the same.

    Args:
        examples: N of them.
        ratio: the share of the second part, which has at least one example.
        seed: of the draw, which is none of those that order the epochs.

    Returns:
        Two parts, each in the order of the dataset.

    Raises:
        UserError: one of them would be empty.
    """
    size = max(1, round(len(examples) * ratio))
    if size >= len(examples):
        raise UserError(
            f"--dev_ratio {ratio:g}: expected more training examples than it takes, got {len(examples)}, of which it "
            f"takes {size}; lower it, or name a dev file with --dev_data_file"
        )
    drawn = epoch_order(len(examples), seed=seed, epoch=0)  # epochs count from 1
    return Subset(examples, np.sort(drawn[size:])), Subset(examples, np.sort(drawn[:size]))
