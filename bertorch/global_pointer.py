"""EfficientGlobalPointer: entities as cells (first word, last word) of a sentence, also nested ones.

    [q; k] = W h                                               of each word, q and k of size d
    s_c(i, j) = q_i · k_j / √d + ½ (a_c(i) + b_c(j)),  i ≤ j   for each type c

where q · k is of q and k with rotary positions (Su et al., RoFormer, 2021), and a and b are linear in [q; k] without
them. An entity of type c is a cell with s_c > 0. The loss of a sentence and type is ZLPR (Su et al., ZLPR: A Novel Loss
for Multi-label Classification, 2022),

    log(1 + sum of exp(s) over cells that are no entity) + log(1 + sum of exp(-s) over entities).

The first sum is that of `bertorch.span_sums` over the cells that are an entity of no type, and to it, for each type,
those that are entities of other types only, which are few.

References:
    Su et al., Global Pointer: Novel Efficient Span-based Approach for Named Entity Recognition, 2022.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertorch.precision import at_least_fp32
from bertorch.span_cells import CellBlock, CellLayout, Cells, WordScores, at_once
from bertorch.span_sums import log_sums

_ROTARY_BASE = 10_000.0
_FIRST_SCORE = -7.0  # about -log of the number of cells of a sentence of 46 words


class GlobalPointer(nn.Module):
    """EfficientGlobalPointer over C types.

    What the loss of a batch takes is O(L² + C·L + C·P) memory for a sentence of L words with P entities, never C·L².
    `loss` never waits for the device, and on CUDA its shapes do not depend on values; `decode` waits, and takes O(L)
    memory of a sentence with more than `CELLS_AT_ONCE` cells. From q · k on, everything is computed in fp32 at least,
    also under autocast.

    A fresh head scores cells with about -7. From scores of about 0, half of all cells would be entities, hundreds in a
    sentence for each type, and all that the first steps learn would be that they are none. At minus the log of the
    number of a sentence's cells, the sum over them is about 1, as large as the constant beside it.

    Shared arguments of the methods:
        outputs: (K, 2d + 2C), what `forward` gives for the words of N sentences, end to end, perhaps with filler after.
        cu_words: (N+1,) int32 or int64: sentence i is words `cu_words[i] : cu_words[i+1]`.
        max_words: L, the words of the longest sentence, or more.

    Args:
        hidden_size: H.
        num_types: C.
        head_size: d, even.

    Raises:
        ValueError: `head_size` is odd or not positive.
    """

    def __init__(self, hidden_size: int, num_types: int, head_size: int = 64) -> None:
        super().__init__()
        if head_size < 2 or head_size % 2:
            raise ValueError(f"expected an even head_size from 2, as rotary positions turn pairs, got {head_size}")
        self.num_types, self.head_size = num_types, head_size
        self.queries_keys = nn.Linear(hidden_size, 2 * head_size)
        self.bounds = nn.Linear(2 * head_size, 2 * num_types)  # a and b
        nn.init.constant_(self.bounds.bias, _FIRST_SCORE)

    def forward(self, states: Tensor) -> Tensor:
        """(K, H) states of words → (K, 2d + 2C) q, k, a/2 and b/2, fp32 at least."""
        queries_keys = at_least_fp32(self.queries_keys(states))  # (K, 2d)
        with torch.autocast(states.device.type, enabled=False):  # bf16 has steps of 1/32 at the first scores
            halves = self.bounds(queries_keys) / 2  # (K, 2C)
        return torch.cat([queries_keys, halves], dim=1)

    def loss(self, outputs: Tensor, spans: Tensor, cu_words: Tensor, word_bounds: Tensor, max_words: int) -> Tensor:
        """The mean of ZLPR over types, summed over the sentences; differentiable once.

        Args:
            outputs: see the class.
            spans: (P, 4) int64, the entities: sentence, first word, end (exclusive), type; in any order, none twice.
                Rows of sentence N are filler and do not count.
            cu_words: see the class.
            word_bounds: `cu_words`, with K at its end if there are words of filler, as if they were a sentence.
            max_words: see the class; here also of the filler.
        """
        if len(outputs) == 0 or len(cu_words) == 1:
            return outputs.sum() * 0  # with a gradient
        with torch.autocast(outputs.device.type, enabled=False):
            rows = self._rotated(at_least_fp32(outputs), word_bounds, max_words)  # (K, 2d + 2C)
            gold = _Gold.of(spans, cu_words.long(), max_words, self.num_types)
            layout = CellLayout.of(cu_words, len(rows), max_words)
            others = log_sums(rows, self.num_types, gold.cells, layout)  # (N, C)
            # For each type first the cells that are no entity of it, then its entities.
            largest = F.pad(others, (0, self.num_types), value=-torch.inf)  # (N, 2C)
            return gold.log1p_sum_exp(largest, gold.values(rows)).sum() / self.num_types

    @torch.no_grad()
    def decode(self, outputs: Tensor, cu_words: Tensor, max_words: int, *, nested: bool) -> tuple[Tensor, Tensor]:
        """The M entities.

        Args:
            outputs: see the class.
            cu_words: see the class.
            max_words: see the class.
            nested: whether all cells with s > 0 are entities. Else each sentence gives its best cell, then the best
                that does not overlap it, and so on, over all types; of equal ones that with the smallest first word,
                then end, then type.

        Returns:
            extents (M, 4) int64: sentence, first word, end (exclusive), type, in ascending order.
            scores (M,): sigmoid of s.
        """
        found, scores = self._positive(outputs, cu_words, max_words)  # (M, 4), (M,)
        extents = found.cpu().numpy()
        kept = np.arange(len(extents)) if nested else _without_overlaps(extents, scores.cpu().numpy())
        kept = kept[np.lexsort(extents[kept].T[::-1])]
        order = torch.from_numpy(kept).to(found.device)  # (M,) from all that were found
        return found[order], scores[order].sigmoid()

    def _positive(self, outputs: Tensor, cu_words: Tensor, max_words: int) -> tuple[Tensor, Tensor]:
        """All cells with s > 0, (M, 4) as extents, and their s (M,)."""
        outputs = at_least_fp32(outputs[: int(cu_words[-1])])
        extents, scores = [cu_words.new_empty(0, 4, dtype=torch.int64)], [outputs.new_empty(0)]
        if len(outputs):
            with torch.autocast(outputs.device.type, enabled=False):
                rows = self._rotated(outputs, cu_words, max_words)  # (K, 2d + 2C)
                layout = CellLayout.grouped(cu_words, len(rows))
                for block in layout.blocks:
                    for sentences, *others, values in _positive_cells(block, rows, self.num_types):
                        extents.append(torch.stack([layout.order[block.rank + sentences], *others], dim=1))
                        scores.append(values)
        return torch.cat(extents), torch.cat(scores)

    def _rotated(self, outputs: Tensor, word_bounds: Tensor, max_words: int) -> Tensor:
        """The outputs with q and k at their positions in the sentence, both divided by the fourth root of d."""
        size, device = self.head_size, outputs.device
        # Pair m of q and of k, as a complex number, is turned by position · base^(-2m/d): of two words' positions, only
        # the distance is left in their product.
        frequencies = _ROTARY_BASE ** -torch.arange(0, 1, 2 / size, dtype=torch.float64, device=device)  # (d/2,)
        angles = torch.arange(max(max_words, 1), device=device)[:, None] * frequencies  # (L, d/2)
        turns = torch.polar(torch.full_like(angles, size**-0.25), angles)  # (L, d/2) complex
        offsets, indices = word_bounds.long(), torch.arange(len(outputs), device=device)  # (N+1,), (K,)
        starts = offsets[:-1].repeat_interleave(offsets.diff(), output_size=len(outputs))  # (K,)
        turns = turns.to(outputs.dtype.to_complex()).index_select(0, indices - starts)  # (K, d/2)
        pairs = torch.view_as_complex(outputs[:, : 2 * size].reshape(-1, 2, size // 2, 2))  # (K, 2, d/2)
        rotated = torch.view_as_real(pairs * turns[:, None]).flatten(1)  # (K, 2d)
        return torch.cat([rotated, outputs[:, 2 * size :]], dim=1)


class _Gold(NamedTuple):
    """The entities of a batch in P rows, of which some may stand for nothing; sorted by sentence."""

    cells: Cells  # (P,) each
    words: Tensor  # (P, 2) int64 indices of first and last word
    counts: Tensor  # (P,) bool: the first row of its cell, and no filler
    is_entity: Tensor  # (P, C) bool: the types of its cell, in the first row of each cell
    offsets: Tensor  # (N+1,) int64: the rows of sentence i are `offsets[i] : offsets[i+1]`

    @classmethod
    def of(cls, spans: Tensor, cu_words: Tensor, max_words: int, num_types: int) -> Self:
        """Of spans (P, 4) as `GlobalPointer.loss` takes them, with shapes that depend on nothing else."""
        size, device = len(cu_words) - 1, spans.device
        real = spans[:, 0] < size  # (P,)
        sentences, first, ends, _ = spans.unbind(1)  # (P,) each
        keys = (sentences * (max_words + 1) + first) * (max_words + 1) + ends  # (P,), of a cell
        keys, order = keys.where(real, torch.iinfo(torch.int64).max).sort()  # filler last
        real = real.index_select(0, order)
        sentences, first, ends, types = (spans.index_select(0, order) * real[:, None]).unbind(1)
        last = (ends - 1).clamp(min=0)  # (P,)
        is_first = (F.pad(keys, (1, 0), value=-1).diff() != 0) | ~real  # (P,)
        indices = torch.arange(len(keys), device=device)  # (P,)
        first_rows = indices.where(is_first, 0).cummax(0).values  # (P,), the first row with the same cell
        is_entity = torch.zeros(len(keys), num_types, dtype=torch.bool, device=device)
        is_entity.index_put_((first_rows, types), torch.ones((), dtype=torch.bool, device=device))
        words = torch.stack([first, last], dim=1) + cu_words.index_select(0, sentences)[:, None]  # (P, 2)
        sentences = sentences.where(real, size)
        offsets = torch.searchsorted(sentences, torch.arange(size + 1, device=device))  # (N+1,)
        return cls(Cells(sentences, first, last), words, is_first & real, is_entity, offsets)

    def values(self, rows: Tensor) -> Tensor:
        """(P, 2C) what the loss has in its exponents for the cells: s where no entity, and -s where one; else -inf."""
        num_types = self.is_entity.shape[1]
        first, last = (WordScores.of(part, num_types) for part in F.embedding(self.words, rows).unbind(1))  # (P, …)
        products = (first.queries * last.keys).sum(dim=1, keepdim=True)  # (P, 1)
        scores = products + first.starts + last.ends  # (P, C)
        is_other, is_entity = self.counts[:, None] & ~self.is_entity, self.counts[:, None] & self.is_entity  # (P, C)
        return torch.cat([scores.where(is_other, -torch.inf), (-scores).where(is_entity, -torch.inf)], dim=1)

    def log1p_sum_exp(self, logs: Tensor, values: Tensor) -> Tensor:
        """(N, D), (P, D) → (N, D) log(1 + exp(logs) + the sum of exp(values) over the rows of a sentence)."""
        peaks = torch.segment_reduce(values.detach(), "max", offsets=self.offsets, unsafe=True, initial=0)  # (N, D)
        peaks = peaks.maximum(logs.detach())  # (N, D), from 0
        sentences = self.cells.sentences.clamp(max=len(peaks) - 1)  # (P,)
        exponentials = (values - peaks.index_select(0, sentences)).exp()  # (P, D)
        sums = torch.segment_reduce(exponentials, "sum", offsets=self.offsets, unsafe=True, initial=0)  # (N, D)
        return ((-peaks).exp() + (logs - peaks).exp() + sums).log() + peaks


def _positive_cells(block: CellBlock, rows: Tensor, num_types: int) -> Iterator[tuple[Tensor, ...]]:
    """The cells of a block with s > 0, some at a time: sentence of the block, first word, end, type, s; (m,) each."""
    words = WordScores.of(block.gather(rows), num_types)  # (n, L, …)
    # No cell of a row is above the row's largest q · k with the largest b of all words, also after rounding.
    largest_ends = words.ends.masked_fill(~block.is_word[:, :, None], -torch.inf).amax(dim=1)  # (n, C)
    for band, scores in block.score_bands(words):  # (n, l, L)
        starts = words.starts[:, band : band + scores.shape[1]]  # (n, l, C)
        bounds = scores.amax(dim=2)[:, :, None] + starts + largest_ends[:, None]  # (n, l, C)
        hopeful = (bounds > 0).nonzero()  # (rows of cells, 3)
        for part in hopeful.split(at_once(scores.shape[2])):
            sentences, first, types = part.unbind(1)  # (r,) each
            ends = words.ends.mT[sentences, types]  # (r, L)
            cells = scores[sentences, first] + starts[sentences, first, types][:, None] + ends  # (r, L)
            row, last = (cells > 0).nonzero(as_tuple=True)  # (m,) each
            yield sentences[row], first[row] + band, last + 1, types[row], cells[row, last]


def _without_overlaps(extents: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Indices of the extents (M, 4) that are left when the best of a sentence (M,) goes first, and so on."""
    sentence, start, end, kind = extents.T  # (M,) each
    rest = np.lexsort((kind, end, start, -scores, sentence))  # (M,), of each sentence the best first
    kept = [rest[:0]]
    while len(rest):  # takes the best of all sentences at once
        _, best, of_sentence = np.unique(sentence[rest], return_index=True, return_inverse=True)
        kept.append(rest[best])
        winners = rest[best][of_sentence]  # (M,) the best of the same sentence
        rest = rest[(start[rest] >= end[winners]) | (end[rest] <= start[winners])]
    return np.concatenate(kept)
