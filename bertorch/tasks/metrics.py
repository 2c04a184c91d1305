"""Metrics of an evaluation, added up over the processes, so that each example counts once on any number of them."""

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
    """What the evaluation loop, the log and the report know of a metric."""

    name: str

    def update(self, outputs: Tensor, batch: B_contra, indices: np.ndarray, /) -> None:
        """Take in one batch: the task's outputs, the batch, and the indices of its examples."""
        ...

    def reduce(self) -> None:
        """Gather what all processes took in; call it once, on every process."""
        ...

    @property
    def value(self) -> float:
        """The number by which the best model is chosen; higher is better."""
        ...

    def numbers(self) -> Mapping[str, float]:
        """What is recorded of an evaluation in training, `value` first."""
        ...

    def line(self) -> str:
        """The message of the log line."""
        ...

    def summary(self) -> Sequence[str]:
        """What is logged of the best evaluation at the end of a run."""
        ...

    def report(self) -> dict[str, Any]:
        """What `bertorch.evaluate` reports, as JSON has it."""
        ...


class ExampleRows:
    """Numbers of each example, gathered over the processes in the order of the examples."""

    def __init__(self, device: torch.device, columns: int) -> None:
        self._indices: list[np.ndarray] = []
        self._rows = [torch.zeros(0, columns, dtype=torch.float64, device=device)]

    def add(self, indices: np.ndarray, *columns: Tensor) -> None:
        """Add the columns (examples,) of the examples with these indices."""
        self._indices.append(indices)
        self._rows.append(torch.stack([column.double() for column in columns], dim=1))

    def gather(self) -> np.ndarray:
        """(columns, N) fp64; call it once, on every process."""
        rows = torch.cat(self._rows)  # (local examples, columns)
        indices = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *self._indices])).to(rows.device)
        everything, _ = distributed.gather_rows(torch.cat([indices.double()[:, None], rows], dim=1))  # (N, 1+columns)
        return everything[everything[:, 0].argsort(), 1:].cpu().numpy().T


