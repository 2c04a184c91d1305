"""The padding-free attention function, registered with transformers under `ATTENTION`.

The model runs on one row of T tokens. Linear layers, normalisation and activation see the real tokens only; attention
alone must know where a sentence ends, which is in a layout of `bertorch.encoder.layouts`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from bertorch.data.batch import PackedBatch
from bertorch.encoder.cpu import cpu_layout
from bertorch.encoder.layouts import BlockLayout, FlashLayout, Layout, runs_flash

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
    attended = layout.attend(*rows, scaling=scaling, dropout=dropout, window=sliding_window)  # (T, A, D)
    return attended.unsqueeze(0), None


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers asks for a padding mask; a packed batch has none."""


def layout_of(batch: PackedBatch, dtype: torch.dtype, head_size: int) -> Layout:
    """The layout of a batch for the fastest attention that its device has.

    Args:
        batch: on its device.
        dtype: that queries, keys and values will have.
        head_size: D.
    """
    device = batch.input_ids.device
    if runs_flash(device, dtype, head_size):
        return FlashLayout(batch.bounds, batch.max_seqlen, dtype)
    return cpu_layout(batch) if device.type == "cpu" else BlockLayout.of(batch)


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
