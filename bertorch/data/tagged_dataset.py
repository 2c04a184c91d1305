"""Tagged sentences → packed batches: a tag for each word, however the tokenizer splits it.

A word is what the file calls a token. It is tagged on the first of its word pieces. A word that the tokenizer drops
(white space, control characters) is encoded as the unknown token, so that words and tags always align. A sentence that
is too long is cut into windows that overlap; each word is tagged in one of them, with context on either side. All
windows of a sentence are in one batch, so that its tags are one sequence, in training and in evaluation.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.batch import PackedBatch, offsets_twice, round_up
from bertorch.data.dataset import Examples
from bertorch.data.scratch import GrowingArray, GrowingOffsets
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.data.tokens import CHUNK, TokenStore, WordPieces, end_to_end, joined_hashes, token_pieces
from bertorch.errors import UserError

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
        return F.pad(self.cu_words, (0, 1), value=len(self.labels)) if self.has_filler else self.cu_words

    @override
    def filled(self, multiple: int) -> Self:
        # At least one word of filler brings K to a multiple, as `max_words`, which bounds the filler too.
        filler = WORDS_MULTIPLE - len(self.labels) % WORDS_MULTIPLE
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


class Window(NamedTuple):
    """Words `start : end` of a sentence, of which `kept_start : kept_end` are tagged here."""

    start: int
    end: int
    kept_start: int
    kept_end: int


def windows(pieces: np.ndarray, room: int) -> Iterator[Window]:
    """Cut a sentence into overlapping windows of at most `room` word pieces that keep each word once.

    `pieces` are the word pieces of each word, (words,), at most half of `room`, rounded up.
    """
    ends = np.concatenate([[0], pieces]).cumsum()  # (words+1,), word pieces before each word
    context = room // 4
    start = kept_start = 0
    while True:
        end = int(np.searchsorted(ends, ends[start] + room, side="right")) - 1
        if end == len(pieces):
            yield Window(start, end, kept_start, end)
            return
        kept_end = max(int(np.searchsorted(ends, ends[end] - context, side="right")) - 1, kept_start + 1)
        yield Window(start, end, kept_start, kept_end)
        kept_start = kept_end
        start = int(np.searchsorted(ends, ends[kept_start] - context))


@dataclass(frozen=True)
class TaggedDataset(Examples):
    """Tokenised sentences with a tag for each word."""

    store: TokenStore  # of all windows
    word_starts: np.ndarray  # (words,) int64, the token of its window with which each word begins, window by window
    word_offsets: np.ndarray  # (windows+1,) int64: window i has words `word_offsets[i] : word_offsets[i+1]`
    tags: np.ndarray  # (words,) int64
    examples: np.ndarray  # (N+1,) int64: example i has windows `examples[i] : examples[i+1]`

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, sentences: TaggedSentences, *, max_length: int) -> "TaggedDataset":
        """Tokenise sentences and cut them into windows of at most `max_length` tokens, special ones included.

        Raises:
            UserError: `max_length` leaves no room for a word.
        """
        pieces = token_pieces(tokenizer, sentences.tokens)
        room = max_length - len(pieces.prefix) - len(pieces.suffix)
        if room < 1:
            least = max_length - room + 1
            raise UserError(f"--max_seq_length {max_length}: expected at least {least}, a word among them")
        pieces = replace(pieces, lengths=np.minimum(pieces.lengths, (room + 1) // 2))  # the first ones of long words
        return _joined(_parts(pieces, sentences.tags, room))

    def __len__(self) -> int:
        return len(self.examples) - 1

    @property
    @override
    def lengths(self) -> np.ndarray:
        return self._words_of(np.arange(len(self)))

    @override
    def label_count(self, indices: np.ndarray) -> int:
        return int(self._words_of(indices).sum())

    @override
    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        windows = self._windows_of(indices)  # (N,)
        return self.tags[end_to_end(self.word_offsets[windows], self._words_in(windows))]  # (words,)

    @override
    def cut(self, indices: np.ndarray) -> np.ndarray:
        return np.zeros(len(indices), np.bool_)  # long sentences are windows

    @override
    def hashes(self, indices: np.ndarray) -> np.ndarray:
        counts = self.examples[indices + 1] - self.examples[indices]  # (examples,)
        return joined_hashes(self.store.hashes(self._windows_of(indices)), counts)

    @override
    def batch(self, indices: np.ndarray) -> TaggedBatch:  # all windows of an example follow each other
        windows = self._windows_of(indices)  # (N,)
        tokens = np.concatenate([[0], self.store.lengths_of(windows)]).cumsum()  # (N+1,)
        words_of_window = self._words_in(windows)  # (N,)
        words = end_to_end(self.word_offsets[windows], words_of_window)  # (K,)
        words_of_example = self._words_of(indices)  # (examples,)
        return TaggedBatch.of(
            self.store,
            windows,
            labels=torch.from_numpy(self.tags[words]),
            word_starts=torch.from_numpy(self.word_starts[words] + np.repeat(tokens[:-1], words_of_window)),
            cu_words=torch.from_numpy(np.concatenate([[0], words_of_example]).cumsum().astype(np.int32)),
            max_words=int(words_of_example.max(initial=0)),
        )

    def _windows_of(self, indices: np.ndarray) -> np.ndarray:
        first = self.examples[indices]  # (examples,)
        return end_to_end(first, self.examples[indices + 1] - first)  # (N,)

    def _words_in(self, windows: np.ndarray) -> np.ndarray:
        return self.word_offsets[windows + 1] - self.word_offsets[windows]  # (N,)

    def _words_of(self, indices: np.ndarray) -> np.ndarray:
        return self.word_offsets[self.examples[indices + 1]] - self.word_offsets[self.examples[indices]]


def _parts(pieces: WordPieces, tags: Sequence[np.ndarray], room: int) -> Iterator[TaggedDataset]:
    """The sentences a chunk at a time, cut into windows of at most `room` word pieces."""
    for first in range(0, len(tags), CHUNK):
        sentences = [pieces.sentences[index] for index in range(first, min(first + CHUNK, len(tags)))]
        bounds: list[np.ndarray] = []  # of each sentence (its windows, 4), indices of words over these sentences
        first_word = 0
        for words in sentences:
            bounds.append(np.array(list(windows(pieces.lengths[words], room)), dtype=np.int64) + first_word)
            first_word += len(words)
        start, end, kept_start, kept_end = np.concatenate(bounds).T  # (windows,) each
        store, word_tokens = pieces.store(np.concatenate(sentences), start, end)
        before = len(pieces.prefix) - word_tokens[start]  # (windows,)
        yield TaggedDataset(
            store=store,
            word_starts=word_tokens[:-1] + np.repeat(before, kept_end - kept_start),
            word_offsets=np.append(kept_start, kept_end[-1]),
            tags=np.concatenate([tags[index] for index in range(first, first + len(sentences))]),
            examples=np.cumsum([0, *map(len, bounds)]),
        )


def _joined(parts: Iterable[TaggedDataset]) -> TaggedDataset:
    """The sentences of all parts, in arrays that need not fit in memory."""
    ids, types, starts, tags = (GrowingArray(dtype) for dtype in (np.int32, np.int8, np.int64, np.int64))
    offsets, word_offsets, examples = GrowingOffsets(), GrowingOffsets(), GrowingOffsets()
    cut = GrowingArray(np.bool_)
    for part in parts:
        ids.append(part.store.input_ids)
        types.append(part.store.token_type_ids)
        offsets.append(part.store.lengths)
        cut.append(part.store.cut)
        starts.append(part.word_starts)
        word_offsets.append(np.diff(part.word_offsets))
        tags.append(part.tags)
        examples.append(np.diff(part.examples))
    return TaggedDataset(
        store=TokenStore(ids.finish(), types.finish(), offsets.finish(), cut.finish()),
        word_starts=starts.finish(),
        word_offsets=word_offsets.finish(),
        tags=tags.finish(),
        examples=examples.finish(),
    )
