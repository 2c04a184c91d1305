"""What the losses of sentence embeddings have in common, each of which is a file and an entry of `LOSSES`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from bertorch.config import BatchNegConfig, ContrastiveConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples, TextRows
from bertorch.data.prompts import Prompts
from bertorch.tasks.base import Negatives


class EmbeddingLoss(ABC):
    """A loss of the embeddings of a batch, with its options."""

    name: ClassVar[str]  # of `--loss`
    negatives = Negatives.NONE  # whether and how it joins the examples of a batch

    @classmethod
    @abstractmethod
    def from_config(cls, config: BatchNegConfig) -> Self:
        """The loss that the options describe."""

    @abstractmethod
    def reader(self, prompts: Prompts) -> Callable[..., TextRows]:
        """The reading function of its training lines, whose texts stand after prompts.

        See `bertorch.data.load.load_examples`.
        """

    @abstractmethod
    def look_at(self, config: ContrastiveConfig, train: Examples) -> None:
        """Say in the log what the loss finds in the training examples, and where it learns nothing from them."""

    @abstractmethod
    def __call__(self, embeddings: Tensor, batch: PackedBatch) -> Tensor:
        """This process's part of the loss of a batch, to be summed over the processes.

        Args:
            embeddings: (N, E), of the sentences of the batch.
            batch: this process's share, in whose examples N/S sentences stand together.

        Returns:
            Scalar, in fp32 at least; a sum that `weight` makes a mean.
        """

    def weight(self, examples: Examples, indices: np.ndarray) -> float:
        """What a batch of these examples weighs in the mean over the batches of a step."""
        return examples.label_count(indices)
