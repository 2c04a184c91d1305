"""Classification with one label: `run_classifier.py --problem_type single_label`, its default."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch.config import CLASS_WEIGHTS, ClassifierConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.readers import LabelledTexts
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.precision import at_least_fp32
from bertorch.tasks.base import Errors, LoadedFolder, Losses
from bertorch.tasks.calibrated import CalibratedTask
from bertorch.tasks.calibration import Temperature
from bertorch.tasks.class_losses import ClassLoss, class_loss, read_class_weights
from bertorch.tasks.label_counts import LabelCounts, class_counts
from bertorch.tasks.metrics import ClassificationMetric
from bertorch.tasks.scoring import wrong_texts
from bertorch.tasks.sequence_task import Reader, SequenceSettings, SequenceTask

_summed_cross_entropy = partial(F.cross_entropy, reduction="sum")


class ClassificationTask(CalibratedTask, SequenceTask):
    """Cross-entropy over the classes of texts or pairs; the dev metric is accuracy.

    Args:
        model, label_names, shared: see `SequenceTask`.
        class_loss: the loss of training; None: plain cross-entropy, which the dev loss always is.
        temperature: see `CalibratedTask`.
    """

    name = "classification"
    problem_type = train_form = dev_form = "single_label"
    library_problem_type = "single_label_classification"
    loss_parts = ("loss", "accuracy")
    has_confusions = True

    def __init__(
        self,
        model: SequenceClassifier | OnnxModel,
        label_names: Sequence[str],
        *,
        class_loss: ClassLoss | None = None,
        temperature: Temperature = Temperature(),  # noqa: B008 - is frozen
        **shared: Unpack[SequenceSettings],
    ) -> None:
        super().__init__(model, label_names, **shared)
        self._class_loss, self.temperature = class_loss, temperature

    @classmethod
    @override
    def readers(cls, config: ClassifierConfig, label_names: Sequence[str]) -> tuple[Reader, Reader]:
        if config.class_weights not in CLASS_WEIGHTS:
            read_class_weights(config.class_weights, label_names)  # its errors come before the long work
        return super().readers(config, label_names)

    @classmethod
    @override
    def _settings_of(cls, config: ClassifierConfig, label_names: Sequence[str], train: Examples) -> Mapping[str, Any]:
        return {"class_loss": class_loss(config, label_names, train)}

    @classmethod
    @override
    def _saved_settings(cls, loaded: LoadedFolder) -> Mapping[str, Any]:
        return {"temperature": Temperature.saved(loaded.metadata.settings, loaded.folder)}

    @override
    def losses_of(self, outputs: Tensor, batch: PackedBatch) -> Losses:
        return classification_losses(outputs, batch, self._class_loss or _summed_cross_entropy)

    @override
    def label_weights(self, batch: PackedBatch) -> Tensor | None:
        return None if self._class_loss is None else self._class_loss.weights_of(batch.labels)

    @override
    def loss_weight(self, examples: Examples, indices: np.ndarray) -> float:
        if self._class_loss is None:
            return super().loss_weight(examples, indices)
        return self._class_loss.weight_of(examples.labels_of(indices))

    @override
    def label_counts(self, examples: Examples) -> LabelCounts:
        return LabelCounts("labels", self.label_names, class_counts(examples, len(self.label_names)))

    @override
    def log_probabilities(self, outputs: Tensor) -> Tensor:
        return at_least_fp32(outputs).log_softmax(-1)  # (N, C)

    @override
    def metric(self, device: torch.device) -> ClassificationMetric:
        return self.class_metric(device)

    @override
    def class_metric(self, device: torch.device, *, keeps_logits: bool = False) -> ClassificationMetric:
        return ClassificationMetric(
            device, self.label_names, self.temperature, fitted_here=self.is_fitted_here, keeps_logits=keeps_logits
        )

    @property
    @override
    def _differences(self) -> str:
        calibrated = "# gives other probabilities: does not know the temperature\n" if self.fitted_on else ""
        return super()._differences + calibrated

    @override
    def errors(self, metric: ClassificationMetric, source: LabelledTexts) -> Errors:
        return misclassified(metric, source, self.label_names)


def classification_losses(
    logits: Tensor, batch: PackedBatch, loss_of: Callable[[Tensor, Tensor], Tensor] = _summed_cross_entropy
) -> Losses:
    """The summed loss, and the count of right predictions, of logits (N, C) and classes (N,)."""
    loss = loss_of(logits, batch.labels)
    return {"loss": loss, "accuracy": (logits.argmax(dim=-1) == batch.labels).sum()}


def misclassified(metric: ClassificationMetric, source: LabelledTexts, label_names: Sequence[str]) -> Errors:
    """The misclassified examples with both labels, the probability of the wrong one and the loss."""
    names = np.array(label_names, dtype=object)  # (C,)
    numbers = {"probability": metric.probabilities, "loss": metric.losses}
    return wrong_texts(source, names[metric.gold], names[metric.predicted], numbers)
