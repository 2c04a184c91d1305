"""Entities as spans of words, and how tags spell them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bertorch.data.scratch import GrowingLists
from bertorch.data.tags import BEGIN, END, INSIDE, SINGLE, TagSet

_BLOCK = 1024  # sentences whose tags become spans at once


class Span(NamedTuple):
    """An entity of a sentence: `start : end` are its tokens, `score` its probability."""

    type: str
    start: int
    end: int
    score: float


class SpanBatch(NamedTuple):
    """The M entities of a batch, in the order of their first words; they may be of one sentence and overlap."""

    extents: Tensor  # (M, 4) int64: example of the batch, first word in the example, end (exclusive), type
    scores: Tensor  # (M,) probabilities


class SpanFinder(nn.Module):
    """Finds the entities that tags spell.

    An entity begins with B- or S- and goes on as long as the scheme lets the next tag continue it with the same type.
    In bioes it also has to be closed by E- or S-. Whatever else stands there, such as I- without B-, is no entity.
    seqeval does not know bios, which is read as bio with B- in place of S-: I- after S- continues it, and a B- that
    nothing continues is an entity.

    References:
        seqeval, `classification_report(mode="strict", scheme=IOB2 or IOBES)`.
    """

    begins: Tensor  # (C,) bool
    closes: Tensor  # (C,) bool
    continues: Tensor  # (C, C) bool
    type_ids: Tensor  # (C,) int64

    def __init__(self, tags: TagSet) -> None:
        super().__init__()
        codes, type_ids, continues = map(torch.from_numpy, (tags.codes, tags.type_ids, tags.continues))
        is_closed = tags.scheme.is_closed  # else an entity ends wherever nothing continues it
        if not is_closed:
            same_type = type_ids[:, None] == type_ids  # (C, C)
            continues = continues | (same_type & (codes == SINGLE)[:, None] & (codes == INSIDE))
        self.register_buffer("begins", (codes == BEGIN) | (codes == SINGLE), persistent=False)
        self.register_buffer("closes", (codes == END) | (codes == SINGLE) | (not is_closed), persistent=False)
        self.register_buffer("continues", continues, persistent=False)
        self.register_buffer("type_ids", type_ids, persistent=False)

    def forward(self, tags: Tensor, cu_words: Tensor) -> Tensor:
        """Find the M entities of tags, (K,) int64; synchronises on a GPU.

        `cu_words` is (examples+1,) int32: example i has words `cu_words[i] : cu_words[i+1]`. The result is (M, 4)
        int64, see `SpanBatch.extents`.
        """
        words, device = len(tags), tags.device
        offsets = cu_words.long()
        continued = torch.zeros(words + 1, dtype=torch.bool, device=device)  # whether a word belongs to the one before
        continued[1:words] = self.continues[tags[:-1], tags[1:]]
        continued[offsets[:-1]] = False
        indices = torch.arange(words + 1, device=device)
        stops = torch.where(continued, words, indices)  # (K+1,)
        ends = stops.flip(0).cummin(0).values.flip(0)[1:]  # (K,), the first word after each that continues nothing
        starts = (self.begins[tags] & self.closes[tags[ends - 1]]).nonzero().squeeze(1)  # (M,)
        examples = torch.repeat_interleave(offsets.diff(), output_size=words)[starts]  # (M,)
        first = offsets[examples]  # (M,)
        return torch.stack([examples, starts - first, ends[starts] - first, self.type_ids[tags[starts]]], dim=1)


def any_overlap(spans: np.ndarray, sentences: np.ndarray) -> bool:
    """Whether two spans of a sentence overlap: M of them, (M, 3), sorted in each of their `sentences`, (M,)."""
    # Where any two overlap, so do two that follow each other.
    return bool(((spans[1:, 0] < spans[:-1, 1]) & (sentences[1:] == sentences[:-1])).any())


class SpanLists:
    """The entities of sentences as spans; those of tags are found for many sentences at once."""

    def __init__(self, tags: TagSet) -> None:
        self._find = SpanFinder(tags)
        self._spans = GrowingLists((3,))
        self._waiting: list[np.ndarray] = []

    def append(self, labels: np.ndarray) -> None:
        """Take the next sentence: tags (tokens,), or spans (entities, 3)."""
        self._waiting.append(labels)
        if len(self._waiting) == _BLOCK:
            self._write()

    def finish(self) -> Sequence[np.ndarray]:
        """Of each sentence (entities, 3); nothing can be appended any more."""
        self._write()
        return self._spans.finish()

    def _write(self) -> None:
        tagged = [labels for labels in self._waiting if labels.ndim == 1]
        cu_words = torch.tensor([0, *map(len, tagged)]).cumsum(0)  # (sentences+1,)
        extents = self._find(torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *tagged])), cu_words).numpy()
        # The first span of each sentence but the first, (sentences-1,).
        bounds = np.searchsorted(extents[:, 0], np.arange(1, len(tagged)))
        found = iter(np.split(extents[:, 1:], bounds))
        for labels in self._waiting:
            self._spans.append(next(found) if labels.ndim == 1 else labels)
        self._waiting = []
