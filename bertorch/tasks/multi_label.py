"""Classification with several labels, or none: `run_classifier.py --problem_type multi_label`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch.config import MULTI_LABEL_LOSSES, ClassifierConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.labelled_lines import require_separable
from bertorch.data.lines import cell
from bertorch.data.readers import LabelledTexts
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.errors import UserError
from bertorch.precision import at_least_fp32
from bertorch.tasks.base import Errors, LoadedFolder, Losses
from bertorch.tasks.class_losses import Constant, positive_weights
from bertorch.tasks.fittable import FittableTask
from bertorch.tasks.fitting import THRESHOLDS, FittedFile
from bertorch.tasks.label_counts import LabelCounts, blocks_of, class_counts
from bertorch.tasks.metadata import KEY
from bertorch.tasks.multi_label_metric import MultiLabelMetric
from bertorch.tasks.scoring import Prediction, wrong_texts
from bertorch.tasks.sequence_task import Reader, SequenceSettings, SequenceTask
from bertorch.tasks.thresholds import Thresholds, best_thresholds

# From logits and labels (N, C) to the losses of the examples (N,).
LossOf = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropies(logits: Tensor, labels: Tensor, positive_weights: Tensor | None = None) -> Tensor:
    """The mean over the C labels of whether each holds, for each example: (N, C) logits and zeros and ones → (N,).

    The losses of labels that hold are multiplied by `positive_weights` (C,).
    """
    losses = F.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="none", pos_weight=positive_weights
    )  # (N, C)
    return losses.mean(dim=1)


class WeightedBinaryCrossEntropies:
    """`binary_cross_entropies` with weights (C,) of the labels that hold."""

    def __init__(self, positive_weights: np.ndarray) -> None:
        self._weights = Constant(positive_weights)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, C) and (N, C) → (N,)."""
        return binary_cross_entropies(logits, labels, self._weights.beside(logits))


def zlpr_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """log(1 + Σ e^s over labels that don't hold) + log(1 + Σ e^−s over those that do): (N, C), (N, C) → (N,).

    Each label is compared with 0, the threshold, and through the sums with all labels of the other kind.

    References:
        Su et al., ZLPR: A Novel Loss for Multi-label Classification, 2022.
    """
    holds = labels.bool()  # (N, C)
    zero = logits.new_zeros(len(logits), 1)  # e^0 is the 1
    others = torch.cat([zero, logits.masked_fill(holds, -torch.inf)], dim=1)  # (N, C+1)
    held = torch.cat([zero, (-logits).masked_fill(~holds, -torch.inf)], dim=1)  # (N, C+1)
    return others.logsumexp(dim=1) + held.logsumexp(dim=1)


LOSSES: dict[str, LossOf] = dict(zip(MULTI_LABEL_LOSSES, (binary_cross_entropies, zlpr_losses), strict=True))


