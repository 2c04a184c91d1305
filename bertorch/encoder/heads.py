"""The heads of transformers' own models, run on hidden states that our encoder gave."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.inputs import ModelInputs
from bertorch.encoder.pooling import PretrainedPooler
from bertorch.encoder.trials import eval_mode, supported, trial_batch, unsupported


class HeadedModel(EncoderModel):
    """A `…For…Classification` of transformers, parted into an encoder that runs packed and the head on top of it.

    So the weights keep transformers' layout and names, and the logits are those of transformers. Whether they are is
    tried at construction.

    Args:
        model: the model with its head.

    Raises:
        UserError: an architecture whose head cannot be run apart from its encoder.
    """

    head_kind: str

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        wanted = f"an encoder with a {self.head_kind} head over its hidden states"
        with supported(model, wanted):
            batch = trial_batch(model.config)
            with eval_mode(model):  # before the encoder is set to packed attention
                expected = self._one_by_one(batch)
            self.encoder = Encoder(model.base_model)
            self.head = head_of(model)
            with eval_mode(self):
                if not self._reproduces(expected, batch):
                    raise unsupported(model, wanted, "its logits cannot be had from them")

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    @override
    def weights(self) -> nn.Module:
        return self.model

    @property
    @override
    def encoder_prefix(self) -> str:
        return self.model.base_model_prefix

    def _reproduces(self, expected: Tensor, batch: PackedBatch) -> bool:
        """Whether encoder and head give the logits expected for a batch."""
        raise NotImplementedError

    def _one_by_one(self, batch: PackedBatch) -> Tensor:
        """The model's own logits for sentences in a batch of their own each, (N, C), or (T, C) of tokens."""
        inputs = ModelInputs.of(self.model.base_model)
        sentences = [inputs.padded(sentence)[0] for sentence in batch.split(1)]  # (1, L) each
        return torch.cat([self.model(**sentence).logits.flatten(0, -2) for sentence in sentences])


class _Output(BaseModelOutputWithPooling):  # type: ignore[misc] # transformers is untyped
    """An encoder's output; what only some encoders give, such as LUKE's `entity_hidden_states`, is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _EncoderOutput(nn.Module):
    """Stands in for an encoder under its head: returns the hidden states that it is given as `inputs_embeds`."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        has_pooler = getattr(encoder, "pooler", None) is not None
        self.pooler = PretrainedPooler(encoder) if has_pooler else None

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Output:
        pooled = None if self.pooler is None else self.pooler(inputs_embeds[:, 0])  # (N, H)
        return _Output(last_hidden_state=inputs_embeds, pooler_output=pooled)


def head_of(model: PreTrainedModel) -> nn.Module:
    """The model without its encoder, which takes hidden states (N, L, H) as `inputs_embeds`.

    The layers and weights are shared with `model`, not copied.
    """
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head._modules[model.base_model_prefix] = _EncoderOutput(model.base_model)
    return head
