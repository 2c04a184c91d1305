"""The padding-free attention function, registered with transformers under `ATTENTION`.

The model runs on one row of T tokens. Linear layers, normalisation and activation see the real tokens only; attention
alone must know where a sentence ends. On CUDA in half precision, flash attention for sequences of various lengths takes
the row as it is. Elsewhere queries, keys and values are scattered into a block (N, A, L, D), attended to there, and the
tokens gathered back.

References:
    Dao, FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning, ICLR 2024.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from bertorch.data.batching import PackedBatch

ATTENTION = "bertorch_packed"
FLASH_TYPES = (torch.float16, torch.bfloat16)
FLASH_HEAD_SIZES = range(8, 257, 8)
FLASH_CAPABILITY = (8, 0)  # NVIDIA Ampere


class Layout(Protocol):
    """Where the sentences of a packed batch are, in the form that one kind of attention needs."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """Attention within each sentence.

        Args:
            query: (T, A, D).
            key, value: (T, A or fewer, D); fewer heads are shared by groups of queries.
            scaling: factor on the scores, 1/√D if None.
            dropout: probability of dropping an attention weight.
            window: a token sees those less than this many positions away; None sees its whole sentence.

        Returns:
            (T, A, D).
        """
        ...


@dataclass(frozen=True)
class BlockLayout:
    """Where the T tokens of a packed batch stand in a padded block of N sentences and L slots.

    Attributes:
        sentences: N, one more if the batch has filler.
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
        bounds, sentence_ids, length = batch.bounds.long(), batch.sentence_ids, batch.max_seqlen
        positions = torch.arange(len(sentence_ids), device=bounds.device) - bounds[sentence_ids]  # (T,)
        return cls(
            sentences=len(bounds) - 1,
            length=length,
            slots=sentence_ids * length + positions,
            mask=torch.arange(length, device=bounds.device) < bounds.diff()[:, None],
        )

    def pad(self, packed: Tensor, value: float = 0) -> Tensor:
        """(T, …) → (N, L, …), `value` where no token is."""
        block = packed.new_full((self.sentences * self.length, *packed.shape[1:]), value)
        return block.index_copy(0, self.slots, packed).view(self.sentences, self.length, *packed.shape[1:])

    def unpad(self, block: Tensor) -> Tensor:
        """(N, L, …) → (T, …)."""
        return block.flatten(0, 1).index_select(0, self.slots)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """See `Layout.attend`."""
        mask = self.mask[:, None, None, :]  # (N, 1, 1, L)
        if window is not None:
            positions = torch.arange(self.length, device=query.device)
            near = (positions[:, None] - positions).abs() < window  # (L, L)
            # A query slot without a token may see no key at all; let it see itself, so that its softmax is defined.
            mask = (mask & near) | torch.eye(self.length, dtype=torch.bool, device=query.device)
        block_query, block_key, block_value = (self.pad(tensor).transpose(1, 2) for tensor in (query, key, value))
        attended = scaled_dot_product_attention(  # (N, A, L, D)
            block_query,
            block_key,
            block_value,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return self.unpad(attended.transpose(1, 2))


@dataclass(frozen=True)
class FlashLayout:
    """Where the sentences of a packed batch begin, for flash attention.

    Attributes:
        bounds: (N+1,) int32, as `PackedBatch.bounds`.
        length: a bound on the longest sentence.
        dtype: of the arithmetic.
    """

    bounds: Tensor
    length: int
    dtype: torch.dtype

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """See `Layout.attend`."""
        reach = None if window is None else window - 1
        # PyTorch's public `varlen_attn` has no dropout; what it calls has, with its gradient.
        attended, *_ = torch.ops.aten._flash_attention_forward(
            *(tensor.to(self.dtype) for tensor in (query, key, value)),
            self.bounds,
            self.bounds,
            self.length,
            self.length,
            dropout,
            is_causal=False,
            return_debug_mask=False,
            scale=scaling,
            window_size_left=reach,
            window_size_right=reach,
        )
        return attended


def layout_of(batch: PackedBatch, dtype: torch.dtype, head_size: int) -> Layout:
    """The layout of a batch for the fastest attention that the device has.

    Args:
        batch: on its device.
        dtype: that queries, keys and values will have.
        head_size: D.
    """
    if runs_flash(batch.input_ids.device, dtype, head_size):
        return FlashLayout(batch.bounds, batch.max_seqlen, dtype)
    return BlockLayout.of(batch)


def runs_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether PyTorch's flash attention takes such queries, keys and values."""
    return (
        device.type == "cuda"
        and dtype in FLASH_TYPES
        and head_size in FLASH_HEAD_SIZES
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    )


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
