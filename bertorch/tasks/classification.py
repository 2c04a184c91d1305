"""Classification with one label: `run_classifier.py --problem_type single_label`, its default."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.readers import LabelledTexts
from bertorch.precision import at_least_fp32
from bertorch.tasks.base import Errors, Losses
from bertorch.tasks.metrics import ClassificationMetric
from bertorch.tasks.scoring import wrong_texts
from bertorch.tasks.sequence_task import SequenceTask


class ClassificationTask(SequenceTask):
    """Cross-entropy over the classes of texts or pairs; the dev metric is accuracy."""

    name = "classification"
    problem_type = "single_label"
    library_problem_type = "single_label_classification"
    loss_parts = ("loss", "accuracy")
    has_confusions = True

    @override
    def losses_of(self, outputs: Tensor, batch: PackedBatch) -> Losses:
        return classification_losses(outputs, batch)

    @override
    def log_probabilities(self, outputs: Tensor) -> Tensor:
        return at_least_fp32(outputs).log_softmax(-1)  # (N, C)

    @override
    def metric(self, device: torch.device) -> ClassificationMetric:
        return ClassificationMetric(device, self.label_names)

    @override
    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)  # (N, C)

    @override
    def errors(self, metric: ClassificationMetric, source: LabelledTexts) -> Errors:
        return misclassified(metric, source, self.label_names)


def classification_losses(logits: Tensor, batch: PackedBatch) -> Losses:
    """Summed cross-entropy, and the count of right predictions, of logits (N, C) and classes (N,)."""
    loss = F.cross_entropy(logits, batch.labels, reduction="sum")
    return {"loss": loss, "accuracy": (logits.argmax(dim=-1) == batch.labels).sum()}


def misclassified(metric: ClassificationMetric, source: LabelledTexts, label_names: Sequence[str]) -> Errors:
    """The misclassified examples with both labels, and the probability of the wrong one."""
    names = np.array(label_names, dtype=object)  # (C,)
    return wrong_texts(source, names[metric.gold], names[metric.predicted], "probability", metric.probabilities)
