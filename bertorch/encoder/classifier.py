"""Classification of texts and text pairs: transformers' own classification model on packed batches."""

from collections.abc import Sequence
from enum import Enum, auto

from torch import Tensor
from transformers import AutoModelForSequenceClassification
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder import pooling
from bertorch.encoder.heads import HeadedModel
from bertorch.encoder.layouts import BlockLayout
from bertorch.encoder.pretrained import label_settings, load_pretrained
from bertorch.encoder.trials import matches


class HeadInput(Enum):
    """What the head of a classification model reads."""

    FIRST_TOKENS = auto()  # hidden states (N, 1, H): most architectures
    BLOCK = auto()  # hidden states (N, L, H) and their mask: ModernBERT with `classifier_pooling: mean`
    TEXT = auto()  # padded input ids, the whole model at once: Longformer gives [CLS] global attention in its head


class SequenceClassifier(HeadedModel):
    """A `…ForSequenceClassification` of transformers that takes packed batches.

    The encoder runs packed; then the architecture's own head runs on what the encoder gave. What the head reads is
    found out at construction, by comparing with the model's own logits.
    """

    head_kind = "classification"

    @classmethod
    def from_pretrained(cls, name: str, label_names: Sequence[str]) -> "SequenceClassifier":
        """Load a hub model or local folder with a head for these labels, which go into the config as `id2label`.

        Raises:
            UserError: it cannot be loaded, or is no encoder with a classification head.
        """
        model = load_pretrained(
            AutoModelForSequenceClassification,
            name,
            problem_type="single_label_classification",
            **label_settings(label_names),
        )
        model.config.architectures = [type(model).__name__]
        return cls(model)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits (N, C) of a packed batch."""
        if self.head_input is HeadInput.TEXT:
            inputs, _ = self.encoder.inputs.padded(batch)  # (N, L) each
            return self.model(**inputs).logits[: batch.size]  # (N, C), filler is no sentence
        hidden = self.encoder(batch)  # (T, H)
        if self.head_input is HeadInput.FIRST_TOKENS:
            return self.head(inputs_embeds=pooling.cls(hidden, batch)[:, None]).logits  # (N, C)
        layout = BlockLayout.of(batch)
        block, mask = layout.pad(hidden)[: batch.size], layout.mask[: batch.size].long()  # (N, L, H), (N, L)
        return self.head(inputs_embeds=block, attention_mask=mask).logits  # (N, C)

    @override
    def _reproduces(self, expected: Tensor, batch: PackedBatch) -> bool:
        for self.head_input in (HeadInput.FIRST_TOKENS, HeadInput.BLOCK):
            if matches(expected, lambda: self(batch)):
                return True
        if self.encoder.packed:
            return False
        self.head_input = HeadInput.TEXT
        batch = self.encoder.long_trial()
        return matches(self._one_by_one(batch), lambda: self(batch))
