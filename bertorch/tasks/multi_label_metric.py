"""The metric of `run_classifier.py --problem_type multi_label`: F1 over sets of labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.lines import first_few
from bertorch.resampling import ExampleTable, Measure
from bertorch.tasks.metrics import USUAL_CAUSES, ExampleRows, Metric, f1_scores
from bertorch.tasks.thresholds import Thresholds, cross_fitted


class MultiLabelMetric(Metric[PackedBatch]):
    """Mean loss, micro and macro F1; the outputs are logits (N, C), the labels (N, C) zeros and ones.

    After `reduce`, `losses` are (N,) and `scores`, the logits, (N, C) fp64, `gold` and `predicted` (N, C) bool.

    Args:
        device: of the outputs.
        label_names: C of them.
        losses: from logits and labels (N, C) to the losses (N,) that are trained.
        thresholds: a label is predicted if its logit is above its own.
        tuned_here: whether the thresholds were tuned on the examples that are evaluated.
    """

    name = "micro F1"

    def __init__(
        self,
        device: torch.device,
        label_names: Sequence[str],
        losses: Callable[[Tensor, Tensor], Tensor],
        thresholds: Thresholds,
        *,
        tuned_here: bool = False,
    ) -> None:
        self._label_names, self._losses = label_names, losses
        self._thresholds, self._tuned_here = thresholds, tuned_here
        self._rows = ExampleRows(device, 1 + 2 * len(label_names))

    @override
    def update(self, logits: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        logits = logits.double()  # (examples, C)
        self._rows.add(indices, self._losses(logits, batch.labels), logits, batch.labels)

    @override
    def reduce(self) -> None:
        self.losses, *columns = self._rows.gather()
        self.scores, gold = np.stack(columns, axis=1).reshape(len(self.losses), 2, -1).swapaxes(0, 1)  # (N, C) each
        self.gold = gold > 0
        self.predicted = self.scores > self._thresholds.values
        self._report = self._report_of(self.predicted)

    @property
    @override
    def value(self) -> float:
        return self._report["micro_f1"]  # in [0, 1]

    @property
    def loss(self) -> float:
        """The mean of the loss that is trained."""
        return float(self.losses.mean())

    @override
    def numbers(self) -> Mapping[str, float]:
        report = self._report
        return {
            "micro_F1": self.value,
            "macro_F1": report["macro_f1"],
            "exact_match": report["exact_match"],
            "loss": self.loss,
        }

    @override
    def line(self) -> str:
        return f"eval loss: {self.loss:.5f}, micro F1: {self.value:.5f}, macro F1: {self._report['macro_f1']:.5f}"

    @override
    def warnings(self) -> Sequence[str]:
        if (self.predicted != self.predicted[0]).any() or (self.gold == self.gold[0]).all():
            return ()
        names = [name for name, holds in zip(self._label_names, self.predicted[0], strict=True) if holds]
        alike = f"all {len(self.predicted)} predictions are {first_few(names) if names else 'without a label'}"
        return (f"{alike}; {USUAL_CAUSES}, rare labels (--class_weights balanced), or a wrong column of labels",)

    @override
    def report(self) -> dict[str, Any]:
        """See `label_set_report`; with thresholds that were tuned, also what the model gives without them."""
        report = {"examples": len(self.losses), "loss": self.loss, **self._report}
        for row, threshold in zip(report["labels"].values(), self._thresholds.values.tolist(), strict=True):
            row["threshold"] = threshold
        if self._thresholds.average is not None:
            report["thresholds"] = {"tuned_for": self._thresholds.average, "tuned_on_these_examples": self._tuned_here}
            untuned = self._report_of(self.scores > Thresholds.default(len(self._label_names)).values)
            del untuned["labels"]
            report["without_thresholds"] = untuned
        return report

    @override
    def example_table(self) -> ExampleTable:
        """The labels of each example in alphabetical order, which every model has, and their numbers."""
        names = np.array(self._label_names, dtype=object)  # (C,)
        counts = {
            "labels_right": self.gold & self.predicted,  # (N, C) each
            "labels_predicted": self.predicted,
            "labels_gold": self.gold,
        }
        columns = {
            "gold": [sorted(names[row].tolist()) for row in self.gold],
            "predicted": [sorted(names[row].tolist()) for row in self.predicted],
            "right": (self.gold == self.predicted).all(axis=1).tolist(),
            **{name: holds.sum(axis=1).tolist() for name, holds in counts.items()},
        }
        measures = {
            "micro_f1": Measure("f1", tuple(counts)),
            "macro_f1": Measure("macro_f1", ("gold", "predicted"), classes=len(names)),
            "exact_match": Measure("mean", ("right",)),
        }
        return ExampleTable(columns, measures)

    def tuning_report(self, tuned: Thresholds) -> dict[str, Any]:
        """What thresholds tuned on these examples give on others, by cross-fitting; the table also has the thresholds.

        What they give on these examples themselves is left out: it would be too good.
        """
        assert tuned.average is not None
        report = self._report_of(cross_fitted(self.scores, self.gold, tuned.average))
        for row, threshold in zip(report["labels"].values(), tuned.values.tolist(), strict=True):
            row["threshold"] = threshold
        return {"for": tuned.average, "cross_fitted": report}

    def _report_of(self, predicted: np.ndarray) -> dict[str, Any]:
        return label_set_report(self.gold, predicted, self._label_names)


def label_set_report(gold: np.ndarray, predicted: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """Exact match, macro and micro F1, and a table by label; `gold` and `predicted` are (N, C) bool.

    Exact match is the share of examples whose labels are all right. The macro F1 is the mean over all C labels, and
    `macro_f1_present` that over the labels that occur in `gold` or `predicted`, as in
    `bertorch.tasks.metrics.class_report`.
    """
    counts = [column.sum(axis=0).tolist() for column in (gold & predicted, predicted, gold)]  # right, predicted, gold
    by_label = [f1_scores(*each) for each in zip(*counts, strict=True)]
    present = [row["f1"] for row, _, *found in zip(by_label, *counts, strict=True) if any(found)]
    return {
        "exact_match": float((gold == predicted).all(axis=1).mean()),
        "macro_f1": float(np.mean([row["f1"] for row in by_label])),
        "macro_f1_present": float(np.mean(present)) if present else 0.0,
        "micro_f1": f1_scores(*map(sum, counts))["f1"],
        "labels": dict(zip(label_names, by_label, strict=True)),
    }
