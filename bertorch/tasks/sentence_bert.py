"""Sentence-BERT, a classifier over the embeddings of two sentences: `run_sentencebert.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, Examples
from bertorch.data.readers import LabelledTexts, read_labelled_texts
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.encoder.padded import PaddedModel
from bertorch.encoder.pretrained import label_settings, saved_label_names
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.precision import at_least_fp32
from bertorch.resampling import ExampleTable
from bertorch.tasks.base import Errors, InputSettings, LoadedFolder, Losses
from bertorch.tasks.calibrated import CalibratedTask
from bertorch.tasks.calibration import Temperature
from bertorch.tasks.classification import classification_losses, misclassified
from bertorch.tasks.embedding import EmbeddingTask, empty_embedder
from bertorch.tasks.label_counts import LabelCounts, class_counts
from bertorch.tasks.matryoshka import of_whole, saved_widths
from bertorch.tasks.metrics import ClassificationMetric, ExampleRows, Metric, best_threshold, correlations, pair_cosines
from bertorch.weights import load_into

MATCHING_LABELS = ["0", "1"]


def labelled_pairs(
    path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str], on_bad_line: str
) -> Dataset:
    """Pairs with a class, whose texts are encoded apart. See `read_labelled_texts`."""
    hint = "; --is_nli with a --label_file is for other labels" if label_names == MATCHING_LABELS else ""
    read = read_labelled_texts(path, label_names, num_texts=2, on_bad_line=on_bad_line, other_labels=hint)
    return Dataset.of_sentences(tokenizer, read.columns, read.labels, max_length=max_length)


class SiameseClassifier(EncoderModel):
    """Classifies sentence pairs by a linear layer over (u, v, |u−v|), or (u, v, |u−v|, u·v element-wise).

    Both sentences of all pairs are encoded in one call.

    References:
        Reimers and Gurevych, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, EMNLP 2019.

    Args:
        embedder: gives u and v, (E,) each.
        num_labels: C.
        concat_multiply: whether the classifier also sees u·v.
    """

    def __init__(
        self, embedder: SentenceEncoder | OnnxModel, num_labels: int, *, concat_multiply: bool = False
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.concat_multiply = concat_multiply
        self.classifier = nn.Linear((4 if concat_multiply else 3) * embedder.size, num_labels)

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self.embedder.config

    @property
    @override
    def encoder_prefix(self) -> str:
        return self.embedder.encoder_prefix

    @property
    @override
    def weights(self) -> nn.ModuleDict:
        """The embedder's weights and `classifier.…`."""
        weights = self.embedder.weights
        weights["classifier"] = self.classifier
        return weights

    @override
    def padded(self) -> PaddedModel:
        return self.embedder.padded()  # what takes one sentence; the classifier takes the embeddings of two

    @override
    def beside_graph(self) -> dict[str, Tensor]:
        return {f"classifier.{name}": tensor for name, tensor in self.classifier.state_dict().items()}

    @override
    def is_head(self, name: str) -> bool:
        return name.startswith("classifier.")

    def forward(self, batch: PackedBatch) -> Tensor:
        """Embeddings (examples, 2, E) of both sentences of each example."""
        return self.embedder(batch).view(-1, 2, self.embedder.size)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits (examples, C) of the embeddings of pairs, (examples, 2, E), or of their first dimensions.

        The dimensions cut off count as zeros, so that one classifier serves all widths by the weights of the first
        dimensions (MRL-E in Kusupati et al., 2022). As it sees whole embeddings with their length, so it sees cut ones.
        """
        if embeddings.shape[-1] < self.embedder.size:
            embeddings = F.pad(embeddings, (0, self.embedder.size - embeddings.shape[-1]))  # (examples, 2, E)
        u, v = embeddings.unbind(dim=1)  # (examples, E) each
        features = [u, v, (u - v).abs()]
        if self.concat_multiply:
            features.append(u * v)
        return self.classifier(torch.cat(features, dim=-1))  # (examples, 3E or 4E) → (examples, C)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosines (examples,) of the embeddings of pairs, (examples, 2, E)."""
        return pair_cosines(embeddings)


