"""Attention on one row of T tokens of N sentences; registered with transformers under `ATTENTION`.

A layout says where the sentences are. On CUDA in half precision, flash attention for sequences of various lengths takes
the row as it is (Dao, FlashAttention-2, ICLR 2024). Elsewhere queries, keys and values are scattered into a block
(N, A, L, D), attended to there, and the tokens gathered back.
"""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from typing_extensions import override

from bertorch.data.batch import PackedBatch

ATTENTION = "bertorch_packed"


class Layout(Protocol):
    """Where the sentences of a packed batch are, in the form that one kind of attention needs."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """Attention within each sentence, (T, A, D).

        Args:
            query: (T, A, D).
            key, value: (T, A or fewer, D); fewer heads are shared by groups of queries.
            scaling: factor on the scores, 1/√D if None.
            dropout: probability of dropping an attention weight.
            window: a token sees those less than this many positions away; None sees its whole sentence.
        """
        ...


@dataclass(frozen=True)
class BlockLayout(Layout):
    """Where the tokens stand in a padded block of N sentences and L slots."""

    sentences: int  # N, one more if the batch has filler
    length: int  # L
    slots: Tensor  # (T,) int64, `sentence * L + position` of each token
    mask: Tensor  # (N, L) bool, true at a token

    @classmethod
    def of(cls, batch: PackedBatch) -> Self:
        """The layout of a batch, computed once and shared by all layers."""
        return cls.of_lengths(batch.bounds.diff(), len(batch.input_ids), batch.max_seqlen)

    @classmethod
    def of_lengths(cls, lengths: Tensor, tokens: int, length: int) -> Self:
        """The layout of sentences of these lengths (N,), `tokens` in total; `length` is L."""
        indices = torch.arange(len(lengths), device=lengths.device)  # (N,)
        shifts = indices * length - (lengths.cumsum(0) - lengths)  # (N,), from a token's index to its slot
        return cls(
            sentences=len(lengths),
            length=length,
            slots=torch.arange(tokens, device=lengths.device) + shifts.repeat_interleave(lengths, output_size=tokens),
            mask=torch.arange(length, device=lengths.device) < lengths[:, None],
        )

    @property
    def is_full(self) -> bool:
        """Whether there is no padding: one sentence, or all of one length."""
        return len(self.slots) == self.sentences * self.length

    def pad(self, packed: Tensor, value: float = 0) -> Tensor:
        """(T, …) → (N, L, …), `value` where no token is."""
        if self.is_full:
            return packed.view(self.sentences, self.length, *packed.shape[1:])
        block = packed.new_full((self.sentences * self.length, *packed.shape[1:]), value)  # (N·L, …)
        return block.index_copy(0, self.slots, packed).view(self.sentences, self.length, *packed.shape[1:])

    def unpad(self, block: Tensor) -> Tensor:
        """(N, L, …) → (T, …)."""
        rows = block.flatten(0, 1)  # (N·L, …)
        return rows if self.is_full else rows.index_select(0, self.slots)

    def seen(self, window: int | None) -> Tensor | None:
        """Which keys the queries see, (N or 1, 1, L or 1, L) bool; None if all see all."""
        mask = None if self.is_full else self.mask[:, None, None, :]  # (N, 1, 1, L)
        if window is None:
            return mask
        positions = torch.arange(self.length, device=self.mask.device)  # (L,)
        near = (positions[:, None] - positions).abs() < window  # (L, L)
        # A query slot without a token may see no key at all; let it see itself, so that its softmax is defined.
        near = near[None, None] if mask is None else mask & near  # (N or 1, 1, L, L)
        return near | torch.eye(self.length, dtype=torch.bool, device=self.mask.device)  # (N or 1, 1, L, L)

    @override
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        mask = self.seen(window)  # (N or 1, 1, L or 1, L)
        grouped = key.shape[1] != query.shape[1]
        queries, keys, values = (self.pad(tensor).transpose(1, 2) for tensor in (query, key, value))  # (N, A, L, D)
        attended = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )  # (N, A, L, D)
        return self.unpad(attended.transpose(1, 2))  # (T, A, D)


@dataclass(frozen=True)
class FlashLayout(Layout):
    """Where the sentences begin, for flash attention."""

    bounds: Tensor  # (N+1,) int32, as `PackedBatch.bounds`
    length: int  # a bound on the longest sentence
    dtype: torch.dtype  # of the arithmetic

    @override
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        reach = None if window is None else window - 1
        # `varlen_attn` has no dropout; the aten operator beneath it does, with autograd.
        attended, *_ = torch.ops.aten._flash_attention_forward(
            *(tensor.to(self.dtype) for tensor in (query, key, value)),
            *(self.bounds, self.bounds, self.length, self.length),  # of queries and of keys
            dropout,
            is_causal=False,
            return_debug_mask=False,
            scale=scaling,
            window_size_left=reach,
            window_size_right=reach,
        )
        return attended  # (T, A, D)


def runs_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether PyTorch's flash attention takes such queries, keys and values."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_size in range(8, 257, 8)
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(device) >= (8, 0)  # NVIDIA Ampere
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
    """`layout.attend` with the signature of transformers' `AttentionInterface`.

    Queries, keys and values are (1, A, T, D), the result is (1, T, A, D), without attention weights.
    """
    rows = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))  # (T, A, D)
    attended = layout.attend(*rows, scaling=scaling, dropout=dropout, window=sliding_window)  # (T, A, D)
    return attended.unsqueeze(0), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)  # a packed batch has no padding mask
