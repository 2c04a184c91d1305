"""The padding-free attention function, registered with transformers under `ATTENTION`.

The model runs on one row of T tokens. Linear layers, normalisation and activation see the real tokens only; attention
alone must know where a sentence ends. It scatters queries, keys and values into a block (N, A, L, D), runs
`scaled_dot_product_attention` there, and gathers the tokens back.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from bertorch.data.batching import PackedBatch

ATTENTION = "bertorch_packed"


@dataclass(frozen=True)
class BlockLayout:
    """Where the T tokens of a packed batch stand in a padded block of N sentences and L slots.

    Attributes:
        sentences: N.
        length: L, the longest sentence.
        slots: (T,) int64, `sentence * L + position` of each token.
        mask: (N, L) bool, true at a token.
    """

    sentences: int
    length: int
    slots: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: PackedBatch) -> "BlockLayout":
        """The layout of a batch, worked out once and shared by all layers."""
        lengths = batch.cu_seqlens.diff()  # (N,)
        return cls(
            sentences=batch.size,
            length=batch.max_seqlen,
            slots=batch.sentence_ids * batch.max_seqlen + batch.position_ids,
            mask=torch.arange(batch.max_seqlen, device=lengths.device) < lengths[:, None],
        )

    def pad(self, packed: Tensor, value: float = 0) -> Tensor:
        """(T, …) → (N, L, …), `value` where no token is."""
        block = packed.new_full((self.sentences * self.length, *packed.shape[1:]), value)
        return block.index_copy(0, self.slots, packed).view(self.sentences, self.length, *packed.shape[1:])

    def unpad(self, block: Tensor) -> Tensor:
        """(N, L, …) → (T, …)."""
        return block.flatten(0, 1).index_select(0, self.slots)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    layout: BlockLayout,
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
    block_query, block_key, block_value = (
        layout.pad(tensor.squeeze(0).transpose(0, 1)).transpose(1, 2)  # (N, A, L, D)
        for tensor in (query, key, value)
    )
    mask = layout.mask[:, None, None, :]  # (N, 1, 1, L)
    if sliding_window is not None:
        positions = torch.arange(layout.length, device=query.device)
        near = (positions[:, None] - positions).abs() < sliding_window  # (L, L)
        # A query slot without a token may see no key at all; let it see itself, so that its softmax is defined.
        mask = (mask & near) | torch.eye(layout.length, dtype=torch.bool, device=query.device)
    attended = scaled_dot_product_attention(  # (N, A, L, D)
        block_query,
        block_key,
        block_value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=block_key.shape[1] != block_query.shape[1],
    )
    return layout.unpad(attended.transpose(1, 2)).unsqueeze(0), None


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers asks for a padding mask; a packed batch has none."""


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
