"""Sums of exponentials over all cells of sentences, without ever holding the cells of all types.

As the score of a cell is q_i · k_j + a_c(i) + b_c(j), its exponential is a product of three, and the sum over cells
takes one matrix of L × L for a sentence, and products of it with matrices of L × C.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertorch.span_cells import CellBlock, CellLayout, Cells, WordScores, at_once

# A sum of scaled exponentials that is smaller than this multiple of the smallest normal number is not trusted: each
# term that underflows takes at most that number from it, and a sentence has no more than some 10⁷ cells.
_LEAST_SUM = 1e13


def log_sums(rows: Tensor, num_types: int, excluded: Cells, layout: CellLayout) -> Tensor:
    """(N, C) log of the sum of exp(s_c) over the cells of each sentence but some, -inf without any.

    It is differentiable once, and computed in the dtype of the rows, also under autocast. A sentence takes O(L² + C·L)
    memory, but for `CELLS_AT_ONCE` elements. In a layout that is not static, the sums are those of products; a sentence
    and type for which they underflow is summed cell by cell. In a static layout, which cannot tell, all are.

    Args:
        rows: (K, 2d + 2C), of each word q, k, a and b.
        num_types: C.
        excluded: the cells that do not count, for no type; they may repeat.
        layout: of the words.
    """
    ranked = excluded._replace(sentences=layout.ranks.index_select(0, excluded.sentences))
    return _LogSums.apply(rows, num_types, ranked, layout)


class _LogSums(torch.autograd.Function):
    """log Z_c = log sum exp(s_c), whose gradient is exp(s_c) / Z_c at each cell."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, num_types: int, ranked: Cells, layout: CellLayout) -> Tensor:
        sums: list[Tensor] = []  # (n, C) of each block
        saved: list[Tensor] = []
        with torch.autocast(rows.device.type, enabled=False):
            for block in layout.blocks:
                part = _Part.of(block, rows, num_types, ranked)
                if layout.is_static:
                    sums.append(_dense_log_sums(*part.cells()))
                    continue
                products = _Products.of(*part.cells())
                sums.append(_log_sums_of_products(products, part))
                saved.extend(products if ctx.needs_input_grad[0] else ())
        log_z = torch.cat(sums)  # (N, C) in the order of the blocks
        ctx.save_for_backward(rows, log_z, *ranked, *saved)
        ctx.num_types, ctx.layout = num_types, layout
        return log_z.index_select(0, layout.ranks[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, log_z, *rest = ctx.saved_tensors
        layout: CellLayout = ctx.layout
        ranked, saved = Cells(*rest[:3]), iter(rest[3:])
        gradient = gradient.index_select(0, layout.order)  # (N, C)
        of_rows = rows.new_zeros(len(rows) + 1, rows.shape[1])  # (K+1, 2d + 2C)
        with torch.autocast(rows.device.type, enabled=False):
            for block in layout.blocks:
                part = _Part.of(block, rows, ctx.num_types, ranked)
                given = [tensor[block.rank : block.rank + len(block.words)] for tensor in (log_z, gradient)]  # (n, C)
                if layout.is_static:
                    of_scores, *of_bounds = _dense_gradients(*part.cells(), *given)
                else:
                    products = _Products(*(next(saved) for _ in _Products._fields))
                    of_scores, *of_bounds = _gradients_of_products(products, part, *given)
                of_words = (of_scores @ part.words.keys, of_scores.mT @ part.words.queries, *of_bounds)  # (n, L, …)
                for values, columns in zip(of_words, WordScores.of(of_rows, ctx.num_types), strict=True):
                    block.scatter(values, columns)
        return of_rows[:-1], None, None, None


class _Part(NamedTuple):
    """The words of a block."""

    block: CellBlock
    words: WordScores  # (n, L, …)
    ranked: Cells  # excluded ones of all blocks, with the ranks of their sentences

    @classmethod
    def of(cls, block: CellBlock, rows: Tensor, num_types: int, ranked: Cells) -> Self:
        return cls(block, WordScores.of(block.gather(rows), num_types), ranked)

    def cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """What scores the cells: q · k (n, L, L), -inf at those that do not count, a (n, L, C) and b (n, L, C)."""
        return self.block.scores(self.words, self.ranked), self.words.starts, self.words.ends


class _Products(NamedTuple):
    """Scaled exponentials: the factors are at most 1, and 1 in each row and column that has a cell."""

    cells: Tensor  # (n, L, L) of q_i · k_j
    starts: Tensor  # (n, L, C) of a_c(i)
    ends: Tensor  # (n, L, C) of b_c(j)
    rows: Tensor  # (n, L, C) sums over j of cells · ends
    sums: Tensor  # (n, C) sums over i of starts · rows
    scales: Tensor  # (n, C) what log(sums) lacks
    underflows: Tensor  # (n, C) bool: there are cells, but the sum may have lost some

    @classmethod
    def of(cls, scores: Tensor, starts: Tensor, ends: Tensor) -> Self:
        """Of scores (n, L, L), which are overwritten, starts (n, L, C) and ends (n, L, C)."""
        # What row i and column j are divided by multiplies exp(a(i)) and exp(b(j)).
        row_peaks = scores.amax(dim=2)  # (n, L)
        scores.sub_(_finite(row_peaks)[:, :, None])
        column_peaks = scores.amax(dim=1)  # (n, L)
        scores.sub_(_finite(column_peaks)[:, None]).exp_()
        starts, start_peaks = _scaled(starts, row_peaks)  # (n, L, C), (n, C)
        ends, end_peaks = _scaled(ends, column_peaks)  # (n, L, C), (n, C)
        rows = scores @ ends  # (n, L, C)
        sums = (starts * rows).sum(dim=1)  # (n, C)
        has_cells = row_peaks.amax(dim=1, keepdim=True) > -torch.inf  # (n, 1)
        return cls(scores, starts, ends, rows, sums, start_peaks + end_peaks, (sums < _least_sum(sums)) & has_cells)


def _scaled(values: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor]:
    """(n, L, C), (n, L) → exp(values + peaks - largest) (n, L, C), and the largest (n, C); 0 where no cell is."""
    logs = values + peaks[:, :, None]
    largest = _finite(logs.amax(dim=1))
    return logs.sub_(largest[:, None]).exp_(), largest


def _finite(values: Tensor) -> Tensor:
    """0 for -inf: what is subtracted where no cell is."""
    return values.masked_fill(values == -torch.inf, 0)


def _least_sum(sums: Tensor) -> float:
    return _LEAST_SUM * torch.finfo(sums.dtype).tiny


def _log_sums_of_products(products: _Products, part: _Part) -> Tensor:
    """(n, C) log Z."""
    log_z = products.sums.log() + products.scales
    for pairs, cells in _underflown(products, part):
        log_z[pairs] = _dense_log_sums(*cells).squeeze(1)
    return log_z


def _gradients_of_products(
    products: _Products, part: _Part, log_z: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scores (n, L, L), starts (n, L, C) and ends (n, L, C) from that of log Z (n, C)."""
    sums = products.sums
    weights = (gradient / sums).masked_fill(sums < _least_sum(sums), 0)  # (n, C), 0 also without cells
    starts = products.starts * weights[:, None]  # (n, L, C)
    of_scores = (starts @ products.ends.mT).mul_(products.cells)  # (n, L, L)
    of_starts, of_ends = starts * products.rows, products.ends * (products.cells.mT @ starts)  # (n, L, C) each
    for pairs, cells in _underflown(products, part):
        sentences, types = pairs
        of_part, *of_bounds = _dense_gradients(*cells, log_z[pairs][:, None], gradient[pairs][:, None])
        of_scores.index_add_(0, sentences, of_part)
        for values, of_pairs in zip((of_starts, of_ends), of_bounds, strict=True):
            values[sentences, :, types] = of_pairs.squeeze(2)  # (m, L)
    return of_scores, of_starts, of_ends


def _underflown(
    products: _Products, part: _Part
) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """Pairs of sentence and type whose products may have lost a cell, m of them at a time.

    Yields their indices (m,) and (m,), with scores (m, L, L), starts (m, L, 1) and ends (m, L, 1).
    """
    if not products.underflows.any():
        return
    scores, *bounds = part.cells()  # anew: the products have overwritten the scores
    pairs = products.underflows.nonzero()  # (pairs, 2)
    for sentences, types in (some.unbind(1) for some in pairs.split(at_once(scores[0].numel()))):
        starts, ends = (values[sentences, :, types][:, :, None] for values in bounds)
        yield (sentences, types), (scores.index_select(0, sentences), starts, ends)


def _dense_log_sums(scores: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """(n, L, L), (n, L, C), (n, L, C) → (n, C) log Z, a few types at a time."""
    parts = [_dense(scores, starts, ends, types).logsumexp(dim=(2, 3)) for types in _type_chunks(scores, starts)]
    return torch.cat(parts, dim=1)


def _dense_gradients(
    scores: Tensor, starts: Tensor, ends: Tensor, log_z: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scores (n, L, L), starts (n, L, C) and ends (n, L, C) from that of log Z (n, C)."""
    of_scores, of_starts, of_ends = torch.zeros_like(scores), torch.empty_like(starts), torch.empty_like(ends)
    log_z = _finite(log_z)
    for types in _type_chunks(scores, starts):
        probabilities = _dense(scores, starts, ends, types).sub_(log_z[:, types, None, None]).exp_()  # (n, c, L, L)
        weighted = probabilities.mul_(gradient[:, types, None, None])
        of_scores += weighted.sum(dim=1)
        of_starts[:, :, types] = weighted.sum(dim=3).mT
        of_ends[:, :, types] = weighted.sum(dim=2).mT
    return of_scores, of_starts, of_ends


def _type_chunks(scores: Tensor, starts: Tensor) -> Iterator[slice]:
    size = at_once(scores.numel())
    return (slice(first, first + size) for first in range(0, starts.shape[2], size))


def _dense(scores: Tensor, starts: Tensor, ends: Tensor, types: slice) -> Tensor:
    """(n, c, L, L) scores of the cells for some types."""
    by_type = scores[:, None] + starts[:, :, types].mT[:, :, :, None]
    return by_type.add_(ends[:, :, types].mT[:, :, None])