class ClassificationMetric:
    """Mean cross-entropy and accuracy; the outputs are logits (N, C), the labels classes (N,).

    Attributes:
        gold, predicted: (N,) int64, after `reduce`.
        probabilities: (N,) of the class predicted.
    """

    name = "accuracy"

    def __init__(self, device: torch.device, label_names: Sequence[str]) -> None:
        self._label_names = label_names
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._rows = ExampleRows(device, 3)

    def update(self, logits: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        """See `Metric.update`."""
        self._loss += F.cross_entropy(logits.double(), batch.labels, reduction="sum")
        predicted = logits.argmax(dim=-1)  # (N,)
        probabilities = logits.float().softmax(-1).gather(1, predicted[:, None]).squeeze(1)  # (N,)
        self._rows.add(indices, batch.labels, predicted, probabilities)

    def reduce(self) -> None:
        """See `Metric.reduce`."""
        distributed.all_reduce_sum(self._loss)
        gold, predicted, self.probabilities = self._rows.gather()
        self.gold, self.predicted = gold.astype(np.int64), predicted.astype(np.int64)

    @property
    def value(self) -> float:
        """Accuracy in [0, 1]."""
        return float((self.gold == self.predicted).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self._loss.item() / len(self.gold)

    def numbers(self) -> Mapping[str, float]:
        """See `Metric.numbers`."""
        return {"accuracy": self.value, "loss": self.loss}

    def line(self) -> str:
        """See `Metric.line`."""
        return f"eval loss: {self.loss:.5f}, accuracy: {self.value:.5f}"

    def summary(self) -> Sequence[str]:
        """Nothing more than the line."""
        return ()

    def report(self) -> dict[str, Any]:
        """See `class_report`."""
        return class_report(self.gold, self.predicted, self._label_names)


class CorrelationMetric:
    """Spearman and Pearson correlation of the cosine of two embeddings with a given score.

    The outputs are embeddings (2·examples, E), those of a pair one after the other; the labels scores (examples,).

    Attributes:
        cosines: (examples,) fp32, after `reduce`.
        scores: (examples,) fp64.
    """

    name = "spearman corr"

    def __init__(self, device: torch.device) -> None:
        self._rows = ExampleRows(device, 2)
        self._spearman = self._pearson = math.nan

    def update(self, embeddings: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        """See `Metric.update`."""
        self._rows.add(indices, pair_cosines(embeddings.view(len(batch.labels), 2, -1)), batch.labels)

    def reduce(self) -> None:
        """See `Metric.reduce`."""
        cosines, self.scores = self._rows.gather()
        self.cosines = cosines.astype(np.float32)
        self._spearman, self._pearson = spearman(cosines, self.scores), pearson(cosines, self.scores)

    @property
    def value(self) -> float:
        """Spearman correlation in [-1, 1]; 0 where all cosines are the same."""
        return self._spearman

    def numbers(self) -> Mapping[str, float]:
        """See `Metric.numbers`."""
        return {"spearman": self._spearman, "pearson": self._pearson}

    def line(self) -> str:
        """See `Metric.line`."""
        return f"spearman corr: {self._spearman:.4f}, pearson corr: {self._pearson:.4f}"

    def summary(self) -> Sequence[str]:
        """Nothing more than the line."""
        return ()

    def report(self) -> dict[str, Any]:
        """Both correlations, and where the scores are 0 and 1 also the best thresholds of the cosine."""
        report: dict[str, Any] = {"examples": len(self.scores), **self.numbers()}
        if set(self.scores) == {0.0, 1.0}:
            report["threshold"] = best_threshold(self.cosines, self.scores == 1)
        return report


def pair_cosines(pairs: Tensor) -> Tensor:
    """The cosine of each pair of embeddings, (examples, 2, E) → (examples,)."""
    first, second = pairs.unbind(dim=1)  # (examples, E) each
    return F.cosine_similarity(first, second)


def class_report(gold: np.ndarray, predicted: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro and micro F1, a table by label, and the confusion matrix.

    Args:
        gold, predicted: (N,) ids.
        label_names: C of them. The macro F1 is the mean over all of them, also those that no example has.

    Returns:
        With `confusion_matrix` (C, C): how often the label of the row was taken for that of the column.
    """
    count = len(label_names)
    matrix = np.bincount(gold * count + predicted, minlength=count * count).reshape(count, count)
    right, guesses, support = matrix.diagonal().tolist(), matrix.sum(axis=0).tolist(), matrix.sum(axis=1).tolist()
    by_label = [f1_scores(*counts) for counts in zip(right, guesses, support, strict=True)]
    accuracy = sum(right) / len(gold)
    return {
        "examples": len(gold),
        "accuracy": accuracy,
        "macro_f1": float(np.mean([row["f1"] for row in by_label])),
        "micro_f1": accuracy,  # with one label an example, each false positive is a false negative of another label
        "labels": dict(zip(label_names, by_label, strict=True)),
        "confusion_matrix": matrix.tolist(),
    }


def f1_scores(right: int, predicted: int, gold: int) -> dict[str, float]:
    """Precision, recall and F1 by name, 0 where there is nothing to divide by, and the support."""
    precision, recall = right / max(predicted, 1), right / max(gold, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * right / max(predicted + gold, 1), "support": gold}


def best_threshold(cosines: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """The thresholds from which on a pair counts as positive, best by accuracy and best by F1.

    They lie in the middle between two neighbouring cosines, or above all of them; of equally good ones it is the
    largest. Cosines can be compared with them in their own type and in a finer one.

    Args:
        cosines: (N,).
        positive: (N,) bool.
    """
    order = np.argsort(-cosines, kind="stable")
    values = cosines[order]  # (N,), falling
    hits = np.append(0, positive[order].cumsum())  # (N+1,), positives among the first 0, 1, … N
    taken = np.arange(len(values) + 1)  # (N+1,)
    splits = np.concatenate([[True], values[1:] < values[:-1], [True]])  # equal cosines stay together
    gold = hits[-1]
    accuracy = (hits + (len(values) - gold) - (taken - hits)) / len(values)  # (N+1,)
    f1 = 2 * hits / np.maximum(taken + gold, 1)  # (N+1,)
    result = {}
    for name, scores in (("accuracy", accuracy), ("f1", f1)):
        best = int(np.where(splits, scores, -1.0).argmax())
        result[name] = float(scores[best])
        result[f"{name}_threshold"] = float(_threshold(values, best))
    return result


def _threshold(values: np.ndarray, taken: int) -> np.floating:
    """Threshold separating the top `taken` values from the rest."""
    if taken == 0:
        return np.nextafter(values[0], np.inf, dtype=values.dtype)
    if taken == len(values):
        return values[-1]
    middle = (values[taken - 1] + values[taken]) / 2
    return middle if middle > values[taken] else values[taken - 1]  # neighbouring floats have no middle


def spearman(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Spearman correlation; 0 where one side is constant."""
    return _correlation(stats.spearmanr, cosines, scores)


def pearson(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Pearson correlation; 0 where one side is constant."""
    return _correlation(stats.pearsonr, cosines, scores)


def _correlation(correlate: Callable[..., Any], cosines: np.ndarray, scores: np.ndarray) -> float:
    if np.ptp(cosines) == 0 or np.ptp(scores) == 0:
        return 0.0  # not defined: nothing is told apart
    return float(correlate(cosines, scores).statistic)
