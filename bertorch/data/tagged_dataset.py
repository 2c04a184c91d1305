"""Tagged sentences → packed batches: a tag for each word, however the tokenizer splits it."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.batch import PackedBatch, offsets_twice, round_up
from bertorch.data.scratch import joined_lists
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.data.word_dataset import WordDataset, Words

WORDS_MULTIPLE = 64  # of words in a filled batch; a CRF's recursion takes as many steps as the longest example
FILLER_TAG = -100  # the label of words of filler, which `cross_entropy` ignores


@dataclass(frozen=True, kw_only=True)
class TaggedBatch(PackedBatch):
    """A packed batch of windows, with the K words of its examples that are tagged; `labels` are their tags, (K,) int64.

    Words of filler come last, have the tag `FILLER_TAG`, and belong to no example.
    """

    word_starts: Tensor  # (K,) int64, the token of the batch with which each word begins
    cu_words: Tensor  # (examples+1,) int32: example i has words `cu_words[i] : cu_words[i+1]`
    max_words: int  # a bound on the words of an example

    @property
    def word_bounds(self) -> Tensor:
        """`cu_words`, to which filler adds K, as if it were one more example; int32."""
        return F.pad(self.cu_words, (0, 1), value=len(self.word_starts)) if self.has_filler else self.cu_words

    @override
    def filled(self, multiple: int) -> Self:
        # At least one word of filler brings K to a multiple, as `max_words`, which bounds the filler too.
        filler = WORDS_MULTIPLE - len(self.word_starts) % WORDS_MULTIPLE
        return replace(
            super().filled(multiple),
            labels=F.pad(self.labels, (0, filler), value=FILLER_TAG),
            word_starts=F.pad(self.word_starts, (0, filler)),
            max_words=round_up(self.max_words, WORDS_MULTIPLE),
        )

    @override
    def twice(self) -> Self:
        word_starts = torch.cat([self.word_starts, self.word_starts + len(self.input_ids)])  # (2K,)
        return replace(super().twice(), word_starts=word_starts, cu_words=offsets_twice(self.cu_words))

    @property
    @override
    def twins(self) -> Tensor:
        indices, words = torch.arange(len(self.labels), device=self.labels.device), self.cu_words[-1]  # (K,), ()
        return torch.where(indices < words, (indices + words // 2) % words, indices)  # (K,), filler is its own twin


@dataclass(frozen=True)
class TaggedDataset(WordDataset):
    """Tokenised sentences with a tag for each word."""

    tags: np.ndarray  # (words,) int64

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, sentences: TaggedSentences, *, max_length: int) -> "TaggedDataset":
        """Tokenise sentences and cut them into windows, see `Words.of`."""
        words = Words.of(tokenizer, sentences.tokens, max_length=max_length, split=sentences.split)
        return cls(*words, joined_lists(sentences.tags)[0])

    @override
    def label_count(self, indices: np.ndarray) -> int:
        return int(self._words_of(indices).sum())

    @override
    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self.tags[self._word_indices(indices)]  # (words,)

    @override
    def batch(self, indices: np.ndarray) -> TaggedBatch:
        return self._gathered(TaggedBatch, indices, labels=torch.from_numpy(self.labels_of(indices)))
