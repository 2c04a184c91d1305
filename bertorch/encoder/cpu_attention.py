"""Attention on the CPU: blocks of sentences of similar length, laid out for their products from the start."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder.attention import BlockLayout, Layout
from bertorch.encoder.cpu import DropoutRate

SMALL_BLOCK = 2**15  # a block of no more attention scores is not split into blocks of similar lengths
_FULLNESS = 0.75  # the least share of tokens in a row of these blocks


class _Rows(NamedTuple):
    """Where rows (D,) of a packed tensor (T, A, D) go in all blocks (N·A, L, D), one after the other, and back."""

    of_blocks: Tensor  # (R,) int64, the row of (T·A, D) for each of the blocks'; the sentence's first one for padding
    of_packed: Tensor  # (T·A,) int64, the row of the blocks for each of (T·A, D)
    shapes: Sequence[tuple[int, int]]  # N·A, L of each block

    @classmethod
    def of(cls, blocks: Sequence[BlockLayout], order: Tensor, heads: int) -> Self:
        """Those of A heads; `order` (T,) has the tokens of the batch as they stand in the blocks."""
        shapes = [(block.sentences * heads, block.length) for block in blocks]
        starts = accumulate((size * length for size, length in shapes[:-1]), initial=0)
        in_order = (order[:, None] * heads + torch.arange(heads)).split([len(block.slots) for block in blocks])
        of_tokens, firsts = [], []
        for start, block, packed in zip(starts, blocks, in_order, strict=True):  # (t, A) rows of its t tokens
            sentences, positions = block.slots // block.length, block.slots % block.length  # (t,)
            sequences = sentences[:, None] * heads + torch.arange(heads)  # (t, A), of the block's N·A
            of_tokens.append(start + sequences * block.length + positions[:, None])  # (t, A)
            first = torch.zeros(block.sentences * heads, dtype=torch.int64)  # (N·A,)
            first[sequences[positions == 0]] = packed[positions == 0]
            firsts.append(first.repeat_interleave(block.length))  # (N·A·L,)
        of_packed = torch.empty(len(order), heads, dtype=torch.int64)  # (T, A)
        of_packed[order] = torch.cat(of_tokens)
        of_blocks = torch.cat(firsts)  # (R,)
        of_blocks[of_packed.flatten()] = torch.arange(of_packed.numel())
        return cls(of_blocks, of_packed.flatten(), shapes)

    def pad(self, packed: Tensor) -> Tensor:
        """(T, A, D) → (R, D), where no token is the first one of the sentence, which is finite if the sentence is."""
        return packed.reshape(-1, packed.shape[-1]).index_select(0, self.of_blocks)

    def pad_with_zeros(self, packed: Tensor) -> Tensor:
        """(T, A, D) → (R, D), zero where no token is."""
        rows = packed.new_zeros(len(self.of_blocks), packed.shape[-1])
        return rows.index_copy_(0, self.of_packed, packed.reshape(-1, packed.shape[-1]))

    def unpad(self, rows: Tensor, heads: int) -> Tensor:
        """(R, D) → (T, A, D)."""
        return rows.index_select(0, self.of_packed).unflatten(0, (-1, heads))

    def blocks(self, rows: Tensor) -> list[Tensor]:
        """(R, D) → a view (N·A, L, D) of each block."""
        parts = rows.split([size * length for size, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


class _Pad(torch.autograd.Function):
    """`_Rows.pad`; the gradient of `index_select` would add row by row."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, rows: _Rows) -> Tensor:
        ctx.rows, ctx.heads = rows, packed.shape[1]
        return rows.pad(packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.rows.unpad(gradient, ctx.heads), None


class _Unpad(torch.autograd.Function):
    """`_Rows.unpad`."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, rows: _Rows, heads: int) -> Tensor:
        ctx.rows = rows
        return rows.unpad(padded, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rows.pad_with_zeros(gradient), None, None


class _Attention(NamedTuple):
    """What attention is computed with."""

    rows: _Rows
    biases: Sequence[Tensor | None]  # (N·A, L or 1, L) for each block: 0 where a query sees a key, -inf elsewhere
    scale: float  # on the scores
    rate: DropoutRate


class _DroppedAttention(torch.autograd.Function):
    """Attention within each sentence with dropout of its weights.

    PyTorch's fused kernel has no dropout on the CPU, and its fallback is slow. The same operations one by one under
    autograd copy the block for each product.
    """

    @staticmethod
    def forward(ctx: Any, how: _Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries, keys and values of one shape → (T, A, D)."""
        ctx.rows, ctx.scale, ctx.rate, ctx.heads = how.rows, how.scale, how.rate, query.shape[1]
        rows, rate = how.rows, how.rate
        padded = rows.pad(query * how.scale), rows.pad(key), rows.pad(value)  # (R, D) each
        attended = torch.empty_like(padded[0])  # (R, D)
        all_weights, all_draws = [], []
        for bias, q, k, v, out in zip(how.biases, *map(rows.blocks, (*padded, attended)), strict=True):  # (N·A, L, D)
            scores = q @ k.mT if bias is None else torch.baddbmm(bias, q, k.mT)  # (N·A, L, L)
            weights = scores.softmax(-1)  # (N·A, L, L)
            draws = rate.draws(weights.shape)
            torch.bmm(torch.mul(weights, rate.stays(draws, weights.dtype), out=scores), v, out=out)
            all_weights.append(weights)
            all_draws.append(draws)
        ctx.save_for_backward(*padded, *all_weights, *all_draws)
        return rows.unpad(attended, ctx.heads).mul_(rate.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients (T, A, D) of queries, keys and values."""
        rows: _Rows = ctx.rows
        rate: DropoutRate = ctx.rate
        query, key, value, *of_blocks = ctx.saved_tensors
        all_weights, all_draws = of_blocks[: len(rows.shapes)], of_blocks[len(rows.shapes) :]
        padded = rows.pad_with_zeros(gradient * rate.factor)  # (R, D)
        gradients = [torch.empty_like(padded) for _ in range(3)]  # (R, D) of queries, keys and values
        for weights, draws, grad, q, k, v, of_q, of_k, of_v in zip(
            all_weights, all_draws, *map(rows.blocks, (padded, query, key, value, *gradients)), strict=True
        ):
            stays = rate.stays(draws, weights.dtype)  # (N·A, L, L)
            of_weights = (grad @ v.mT).mul_(stays)  # (N·A, L, L)
            torch.bmm(stays.mul_(weights).mT, grad, out=of_v)
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)  # (N·A, L, L)
            torch.bmm(of_scores, k, out=of_q)
            torch.bmm(of_scores.mT, q, out=of_k)
        of_query, of_key, of_value = (rows.unpad(each, ctx.heads) for each in gradients)  # (T, A, D) each
        return None, of_query.mul_(ctx.scale), of_key, of_value


@dataclass(frozen=True)
class CPULayout(Layout):
    """Blocks of sentences of similar length each, so that little in them is padding; a small batch is one block."""

    blocks: tuple[BlockLayout, ...]
    order: Tensor  # (T,) int64, the tokens of the batch in the order of the blocks
    _rows: dict[int, _Rows] = field(default_factory=dict)  # for each number of heads A

    @classmethod
    def of(cls, batch: PackedBatch) -> Self:
        """The layout of a batch on the CPU, computed once and shared by all layers."""
        lengths, sentences = batch.bounds.diff().sort(descending=True)  # (N,), longest first
        longest = lengths.tolist()
        is_small = batch.size * batch.max_seqlen**2 <= SMALL_BLOCK
        borders = [0] if is_small else similar_lengths(longest)
        if len(borders) == 1:  # in the order of the batch, as attention to a block alone has it
            return cls((BlockLayout.of(batch),), torch.arange(len(batch.input_ids)))
        groups = lengths.tensor_split(borders[1:])
        blocks = [
            BlockLayout.of_lengths(group, int(group.sum()), longest[first])
            for group, first in zip(groups, borders, strict=True)
        ]
        shifts = batch.bounds[:-1][sentences] - (lengths.cumsum(0) - lengths)  # (N,), from the new index to the old
        return cls(tuple(blocks), torch.arange(len(batch.input_ids)) + shifts.repeat_interleave(lengths))

    @override
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None
    ) -> Tensor:
        if not dropout and len(self.blocks) == 1:
            return self.blocks[0].attend(query, key, value, scaling=scaling, dropout=dropout, window=window)
        heads, size = query.shape[1:]
        if heads > key.shape[1]:
            groups = heads // key.shape[1]
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))  # (T, A, D)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        rows = self._rows_of(heads)
        seen = [block.seen(window) for block in self.blocks]  # (N or 1, 1, L or 1, L) bool each
        if dropout:
            biases = [
                _bias(mask, (len(block.mask), heads), query.dtype)
                for mask, block in zip(seen, self.blocks, strict=True)
            ]
            how = _Attention(rows, biases, size**-0.5 if scaling is None else scaling, DropoutRate(dropout))
            return _DroppedAttention.apply(how, query, key, value)
        padded = (_Pad.apply(tensor, rows) for tensor in (query, key, value))  # (R, D) each
        attended = []
        for mask, *states in zip(seen, *map(rows.blocks, padded), strict=True):
            q, k, v = (state.unflatten(0, (-1, heads)) for state in states)  # (N, A, L, D) each
            attended.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling).flatten(0, 2))
        return _Unpad.apply(torch.cat(attended), rows, heads)

    def _rows_of(self, heads: int) -> _Rows:
        if heads not in self._rows:
            self._rows[heads] = _Rows.of(self.blocks, self.order, heads)
        return self._rows[heads]


def _bias(seen: Tensor | None, shape: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
    """(N or 1, 1, L or 1, L) bool → (N·A, L or 1, L) to add to the scores; `shape` is N, A."""
    if seen is None:
        return None
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)  # (N or 1, 1, L or 1, L)
    return bias.expand(*shape, -1, -1).flatten(0, 1)  # (N·A, L or 1, L)


def similar_lengths(lengths: Sequence[int]) -> list[int]:
    """Where to cut sentences of falling lengths into blocks of similar ones: the first sentence of each block."""
    borders = [0]
    for index, length in enumerate(lengths):
        if length < _FULLNESS * lengths[borders[-1]]:
            borders.append(index)
    return borders
