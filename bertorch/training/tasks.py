"""What the train loop knows of a task: its model, its loss on a batch, its metric, what it saves."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertorch.data.batch import PackedBatch
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.training.metrics import ClassificationMetric, Metric
from bertorch.training.step import BatchOutput
from bertorch.training.weights import Companion

B = TypeVar("B", bound=PackedBatch)


class Task(ABC, Generic[B]):
    """A model to train and what to do with it.

    Args:
        model: maps a packed batch to outputs, such as logits (N, C).
        companions: what is saved beside the weights, such as the config and the tokenizer.

    Attributes:
        counts_correct: whether training lines have an accuracy.
        joins_processes: whether the loss joins the processes, so that one without examples must compute it too.
        depends_on_processes: whether the loss of an example depends on which others are on the same process.
        recomputes: whether the backward pass runs parts of the forward pass again.
        head_learning_rate: the rate of `head_parameters`, None where everything has the rate of the encoder.
    """

    counts_correct = False
    joins_processes = False
    depends_on_processes = False
    recomputes = False
    head_learning_rate: float | None = None

    def __init__(self, model: EncoderModel, companions: Sequence[Companion]) -> None:
        self.model = model
        self.companions = companions

    @abstractmethod
    def training_output(self, batch: B) -> BatchOutput:
        """The loss of a training batch, summed over its labels."""

    @abstractmethod
    def new_metric(self, device: torch.device) -> Metric[B]:
        """A fresh dev metric, which takes the model's outputs and the batches."""

    def head_parameters(self) -> Sequence[nn.Parameter]:
        """The parameters with a learning rate of their own."""
        return ()

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a checkpoint, under its own names, in the shapes that this task has for them."""
        return dict(weights)


class ClassificationTask(Task[PackedBatch]):
    """Cross-entropy over the classes of texts or pairs; the dev metric is accuracy. The model gives logits (N, C)."""

    counts_correct = True

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
