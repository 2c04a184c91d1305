"""Sentences with entities as spans, which may be nested or overlap → packed batches.

Words, windows and batches are those of `bertorch.data.word_dataset`: the words of a sentence are one sequence, so an
entity that crosses windows is whole.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.dataset import Examples
from bertorch.data.scratch import joined_lists
from bertorch.data.several_files import named_files
from bertorch.data.spans import any_overlap
from bertorch.data.tagged_dataset import TaggedBatch, TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.data.tokens import end_to_end
from bertorch.data.word_dataset import WordDataset, Words

SPANS_MULTIPLE = 64  # of spans in a filled batch, times a power of two
_BLOCK = 2**12  # examples that are looked at together


@dataclass(frozen=True, kw_only=True)
class EntityBatch(TaggedBatch):
    """A packed batch of windows with the P entities of its examples; `labels` are how many each has, (examples,) int64.

    So the labels are as many as the examples, over which the loss is a mean.
    """

    # (P, 4) int64: example of the batch, first word in the example, end (exclusive), type; sorted. Rows of filler come
    # last: the number of examples, 0, 1, 0, an entity of the example that the words of filler are.
    spans: Tensor

    @override
    def filled(self, multiple: int) -> Self:
        size = SPANS_MULTIPLE
        while size <= len(self.spans):  # at least one row of filler; few sizes, as the shapes of words vary too
            size *= 2
        rows = self.spans.new_tensor([len(self.cu_words) - 1, 0, 1, 0]).expand(size - len(self.spans), 4)
        return replace(super().filled(multiple), labels=self.labels, spans=torch.cat([self.spans, rows]))

    @override
    def twice(self) -> Self:
        again = F.pad(self.spans[:, :1] + len(self.labels), (0, 3)) + F.pad(self.spans[:, 1:], (1, 0))  # (P, 4)
        return replace(super().twice(), spans=torch.cat([self.spans, again]))

    @property
    @override
    def twins(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device).roll(len(self.labels) // 2)


@dataclass(frozen=True)
class SpanDataset(WordDataset):
    """Tokenised sentences with entities."""

    spans: np.ndarray  # (P, 3) int64: first word in the sentence, end (exclusive), type; of each sentence sorted
    span_offsets: np.ndarray  # (N+1,) int64: example i has spans `span_offsets[i] : span_offsets[i+1]`

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, sentences: TaggedSentences, *, max_length: int) -> "SpanDataset":
        """Tokenise sentences, which have spans, and cut them into windows, see `Words.of`."""
        assert sentences.spans is not None
        words = Words.of(tokenizer, sentences.tokens, max_length=max_length, split=sentences.split)
        return cls(*words, *joined_lists(sentences.spans, (3,)))

    @cached_property
    def is_nested(self) -> bool:
        """Whether two entities of a sentence overlap."""
        return any(self._any_overlap(start) for start in range(0, len(self.spans), _BLOCK))

    def _any_overlap(self, start: int) -> bool:
        """Whether a span from `start` in the block overlaps with the one before it."""
        first = max(start - 1, 0)
        spans = self.spans[first : start + _BLOCK]
        sentences = np.searchsorted(self.span_offsets, np.arange(first, first + len(spans)), side="right")
        return any_overlap(spans, sentences)

    @cached_property
    def _rarity(self) -> np.ndarray:
        """(types,) int64, 0 for the type of the fewest entities."""
        counts = np.bincount(self.spans[:, 2])
        return np.argsort(np.argsort(counts, kind="stable"), kind="stable")

    @override
    def label_count(self, indices: np.ndarray) -> int:
        return len(indices)

    @override
    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """(examples,) int64, of each the type of its entities that is the rarest in all examples, from 1; 0 without.

        So `--folds` have each type alike.
        """
        rows, counts = self._spans_of(indices)
        labels = np.full(len(indices), len(self._rarity))  # (examples,), how rare
        np.minimum.at(labels, np.repeat(np.arange(len(indices)), counts), self._rarity[self.spans[rows, 2]])
        return np.append(np.argsort(self._rarity) + 1, 0)[labels]

    @override
    def batch(self, indices: np.ndarray) -> EntityBatch:
        rows, counts = self._spans_of(indices)
        examples = np.repeat(np.arange(len(indices)), counts)  # (P,)
        spans = np.column_stack([examples, self.spans[rows]])  # (P, 4)
        return self._gathered(EntityBatch, indices, labels=torch.from_numpy(counts), spans=torch.from_numpy(spans))

    def _spans_of(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The spans of these examples, end to end, (P,), and how many each has, (examples,)."""
        first = self.span_offsets[indices]  # (examples,)
        counts = self.span_offsets[indices + 1] - first  # (examples,)
        return end_to_end(first, counts), counts


def tokenize_sentences(
    tokenizer: PreTrainedTokenizerBase, sentences: TaggedSentences, *, max_length: int
) -> TaggedDataset | SpanDataset:
    """The dataset of sentences, by whether they have spans or tags; see `Words.of` for errors."""
    kind = TaggedDataset if sentences.spans is None else SpanDataset
    return kind.of(tokenizer, sentences, max_length=max_length)


def is_nested(examples: Examples) -> bool:
    """Whether two entities of an example overlap; the examples are a `SpanDataset`, or some of one."""

    def found(file: Examples) -> bool:
        if isinstance(file, SpanDataset):
            return file.is_nested
        blocks = (np.arange(start, min(start + _BLOCK, len(file))) for start in range(0, len(file), _BLOCK))
        batches = (file.batch(indices) for indices in blocks)
        found_spans = (batch.spans.numpy() for batch in batches if isinstance(batch, EntityBatch))
        return any(any_overlap(spans[:, 1:], spans[:, 0]) for spans in found_spans)

    return any(found(file) for _, file in named_files(examples))
