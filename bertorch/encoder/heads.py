"""The heads of transformers' own models, run on hidden states that our encoder gave."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bertorch.encoder.pooling import PretrainedPooler


class _EncoderOutput(nn.Module):
    """Stands in for an encoder under its head: returns the hidden states that it is given as `inputs_embeds`."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        has_pooler = getattr(encoder, "pooler", None) is not None
        self.pooler = PretrainedPooler(encoder) if has_pooler else None

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(inputs_embeds[:, 0])
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


def head_of(model: PreTrainedModel) -> nn.Module:
    """The model without its encoder, which takes hidden states (N, L, H) as `inputs_embeds`.

    The layers and weights are shared with `model`, not copied.
    """
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head._modules[model.base_model_prefix] = _EncoderOutput(model.base_model)
    return head
