"""Dev metrics: running sums, added up over the processes, so that each example counts once on any number of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from bertorch import distributed
from bertorch.data.batch import PackedBatch

B_contra = TypeVar("B_contra", bound=PackedBatch, contravariant=True)


class Metric(Protocol[B_contra]):
    """What the evaluation loop knows of a metric."""

    name: str

    def update(self, outputs: Tensor, batch: B_contra, examples: np.ndarray, /) -> None:
        """Take in one batch: the model's outputs, the batch and the numbers of its examples."""
        ...

    def reduce(self) -> None:
        """Add up what all processes took in; call it once, on every process."""
        ...

    @property
    def value(self) -> float:
        """The number by which the best model is chosen; higher is better."""
        ...

    def numbers(self) -> Mapping[str, float]:
        """What is recorded of an evaluation by name, `value` first."""
        ...

    def line(self) -> str:
        """The message of the log line."""
        ...

    def report(self) -> Sequence[str]:
        """What is said of the best evaluation at the end of the run."""
        ...


class ClassificationMetric:
    """Mean cross-entropy and accuracy.

    Args:
        device: where the batches are; the sums stay there until they are read, so that no batch waits for one.
    """

    name = "accuracy"

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, examples

    def update(self, outputs: Tensor, batch: PackedBatch, _: np.ndarray, /) -> None:
        """Take in the logits (N, C) of one batch, whose labels are classes (N,)."""
        labels = batch.labels
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

    def numbers(self) -> Mapping[str, float]:
        """Accuracy and mean cross-entropy."""
        return {"accuracy": self.value, "loss": self._mean(0)}

    def line(self) -> str:
        """The message of the log line."""
        return f"eval loss: {self._mean(0):.5f}, accuracy: {self.value:.5f}"

    def report(self) -> Sequence[str]:
        """Nothing more than the line."""
        return ()

    def _mean(self, which: int) -> float:
        return (self._sums[which] / self._sums[2]).item()


class CorrelationMetric:
    """Spearman and Pearson correlation of the cosine of two embeddings with a given score.

    Args:
        device: where the batches are.
    """

    name = "spearman corr"

    def __init__(self, device: torch.device) -> None:
        self._rows: list[Tensor] = [torch.zeros(0, 3, dtype=torch.float64, device=device)]
        self._spearman = self._pearson = math.nan

    def update(self, outputs: Tensor, batch: PackedBatch, examples: np.ndarray, /) -> None:
        """Take in the embeddings (2·examples, E) of a batch, a pair's one after the other; its labels are scores."""
        scores = batch.labels  # (examples,)
        pairs = outputs.view(len(scores), 2, -1)  # (examples, 2, E)
        cosines = F.cosine_similarity(pairs[:, 0], pairs[:, 1])  # (examples,)
        numbers = torch.from_numpy(examples).to(cosines.device)
        self._rows.append(torch.stack([numbers.double(), cosines.double(), scores.double()], dim=1))

    def reduce(self) -> None:
        """Gather all examples in the order of the data and correlate them, once."""
        rows, _ = distributed.gather_rows(torch.cat(self._rows))  # (all examples, 3)
        cosines, scores = rows[rows[:, 0].argsort(), 1:].cpu().numpy().T
        self._spearman = spearman(cosines, scores)
        self._pearson = pearson(cosines, scores)

    @property
    def value(self) -> float:
        """Spearman correlation in [-1, 1]; 0 where all cosines are the same."""
        return self._spearman

    def numbers(self) -> Mapping[str, float]:
        """Both correlations."""
        return {"spearman": self._spearman, "pearson": self._pearson}

    def line(self) -> str:
        """The message of the log line."""
        return f"spearman corr: {self._spearman:.4f}, pearson corr: {self._pearson:.4f}"

    def report(self) -> Sequence[str]:
        """Nothing more than the line."""
        return ()


def precision_recall_f1(right: int, predicted: int, gold: int) -> tuple[float, float, float]:
    """Precision, recall and F1, 0 where there is nothing to divide by."""
    return right / max(predicted, 1), right / max(gold, 1), 2 * right / max(predicted + gold, 1)


def spearman(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Spearman correlation; 0 where one side is constant."""
    return _correlation(stats.spearmanr, cosines, scores)


def pearson(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Pearson correlation; 0 where one side is constant."""
    return _correlation(stats.pearsonr, cosines, scores)


def _correlation(correlate: Callable[..., Any], cosines: np.ndarray, scores: np.ndarray) -> float:
    """The correlation, 0 where it is not defined because one side is constant: nothing is told apart then."""
    if np.ptp(cosines) == 0 or np.ptp(scores) == 0:
        return 0.0
    return float(correlate(cosines, scores).statistic)
