"""What the train loop knows of a task: its model, its loss on a batch, its metric, what it saves."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertorch.data.batching import PackedBatch
from bertorch.models.classifier import SequenceClassifier
from bertorch.models.sentence_bert import SiameseClassifier
from bertorch.training.checkpoint import Companion
from bertorch.training.metrics import ClassificationMetric, Metric
from bertorch.training.step import BatchOutput


class Task(Protocol):
    """A model to train and what to do with it.

    Attributes:
        model: maps a packed batch to outputs, such as logits (N, C).
        weights: the module whose `state_dict` is saved and warm-started.
        encoder_prefix: the encoder's name within `weights`.
        counts_correct: whether training lines have an accuracy.
        joins_processes: whether the loss joins the processes, so that one without examples must compute it too.
        companions: what is saved beside the weights, such as the config and the tokenizer.
    """

    model: nn.Module
    weights: nn.Module
    encoder_prefix: str
    counts_correct: bool
    joins_processes: bool
    companions: Sequence[Companion]

    def training_output(self, batch: PackedBatch) -> BatchOutput:
        """The loss of a training batch, summed over its labels."""
        ...

    def new_metric(self, device: torch.device) -> Metric:
        """A fresh dev metric, which takes the model's outputs and the labels."""
        ...


class ClassificationTask:
    """Cross-entropy over the classes of texts or pairs; the dev metric is accuracy.

    Args:
        model: gives logits (N, C).
        companions: saved with it.
    """

    def __init__(self, model: SequenceClassifier | SiameseClassifier, companions: Sequence[Companion]) -> None:
        self.model: nn.Module = model
        self.weights: nn.Module = model.weights
        self.encoder_prefix: str = model.encoder_prefix
        self.counts_correct = True
        self.joins_processes = False
        self.companions = companions

    def training_output(self, batch: PackedBatch) -> BatchOutput:
        """Summed cross-entropy and the count of right predictions."""
        logits: Tensor = self.model(batch)  # (N, C)
        return BatchOutput(
            loss=F.cross_entropy(logits, batch.labels, reduction="sum"),
            correct=(logits.argmax(dim=-1) == batch.labels).sum(),
        )

    def new_metric(self, device: torch.device) -> ClassificationMetric:
        """Mean cross-entropy and accuracy."""
        return ClassificationMetric(device)
