"""A number for a text or a pair: `run_classifier.py --problem_type score`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.readers import LabelledTexts
from bertorch.precision import at_least_fp32
from bertorch.resampling import ExampleTable, Measure
from bertorch.tasks.base import Errors, Losses
from bertorch.tasks.metrics import USUAL_CAUSES, ExampleRows, Metric, correlations, warnings_of_scores
from bertorch.tasks.scored import OneScoreTask


class ScoreTask(OneScoreTask):
    """Squared error of the score of a text or a pair; the dev metric is the Spearman correlation."""

    name = "score"
    scripts = "run_classifier.py --problem_type score"
    problem_type = "score"
    train_form, dev_form = "score", "different_scores"

    @override
    def losses_of(self, outputs: Tensor, batch: PackedBatch) -> Losses:
        scores = at_least_fp32(outputs).squeeze(1)  # (N,)
        return {"loss": F.mse_loss(scores, batch.labels.to(scores.dtype), reduction="sum")}

    @override
    def metric(self, device: torch.device) -> "ScoreMetric":
        return ScoreMetric(device)

    @override
    def errors(self, metric: "ScoreMetric", source: LabelledTexts) -> Errors:
        """All examples, the largest squared error first."""
        numbers = np.stack([metric.scores, metric.squared_errors], axis=1)  # (N, 2)
        rows = []
        for index in np.argsort(-metric.squared_errors, kind="stable").tolist():
            rows.append([str(index + 1), f"{metric.labels[index]:g}", *(f"{number:.6f}" for number in numbers[index])])
            rows[-1] += [column[index] for column in source.columns]
        return Errors(["number", "score", "predicted", "squared_error", "a", "b"][: 4 + len(source.columns)], rows)


class ScoreMetric(Metric[PackedBatch]):
    """Mean squared error, Spearman and Pearson correlation; the outputs are scores (N, 1), as the labels (N,).

    After `reduce`, `scores`, `labels` and `squared_errors` are (N,) fp64.
    """

    name = "spearman corr"

    def __init__(self, device: torch.device) -> None:
        self._rows = ExampleRows(device, 2)

    @override
    def update(self, outputs: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        self._rows.add(indices, outputs.squeeze(1), batch.labels)

    @override
    def reduce(self) -> None:
        self.scores, self.labels = self._rows.gather()
        self.squared_errors = (self.scores - self.labels) ** 2  # (N,)
        self._correlations = correlations(self.scores, self.labels)

    @property
    @override
    def value(self) -> float:
        return self._correlations["spearman"]

    @property
    def loss(self) -> float:
        """Mean squared error."""
        return float(self.squared_errors.mean())

    @override
    def numbers(self) -> Mapping[str, float]:
        return {**self._correlations, "loss": self.loss}

    @override
    def line(self) -> str:
        correlated = "spearman corr: {spearman:.4f}, pearson corr: {pearson:.4f}".format(**self._correlations)
        return f"eval loss: {self.loss:.5f}, {correlated}"

    @override
    def warnings(self) -> Sequence[str]:
        if np.ptp(self.labels) == 0 or np.ptp(self.scores) > 0:
            return warnings_of_scores(self.labels)
        alike = f"all {len(self.scores)} predictions are {self.scores[0]:g}, and both correlations are 0"
        return (f"{alike}; {USUAL_CAUSES}, or a wrong column of scores",)

    @override
    def report(self) -> dict[str, Any]:
        mean_absolute = float(np.abs(self.scores - self.labels).mean())
        return {"examples": len(self.labels), **self._correlations, "mse": self.loss, "mae": mean_absolute}

    @override
    def example_table(self) -> ExampleTable:
        columns = {"gold": self.labels.tolist(), "score": self.scores.tolist()}
        return ExampleTable(columns, {name: Measure(name, ("score", "gold")) for name in self._correlations})
