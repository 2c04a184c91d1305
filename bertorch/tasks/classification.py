"""Classification of texts and pairs: `run_classifier.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset
from bertorch.data.readers import LabelledTexts, read_labelled_texts
from bertorch.data.texts import Columns
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.pretrained import empty_model, saved_label_names
from bertorch.tasks.base import Errors, InputSettings, LoadedFolder, Losses
from bertorch.tasks.metrics import ClassificationMetric
from bertorch.tasks.scoring import ScoringTask, wrong_texts
from bertorch.weights import load_into


def labelled_texts(
    path: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    label_names: Sequence[str],
    num_texts: int,
    on_bad_line: str,
) -> Dataset:
    """Texts or pairs with a class; the texts of a pair are encoded together. See `read_labelled_texts`."""
    read = read_labelled_texts(path, label_names, num_texts=num_texts, on_bad_line=on_bad_line)
    return Dataset.of_sequences(tokenizer, read.columns, read.labels, max_length=max_length)


class ClassificationTask(ScoringTask):
    """Cross-entropy over the classes of texts or pairs; the dev metric is accuracy.

    Args:
        model: gives logits (N, C).
        label_names: C of them.
        text_pair: whether the inputs are pairs; None if that is not known, and both are taken.
        inputs: see `Task`.
    """

    name = "classification"
    scripts = "run_classifier.py"
    pipeline_tag = "text-classification"
    head = "linear"
    loss_parts = ("loss", "accuracy")
    has_confusions = True

    def __init__(
        self,
        model: SequenceClassifier,
        label_names: Sequence[str],
        *,
        text_pair: bool | None = False,
        **inputs: Unpack[InputSettings],
    ) -> None:
        super().__init__(model, **inputs)
        self.label_names = label_names
        self._text_pair = text_pair

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        label_names: Sequence[str],
        *,
        text_pair: bool,
        max_seq_length: int,
    ) -> Self:
        """Load a hub model or local folder with a head for these labels.

        Raises:
            UserError: it cannot be loaded, has no classification head, or fewer positions than `max_seq_length`.
        """
        model = SequenceClassifier.from_pretrained(name, label_names)
        model.encoder.require_positions(max_seq_length)
        return cls(model, label_names, text_pair=text_pair, tokenizer=tokenizer, max_seq_length=max_seq_length)

    @classmethod
    @override
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        label_names = saved_label_names(loaded.config, loaded.folder)
        model = SequenceClassifier(empty_model(AutoModelForSequenceClassification, loaded.config, loaded.folder))
        load_into(model.weights, loaded.weights, model.encoder_prefix, loaded.folder)
        text_pair = loaded.metadata.setting("text_pair", (None, False, True), loaded.folder)
        return cls(model, label_names, text_pair=text_pair, **loaded.inputs)

    @override
    def settings(self) -> Mapping[str, Any]:
        return {"text_pair": self._text_pair}

    @override
    def losses_of(self, outputs: Tensor, batch: PackedBatch) -> Losses:
        return classification_losses(outputs, batch)

    @override
    def metric(self, device: torch.device) -> ClassificationMetric:
        return ClassificationMetric(device, self.label_names)

    @property
    @override
    def num_texts(self) -> int:
        return 0 if self._text_pair is None else 1 + self._text_pair

    @override
    def _tokenized(self, columns: Columns, labels: np.ndarray) -> Dataset:
        return Dataset.of_sequences(self.tokenizer, columns, labels, max_length=self.max_seq_length)

    @override
    def _scores(self, batch: PackedBatch) -> Tensor:
        return self.outputs(batch).float().softmax(-1)  # (N, C)

    @override
    def errors(self, metric: ClassificationMetric, source: LabelledTexts) -> Errors:
        return misclassified(metric, source, self.label_names)

    @override
    def usage(self) -> tuple[str, str]:
        first, second = "房间干净，早餐也丰富。", "早餐不错。"
        ours, theirs = ((first, second), {"text": first, "text_pair": second}) if self._text_pair else (first, first)
        elsewhere = "from transformers import pipeline\n\n"
        elsewhere += f'print(pipeline("{self.pipeline_tag}", model={{folder}})({theirs!r}))'
        return f"predict([{ours!r}])[0].label", elsewhere


def classification_losses(logits: Tensor, batch: PackedBatch) -> Losses:
    """Summed cross-entropy, and the count of right predictions, of logits (N, C) and classes (N,)."""
    loss = F.cross_entropy(logits, batch.labels, reduction="sum")
    return {"loss": loss, "accuracy": (logits.argmax(dim=-1) == batch.labels).sum()}


def misclassified(metric: ClassificationMetric, source: LabelledTexts, label_names: Sequence[str]) -> Errors:
    """The misclassified examples with both labels, and the probability of the wrong one."""
    names = np.array(label_names, dtype=object)  # (C,)
    return wrong_texts(source, names[metric.gold], names[metric.predicted], "probability", metric.probabilities)
