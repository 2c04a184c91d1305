"""Classification of texts and of tokens: transformers' own models, their encoder and head run on packed batches."""

import copy
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, TokenClassifierOutput
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.encoder import pooling
from bertorch.encoder.attention import BlockLayout
from bertorch.encoder.encoder import Encoder, ModelInputs
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.encoder.padded import PaddedClassifier
from bertorch.encoder.pretrained import label_settings, load_pretrained
from bertorch.encoder.trials import eval_mode, matches, supported, trial_batch, unsupported
from bertorch.precision import at_least_fp32

WINDOWS_AT_ONCE = 256  # evaluation encodes all windows of a sentence, however long it is: at most this many at once


class HeadedModel(EncoderModel):
    """A `…For…Classification` of transformers, split into an encoder that runs packed and the head on top of it.

    The weights keep transformers' names; that the logits are those of transformers is checked at construction.

    Raises:
        UserError: an architecture whose head cannot be run apart from its encoder.
    """

    head_kind: str

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        expectation = f"an encoder with a {self.head_kind} head over its hidden states"
        with supported(model, expectation):
            batch = trial_batch(model.config)
            with eval_mode(model):  # before the encoder is set to packed attention
                expected = self._one_by_one(batch)
            self.encoder = Encoder(model.base_model)
            self.head = head_of(model)
            with eval_mode(self):
                if not self._reproduces(expected, batch):
                    raise unsupported(model, expectation, "its logits cannot be had from them")

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    @override
    def weights(self) -> nn.Module:
        return self.model

    @override
    def padded(self) -> PaddedClassifier:
        return PaddedClassifier(self.encoder, self.model)

    def _reproduces(self, expected: Tensor, batch: PackedBatch) -> bool:
        """Whether encoder and head give the logits expected for a batch."""
        raise NotImplementedError

    def _one_by_one(self, batch: PackedBatch) -> Tensor:
        """The model's own logits for each sentence alone, (N, C), or (T, C) of tokens."""
        inputs = ModelInputs.of(self.model.base_model)
        sentences = [inputs.padded(sentence)[0] for sentence in batch.split(1)]  # (1, L) each
        return torch.cat([self.model(**sentence).logits.flatten(0, -2) for sentence in sentences])


class _Output(BaseModelOutputWithPooling):  # type: ignore[misc] # transformers is untyped
    def __getattr__(self, name: str) -> None:  # None for what only some encoders give: LUKE's `entity_hidden_states`
        if name.startswith("_"):
            raise AttributeError(name)


class _EncoderOutput(nn.Module):
    """Stands in for an encoder under its head: returns the hidden states that it is given as `inputs_embeds`."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.pooler = pooling.PretrainedPooler(encoder) if getattr(encoder, "pooler", None) is not None else None

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Output:
        pooled = None if self.pooler is None else self.pooler(inputs_embeds[:, 0])  # (N, H)
        return _Output(last_hidden_state=inputs_embeds, pooler_output=pooled)


def head_of(model: PreTrainedModel) -> nn.Module:
    """The model without its encoder, on hidden states (N, L, H) as `inputs_embeds`; it shares the model's weights."""
    head = copy.copy(model)
    head._modules = model._modules | {model.base_model_prefix: _EncoderOutput(model.base_model)}
    return head


class _GivenLogits(nn.Module):
    """Stands in for a head of tokens: what it is given are the logits."""

    def forward(self, *, inputs_embeds: Tensor) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=inputs_embeds)


class HeadInput(Enum):
    """What the head of a classification model reads."""

    FIRST_TOKENS = auto()  # hidden states (N, 1, H): most architectures
    BLOCK = auto()  # hidden states (N, L, H) and their mask: ModernBERT with `classifier_pooling: mean`
    TEXT = auto()  # padded input ids, the whole model at once: Longformer gives [CLS] global attention in its head


class SequenceClassifier(HeadedModel):
    """A `…ForSequenceClassification` of transformers on packed batches.

    What the architecture's head reads is found at construction, by comparing with the model's own logits.
    """

    head_kind = "classification"

    @classmethod
    def from_pretrained(
        cls, name: str, label_names: Sequence[str], problem_type: str = "single_label_classification"
    ) -> "SequenceClassifier":
        """Load a hub model or local folder with a head for these labels; raises as `load_pretrained` does.

        `problem_type` is that of transformers, which a pipeline goes by.
        """
        settings = {"problem_type": problem_type} | label_settings(label_names)
        return cls(load_pretrained(AutoModelForSequenceClassification, name, **settings))

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits (N, C)."""
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


def word_states(encoder: Encoder | OnnxModel, batch: TaggedBatch) -> Tensor:
    """Hidden states (K, H) of the first pieces of the words."""
    if encoder.training or batch.size <= WINDOWS_AT_ONCE:
        hidden = encoder(batch)  # (T, H)
    else:
        hidden = torch.cat([encoder(part) for part in batch.split(WINDOWS_AT_ONCE)])  # (T, H)
    return hidden.index_select(0, batch.word_starts)  # (K, H)


class TokenClassifier(HeadedModel):
    """A `…ForTokenClassification` of transformers; its logits at the first piece of a word are the word's emissions.

    In its place there may be an `OnnxModel` that gives the logits of tokens.
    """

    head_kind = "token classification"

    def __init__(self, model: PreTrainedModel | OnnxModel) -> None:
        if not isinstance(model, OnnxModel):
            super().__init__(model)
            return
        EncoderModel.__init__(self)
        self.model = model
        self.encoder = model  # type: ignore[assignment] # gives (T, C) in the place of (T, H)
        self.head = _GivenLogits()

    @staticmethod
    def pretrained(name: str, label_names: Sequence[str]) -> PreTrainedModel:
        """Load a hub model or local folder with a head for these labels; raises as `load_pretrained` does."""
        return load_pretrained(AutoModelForTokenClassification, name, **label_settings(label_names))

    def forward(self, batch: TaggedBatch) -> Tensor:
        """Emissions (K, C), at least in fp32."""
        return at_least_fp32(self.head_logits(word_states(self.encoder, batch)))

    def head_logits(self, hidden: Tensor) -> Tensor:
        """(K, H) → (K, C); the words go in as one sentence, since the head treats each by itself."""
        return self.head(inputs_embeds=hidden[None]).logits.squeeze(0)

    @override
    def _reproduces(self, expected: Tensor, batch: PackedBatch) -> bool:
        return matches(expected, lambda: self.head_logits(self.encoder(batch)))
