"""Where the sentences of a packed batch are, for each kind of attention, and the attention itself.

On CUDA in half precision, flash attention for sequences of various lengths takes the row of tokens as it is. Elsewhere
queries, keys and values are scattered into a block (N, A, L, D), attended to there, and the tokens gathered back; on
the CPU into several blocks, of sentences of like length.

References:
    Dao, FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning, ICLR 2024.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bertorch.data.batch import PackedBatch
from bertorch.encoder.dropout import dropped

FLASH_TYPES = (torch.float16, torch.bfloat16)
FLASH_HEAD_SIZES = range(8, 257, 8)
FLASH_CAPABILITY = (8, 0)  # NVIDIA Ampere
# On the CPU, a block of fewer scores than this is not worth cutting up; in the blocks that others are cut into, each
# sentence takes at least this share of the slots that it has.
SMALL_BLOCK = 2**17
FULLNESS = 0.75


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
        return cls.of_lengths(batch.bounds.diff(), len(batch.input_ids), batch.max_seqlen)

    @classmethod
    def of_lengths(cls, lengths: Tensor, tokens: int, length: int) -> "BlockLayout":
        """The layout of sentences of these lengths (N,), which have so many tokens; `length` is L."""
        numbers = torch.arange(len(lengths), device=lengths.device)  # (N,)
        first_slots = numbers * length - (lengths.cumsum(0) - lengths)  # (N,), less the place of the first token
        return cls(
            sentences=len(lengths),
            length=length,
            slots=torch.arange(tokens, device=lengths.device)
            + first_slots.repeat_interleave(lengths, output_size=tokens),
            mask=torch.arange(length, device=lengths.device) < lengths[:, None],
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
        if dropout and query.device.type == "cpu":
            attended = _attention_with_dropout(
                block_query, block_key, block_value, mask=mask, scaling=scaling, dropout=dropout
            )
        else:
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
class GroupedLayout:
    """Several blocks, of sentences of like length each, so that little in them is padding.

    Attributes:
        blocks: their layouts.
        tokens: (T,) int64, the tokens of the batch in the order of the blocks.
        places: (T,) int64, where each token of the batch is in that order.
        sizes: tokens of each block.
    """

    blocks: tuple[BlockLayout, ...]
    tokens: Tensor
    places: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, batch: PackedBatch) -> "GroupedLayout":
        """The layout of a batch on the CPU."""
        lengths, order = batch.bounds.diff().sort(descending=True)  # longest first
        longest = lengths.tolist()
        borders = [0]
        for place, length in enumerate(longest):
            if length < FULLNESS * longest[borders[-1]]:
                borders.append(place)
        sizes = [int(group.sum()) for group in lengths.tensor_split(borders[1:])]
        blocks = [
            BlockLayout.of_lengths(group, tokens, longest[first])
            for group, tokens, first in zip(lengths.tensor_split(borders[1:]), sizes, borders, strict=True)
        ]
        shifts = batch.bounds[:-1][order] - (lengths.cumsum(0) - lengths)  # (N,), from the new place to the old one
        tokens = torch.arange(sum(sizes)) + shifts.repeat_interleave(lengths)  # (T,)
        return cls(tuple(blocks), tokens, tokens.argsort(), tuple(sizes))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """See `Layout.attend`."""
        parts = (tensor.index_select(0, self.tokens).split(self.sizes) for tensor in (query, key, value))
        attended = [
            block.attend(*rows, scaling=scaling, dropout=dropout, window=window)
            for block, *rows in zip(self.blocks, *parts, strict=True)
        ]
        return torch.cat(attended).index_select(0, self.places)


def _attention_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, scaling: float | None, dropout: float
) -> Tensor:
    """What `scaled_dot_product_attention` does on the CPU, which has no kernel with dropout, but for the latter."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scale) @ key.transpose(2, 3)  # (N, A, L, L)
    return dropped(scores.masked_fill(~mask, -torch.inf).softmax(-1), dropout) @ value


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
    device = batch.input_ids.device
    if runs_flash(device, dtype, head_size):
        return FlashLayout(batch.bounds, batch.max_seqlen, dtype)
    if device.type == "cpu" and batch.size * batch.max_seqlen**2 > SMALL_BLOCK:
        return GroupedLayout.of(batch)
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
