"""Entities as spans of words, and how tags spell them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bertorch.data.tags import BEGIN, END, INSIDE, SINGLE, TagSet


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
        is_closed = END in tags.scheme.closing  # else an entity ends wherever nothing continues it
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
