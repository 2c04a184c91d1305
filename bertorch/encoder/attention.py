"""The padding-free attention function, registered with transformers under `ATTENTION`.

The model runs on one row of T tokens. Linear layers, normalisation and activation see the real tokens only; attention
alone must know where a sentence ends, which a layout of `bertorch.encoder.layouts` tells it.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from bertorch.encoder.layouts import Layout

ATTENTION = "bertorch_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each sentence of a packed batch; the signature is that of transformers' `AttentionInterface`.

    Args:
        module: the attention layer, which is not needed.
        query: (1, A, T, D).
        key, value: (1, A or fewer, T, D); fewer heads are shared by groups of queries.
        attention_mask: None, as the registered mask function gives.
        layout: where the sentences are.
        scaling: factor on the scores, 1/√D if None.
        dropout: probability of dropping an attention weight.
        sliding_window: a token sees those less than this many positions away, as in ModernBERT's local layers.

    Returns:
        (1, T, A, D), and None in place of the attention weights.
    """
    rows = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))  # (T, A, D)
    attended = layout.attend(*rows, scaling=scaling, dropout=dropout, window=sliding_window)
    return attended.unsqueeze(0), None


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers asks for a padding mask; a packed batch has none."""


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
