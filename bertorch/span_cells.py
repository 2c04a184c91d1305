"""The cells (first word, last word) of packed sentences, and the blocks in which their scores are computed.

A cell (i, j), i ≤ j, is the span from word i to word j of a sentence. Its score for each of C types is

    s_c(i, j) = q_i · k_j + a_c(i) + b_c(j)

The words come packed, a row (q, k, a, b) each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

CELLS_AT_ONCE = 2**22  # elements of one temporary tensor; more only where one type of one sentence has more
PADDING_OF_BLOCK = 2**16  # cells of padding that cost about as much time as one more block does


def at_once(elements: int) -> int:
    """How many things of this many elements are computed at the same time."""
    return max(CELLS_AT_ONCE // elements, 1)


class Cells(NamedTuple):
    """Cells of sentences, all int64."""

    sentences: Tensor  # (P,) N for none
    first: Tensor  # (P,) word of the sentence
    last: Tensor  # (P,) word of the sentence, inclusive


class WordScores(NamedTuple):
    """What scores a cell, of words of sentences; `scores` below has the products q · k."""

    queries: Tensor  # (…, d)
    keys: Tensor  # (…, d)
    starts: Tensor  # (…, C) of the first word, a
    ends: Tensor  # (…, C) of the last word, b

    @classmethod
    def of(cls, rows: Tensor, num_types: int) -> Self:
        """Views of the rows (…, 2d + 2C)."""
        head_size = rows.shape[-1] // 2 - num_types
        return cls(*rows.split([head_size, head_size, num_types, num_types], dim=-1))


@dataclass(frozen=True)
class CellBlock:
    """n sentences in L slots each."""

    rank: int  # of its first sentence in the order of the layout
    words: Tensor  # (n, L) int64 index of each slot's word, K of none
    is_word: Tensor  # (n, L) bool

    def gather(self, rows: Tensor) -> Tensor:
        """(K, D) → (n, L, D); slots without a word get any word."""
        words = self.words.clamp(max=len(rows) - 1)
        return rows.index_select(0, words.flatten()).view(*words.shape, -1)

    def scatter(self, block: Tensor, rows: Tensor) -> None:
        """Copy (n, L, D) to the rows (K+1, D) of its words; the last row takes what belongs to none."""
        rows.index_copy_(0, self.words.flatten(), block.flatten(0, 1))

    def scores(self, word_scores: WordScores, ranked: Cells) -> Tensor:
        """(n, L, L) products q_i · k_j, -inf where no cell is and at those of `ranked`; not differentiable.

        `ranked` names sentences by their rank.
        """
        sentences, length = self.words.shape
        buffer = word_scores.queries.new_empty(sentences * length**2 + 1)  # the last for cells of other blocks
        scores = buffer[:-1].view(sentences, length, length)
        torch.bmm(word_scores.queries, word_scores.keys.mT, out=scores)
        self._keep_cells(scores, first=0)
        sentence = ranked.sentences - self.rank  # (P,)
        slots = (sentence * length + ranked.first) * length + ranked.last  # (P,)
        is_here = (sentence >= 0) & (sentence < sentences)
        buffer.index_fill_(0, slots.where(is_here, len(buffer) - 1), -torch.inf)
        return scores

    def score_bands(self, word_scores: WordScores) -> Iterator[tuple[int, Tensor]]:
        """The first of l words, and (n, l, L) products q_i · k_j from them, -inf where no cell is; band by band.

        Of the sentences of a block in a grouped layout there is one band, unless a sentence has more cells than
        `CELLS_AT_ONCE`.
        """
        step = at_once(self.words.numel())
        for first in range(0, self.words.shape[1], step):
            scores = word_scores.queries[:, first : first + step] @ word_scores.keys.mT  # (n, l, L)
            self._keep_cells(scores, first)
            yield first, scores

    def _keep_cells(self, scores: Tensor, first: int) -> None:
        """-inf in the rows (n, l, L) of the words from `first` where no cell is."""
        upper = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu_(first)  # (l, L)
        scores.masked_fill_(~(upper & self.is_word[:, None]), -torch.inf)


@dataclass(frozen=True)
class CellLayout:
    """Blocks that hold all words of N sentences."""

    blocks: tuple[CellBlock, ...]
    order: Tensor  # (N,) int64, the sentences in the order of the blocks
    ranks: Tensor  # (N+1,) int64, where each sentence is in that order; N for none
    is_static: bool  # shapes and operations do not depend on values, and nothing waits for the device

    @classmethod
    def of(cls, cu_words: Tensor, words: int, max_words: int) -> Self:
        """The layout for training: groups on the CPU, static elsewhere.

        Args:
            cu_words: (N+1,) offsets of the sentences.
            words: K, filler included.
            max_words: a bound on the words of a sentence.
        """
        if cu_words.device.type == "cpu":
            return cls.grouped(cu_words, words)
        return cls.static(cu_words, words, max_words)

    @classmethod
    def grouped(cls, cu_words: Tensor, words: int) -> Self:
        """Blocks of sentences of similar length, so that little in them is padding; synchronises on a GPU."""
        lengths, order = cu_words.long().diff().sort(descending=True, stable=True)  # (N,), longest first
        borders: list[int] = []  # the first sentence of each block
        longest: list[int] = []  # of each block
        padding = cells = 0  # of the last block with the next sentence
        for index, length in enumerate(lengths.tolist()):
            if longest:
                padding += longest[-1] ** 2 - length**2
                cells += longest[-1] ** 2
            if not longest or padding > PADDING_OF_BLOCK or cells > CELLS_AT_ONCE:
                borders.append(index)
                longest.append(max(length, 1))
                padding, cells = 0, longest[-1] ** 2
        return cls._of_blocks(cu_words, words, order, [*borders, len(order)], longest, is_static=False)

    @classmethod
    def static(cls, cu_words: Tensor, words: int, max_words: int) -> Self:
        """Blocks of as many sentences as `CELLS_AT_ONCE` allows, in their order and with `max_words` slots each."""
        size, length = len(cu_words) - 1, max(max_words, 1)
        order = torch.arange(size, device=cu_words.device)
        borders = [*range(0, size, at_once(length**2)), size]
        return cls._of_blocks(cu_words, words, order, borders, [length] * len(borders), is_static=True)

    @classmethod
    def _of_blocks(
        cls, cu_words: Tensor, words: int, order: Tensor, borders: list[int], longest: list[int], *, is_static: bool
    ) -> Self:
        offsets = cu_words.long()
        first, lengths = (tensor.index_select(0, order) for tensor in (offsets[:-1], offsets.diff()))  # (N,), (N,)
        blocks = []
        for start, end, length in zip(borders, borders[1:], longest, strict=False):
            positions = torch.arange(length, device=offsets.device)  # (L,)
            is_word = positions < lengths[start:end, None]  # (n, L)
            indices = first[start:end, None] + positions  # (n, L)
            blocks.append(CellBlock(start, indices.where(is_word, words), is_word))
        ranks = torch.empty(len(order) + 1, dtype=torch.int64, device=order.device)
        ranks.index_copy_(0, order, torch.arange(len(order), device=order.device))
        ranks[-1].fill_(len(order))
        return cls(tuple(blocks), order, ranks, is_static)
