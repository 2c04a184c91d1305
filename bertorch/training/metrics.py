"""Dev metrics: running sums, added up over the processes, so that each example counts once on any number of them."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bertorch import distributed


class Metric(Protocol):
    """What the evaluation loop knows of a metric."""

    name: str

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in one batch."""
        ...

    def reduce(self) -> None:
        """Add up what all processes took in; call it once, on every process."""
        ...

    @property
    def value(self) -> float:
        """The number by which the best model is chosen; higher is better."""
        ...

    def line(self) -> str:
        """The message of the log line."""
        ...


class ClassificationMetric:
    """Mean cross-entropy and accuracy.

    Args:
        device: where the batches are; the sums stay there until they are read, so that no batch waits for one.
    """

    name = "accuracy"

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, examples

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in the logits (N, C) and classes (N,) of one batch."""
        loss = F.cross_entropy(outputs.double(), labels, reduction="sum")
        correct = (outputs.argmax(dim=-1) == labels).sum()
        self._sums += torch.stack([loss, correct.double(), loss.new_tensor(len(labels))])

    def reduce(self) -> None:
        """Add up what all processes took in."""
        distributed.all_reduce_sum(self._sums)

    @property
    def value(self) -> float:
        """Accuracy in [0, 1]."""
        return self._mean(1)

    def line(self) -> str:
        """The message of the log line."""
        return f"eval loss: {self._mean(0):.5f}, accuracy: {self.value:.5f}"

    def _mean(self, which: int) -> float:
        return (self._sums[which] / self._sums[2]).item()