class MultiLabelTask(FittableTask, SequenceTask):
    """Any number of labels for a text or a pair; the dev metric is the micro F1.

    Args:
        model, label_names, shared: see `SequenceTask`.
        loss_name: a key of `LOSSES`, which the folder keeps.
        losses: the losses (N,) that are trained; None: those of that name, which the dev loss always has.
        label_separator: stands between the labels in lines that are read and written.
        thresholds: over which labels hold; None: 0.
    """

    name = "multi_label"
    problem_type = train_form = dev_form = "multi_label"
    library_problem_type = "multi_label_classification"
    fitting = THRESHOLDS

    def __init__(
        self,
        model: SequenceClassifier | OnnxModel,
        label_names: Sequence[str],
        *,
        loss_name: str = MULTI_LABEL_LOSSES[0],
        losses: LossOf | None = None,
        label_separator: str = ",",
        thresholds: Thresholds | None = None,
        **shared: Unpack[SequenceSettings],
    ) -> None:
        super().__init__(model, label_names, **shared)
        self._loss_name, self._losses = loss_name, losses or LOSSES[loss_name]
        self.label_separator = label_separator
        self.thresholds = thresholds or Thresholds.default(len(label_names))

    @classmethod
    @override
    def readers(cls, config: ClassifierConfig, label_names: Sequence[str]) -> tuple[Reader, Reader]:
        require_separable(label_names, config.label_separator, str(config.label_file))
        return super().readers(config, label_names)

    @classmethod
    @override
    def _settings_of(cls, config: ClassifierConfig, label_names: Sequence[str], train: Examples) -> Mapping[str, Any]:
        losses = None
        if config.class_weights == "balanced":
            counts = class_counts(train, len(label_names))  # (C,)
            losses = WeightedBinaryCrossEntropies(positive_weights(counts, len(train), label_names))
        return {
            "loss_name": config.multi_label_loss,
            "losses": losses,
            "label_separator": config.label_separator,
        }

    @override
    def losses_of(self, outputs: Tensor, batch: PackedBatch) -> Losses:
        return {"loss": self._losses(at_least_fp32(outputs), batch.labels).sum()}

    @override
    def label_counts(self, examples: Examples) -> LabelCounts:
        without = sum(int((~examples.labels_of(indices).any(axis=1)).sum()) for indices in blocks_of(examples))
        return LabelCounts("labels", self.label_names, class_counts(examples, len(self.label_names)), without)

    @override
    def metric(self, device: torch.device) -> MultiLabelMetric:
        return MultiLabelMetric(
            device, self.label_names, LOSSES[self._loss_name], self.thresholds, tuned_here=self.is_fitted_here
        )

    # The saved folder

    @override
    def settings(self) -> Mapping[str, Any]:
        ours = {"multi_label_loss": self._loss_name, "label_separator": self.label_separator}
        return {**super().settings(), **ours, **self.thresholds.settings()}

    @classmethod
    @override
    def _saved_settings(cls, loaded: LoadedFolder) -> Mapping[str, Any]:
        metadata = loaded.metadata
        loss_name = metadata.setting("multi_label_loss", (None, *LOSSES), loaded.folder) or MULTI_LABEL_LOSSES[0]
        separator = metadata.settings.get("label_separator", ",")
        if not isinstance(separator, str) or not separator:
            raise UserError(f"{loaded.folder}/config.json: {KEY}: label_separator: expected a text, got {separator!r}")
        thresholds = _saved_thresholds(loaded, len(cls._saved_labels(loaded)))
        return {"loss_name": loss_name, "label_separator": separator, "thresholds": thresholds}

    @override
    def usage(self) -> tuple[str, str]:
        ours, theirs = super().usage()
        return f"{ours}s", theirs.replace("model={folder}", "model={folder}, top_k=None")

    @property
    @override
    def _differences(self) -> str:
        return super()._differences + ("# does not know the thresholds of the labels\n" if self.fitted_on else "")

    # What is fitted

    @property
    @override
    def fitted_on(self) -> FittedFile | None:
        return self.thresholds.file

    @override
    def _fitted_note(self) -> str:
        return f"the labels hold over thresholds for the best {self.thresholds.average} F1"

    @override
    def fit(self, metric: MultiLabelMetric, choice: str) -> dict[str, Any]:
        values = best_thresholds(metric.scores, metric.gold, choice)  # (C,)
        self.thresholds = Thresholds(values, choice, self._file)
        return {"tuned": metric.tuning_report(self.thresholds)}

    # Predictions: the rows are logits, which are compared with the thresholds

    @override
    def prediction(self, row: Sequence[float]) -> Prediction:
        holds = zip(self.label_names, row, self.thresholds.values.tolist(), strict=True)
        labels = tuple(name for name, score, threshold in holds if score > threshold)
        return Prediction(None, dict(zip(self.label_names, map(_sigmoid, row), strict=True)), labels=labels)

    @override
    def prediction_header(self) -> str | None:
        return "\t".join(["labels", *map(cell, self.label_names)])

    @override
    def prediction_line(self, source: Any, row: Any, *, tags: bool) -> str:
        prediction = self.prediction(row.tolist())
        labels = self.label_separator.join(map(cell, prediction.labels))
        return "\t".join([labels, *(f"{value:.6f}" for value in prediction.probabilities.values())])

    # Reports

    @override
    def errors(self, metric: MultiLabelMetric, source: LabelledTexts) -> Errors:
        gold, predicted = self._joined(metric.gold), self._joined(metric.predicted)  # (N,) each
        return wrong_texts(source, gold, predicted, {"loss": metric.losses}, label="labels")

    def _joined(self, holds: np.ndarray) -> np.ndarray:
        """(N, C) bool → the labels of each example as a line has them, (N,)."""
        names = np.array(self.label_names, dtype=object)  # (C,)
        return np.array([self.label_separator.join(names[row]) for row in holds], dtype=object)


def foreign_separator(label_names: Sequence[str]) -> str:
    """What separates labels in the lines of a folder that does not say it: a comma, unless a label has one.

    Raises:
        UserError: the labels have all of those that are tried.
    """
    for separator in (tried := (",", "|", ";", "/")):
        if not any(separator in name for name in label_names):
            return separator
    raise UserError(f"config.json: id2label: expected labels without one of {' '.join(tried)}, got {label_names!r}")


def _saved_thresholds(loaded: LoadedFolder, num_labels: int) -> Thresholds | None:
    saved = loaded.metadata.settings.get("thresholds")
    if saved is None:
        return None
    try:
        values = np.array(saved["values"], dtype=np.float64)
        found = Thresholds(values, str(saved["average"]), FittedFile.read(saved))
    except (KeyError, TypeError, ValueError):
        found = Thresholds(np.zeros(0))
    if found.values.shape != (num_labels,) or not np.isfinite(found.values).all():
        expected = f"{num_labels} finite numbers as values, average and data"
        raise UserError(f"{loaded.folder}/config.json: {KEY}: thresholds: expected {expected}, got {saved!r}")
    return found


def _sigmoid(score: float) -> float:
    small = math.exp(-abs(score))  # never overflows
    return (1 if score >= 0 else small) / (1 + small)