class SentenceBertTask(CalibratedTask, EmbeddingTask):
    """Cross-entropy over the classes of pairs; the dev metric is accuracy.

    Args:
        model: gives the embeddings of pairs, and their logits (examples, C).
        label_names: C of them.
        temperature: see `CalibratedTask`.
        inputs: see `EmbeddingTask`.
    """

    name = "sentence_bert"
    scripts = "run_sentencebert.py"
    head = "siamese"
    loss_parts = ("loss", "accuracy")
    has_confusions = True

    def __init__(
        self,
        model: SiameseClassifier,
        label_names: Sequence[str],
        *,
        temperature: Temperature = Temperature(),  # noqa: B008 - is frozen
        matryoshka: Sequence[int] = (),
        **inputs: Unpack[InputSettings],
    ) -> None:
        super().__init__(model, model.embedder, matryoshka=matryoshka, **inputs)
        self.siamese, self.temperature = model, temperature
        self.label_names = label_names

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        label_names: Sequence[str],
        *,
        pooling_mode: str,
        output_emb_size: int | None,
        concat_multiply: bool,
        max_seq_length: int,
        matryoshka: Sequence[int] = (),
    ) -> Self:
        """Load a hub model or local folder, with a fresh classifier on top.

        Raises:
            UserError: it cannot be loaded, has no such pooling, or fewer positions than `max_seq_length`.
        """
        embedder = SentenceEncoder.from_pretrained(name, pooling_mode, output_emb_size, **label_settings(label_names))
        embedder.encoder.require_positions(max_seq_length)
        model = SiameseClassifier(embedder, len(label_names), concat_multiply=concat_multiply)
        return cls(model, label_names, matryoshka=matryoshka, tokenizer=tokenizer, max_seq_length=max_seq_length)

    @classmethod
    @override
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        label_names = saved_label_names(loaded.config, loaded.folder)
        concat_multiply = loaded.metadata.setting("concat_multiply", (None, False, True), loaded.folder)
        model = SiameseClassifier(empty_embedder(loaded), len(label_names), concat_multiply=bool(concat_multiply))
        load_into(model.weights, loaded.weights, model.encoder_prefix, loaded.folder)
        settings: dict[str, Any] = {
            "temperature": Temperature.saved(loaded.metadata.settings, loaded.folder),
            "matryoshka": saved_widths(loaded),
        }
        return cls(model, label_names, **settings, **loaded.inputs)

    @override
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings(), "concat_multiply": self.siamese.concat_multiply}

    @override
    def losses_at(self, embeddings: Tensor, batch: PackedBatch) -> Losses:
        return classification_losses(self.siamese.classify(embeddings), batch)

    @override
    def label_counts(self, examples: Examples) -> LabelCounts:
        return LabelCounts("labels", self.label_names, class_counts(examples, len(self.label_names)))

    @override
    def log_probabilities(self, outputs: Tensor) -> Tensor:
        return at_least_fp32(self.siamese.classify(outputs)).log_softmax(-1)  # (examples, C)

    @override
    def class_metric(self, device: torch.device, *, keeps_logits: bool = False) -> "SentenceBertMetric":
        return SentenceBertMetric(
            *(device, self.label_names, self.temperature),
            fitted_here=self.is_fitted_here,
            keeps_logits=keeps_logits,
            model=self.siamese,
        )

    @override
    def metric_at(self, device: torch.device) -> "SentenceBertMetric":
        return self.class_metric(device)

    @override
    def metric_to_fit(self, device: torch.device) -> Metric[PackedBatch]:
        size = self.embedding_size
        return self._at_widths(lambda width: self.class_metric(device, keeps_logits=width == size))

    @override
    def fit(self, metric: Any, choice: bool) -> dict[str, Any]:
        """Fit the temperature to the raw logits of whole embeddings."""
        return super().fit(of_whole(metric), choice)

    @override
    def _scores(self, batch: PackedBatch) -> Tensor:
        pairs = self.outputs(batch).float()  # (examples, 2, E)
        probabilities = self.probabilities(self.siamese.classify(pairs))  # (examples, C)
        return torch.cat([probabilities, self.siamese.cosines(pairs)[:, None]], dim=1)  # (examples, C+1)

    @override
    def _logits(self, batch: PackedBatch) -> Tensor:
        return self.siamese.classify(self.outputs(batch)).float()  # (examples, C)

    @override
    def errors_of(self, metric: ClassificationMetric, source: LabelledTexts) -> Errors:
        return misclassified(metric, source, self.label_names)


class SentenceBertMetric(ClassificationMetric):
    """Accuracy, and in the report the cosine as a classifier; the outputs are embeddings of pairs (examples, 2, E)."""

    of_examples = (*ClassificationMetric.of_examples, "cosines")

    def __init__(self, device: torch.device, *arguments: Any, model: SiameseClassifier, **options: Any) -> None:
        super().__init__(device, *arguments, **options)
        self._model = model
        self._cosines = ExampleRows(device, 1)

    @override
    def update(self, pairs: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        super().update(self._model.classify(pairs), batch, indices)
        self._cosines.add(indices, self._model.cosines(pairs))

    @override
    def reduce(self) -> None:
        super().reduce()
        del self._model  # the metrics of many models may be kept
        self.cosines = self._cosines.gather()[0].astype(np.float32)  # (examples,)

    @override
    def report(self) -> dict[str, Any]:
        """Also the best thresholds of the cosine: of two labels for the second, of more for each against the others."""
        positives = range(1, 2) if len(self._label_names) == 2 else range(len(self._label_names))
        thresholds = {self._label_names[index]: best_threshold(self.cosines, self.gold == index) for index in positives}
        cosine: dict[str, Any] = {"thresholds": thresholds}
        if len(self._label_names) == 2:
            cosine |= correlations(self.cosines, self.gold)
        return {**super().report(), "cosine": cosine}

    @override
    def example_table(self) -> ExampleTable:
        columns, measures = super().example_table()
        return ExampleTable({**columns, "cosine": self.cosines.tolist()}, measures)
