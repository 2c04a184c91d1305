"""Sentences → words in windows: what every dataset of labelled words has.

A word is what the file calls a token. It is labelled on the first of its word pieces. A word that the tokenizer drops
(white space, control characters) is encoded as the unknown token, so that words and labels always align. A sentence
that is too long is cut into windows that overlap; each word is labelled in one of them, with context on either side.
All windows of a sentence are in one batch, so that its words are one sequence, in training and in evaluation.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.scratch import GrowingArray, GrowingOffsets
from bertorch.data.text_splits import CHARACTERS
from bertorch.data.tokens import CHUNK, TokenStore, WordPieces, end_to_end, joined_hashes, token_pieces
from bertorch.errors import UserError

B = TypeVar("B", bound=PackedBatch)


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


class Words(NamedTuple):
    """The words of N sentences, as the fields of a `WordDataset`."""

    store: TokenStore
    word_starts: np.ndarray
    word_offsets: np.ndarray
    examples: np.ndarray

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        sentences: Sequence[list[str]],
        *,
        max_length: int,
        split: str = CHARACTERS,
    ) -> "Words":
        """Tokenise sentences and cut them into windows of at most `max_length` tokens, special ones included.

        `split` is how texts were cut into words, see `token_pieces`.

        Raises:
            UserError: `max_length` leaves no room for a word.
        """
        pieces = token_pieces(tokenizer, sentences, split)
        room = max_length - len(pieces.prefix) - len(pieces.suffix)
        if room < 1:
            least = max_length - room + 1
            raise UserError(f"--max_seq_length {max_length}: expected at least {least}, a word among them")
        pieces = replace(pieces, lengths=np.minimum(pieces.lengths, (room + 1) // 2))  # the first ones of long words
        return _joined(_parts(pieces, room))


@dataclass(frozen=True)
class WordDataset(Examples):
    """Tokenised sentences with their words; a subclass adds the labels."""

    store: TokenStore  # of all windows
    word_starts: np.ndarray  # (words,) int64, the token of its window with which each word begins, window by window
    word_offsets: np.ndarray  # (windows+1,) int64: window i has words `word_offsets[i] : word_offsets[i+1]`
    examples: np.ndarray  # (N+1,) int64: example i has windows `examples[i] : examples[i+1]`

    def __len__(self) -> int:
        return len(self.examples) - 1

    @property
    @override
    def lengths(self) -> np.ndarray:
        return self._words_of(np.arange(len(self)))

    @override
    def cut(self, indices: np.ndarray) -> np.ndarray:
        return np.zeros(len(indices), np.bool_)  # long sentences are windows

    @override
    def hashes(self, indices: np.ndarray) -> np.ndarray:
        counts = self.examples[indices + 1] - self.examples[indices]  # (examples,)
        return joined_hashes(self.store.hashes(self._windows_of(indices)), counts)

    def _gathered(self, kind: type[B], indices: np.ndarray, **labels: Any) -> B:
        """The examples with these indices as a batch; all windows of an example follow each other."""
        windows = self._windows_of(indices)  # (N,)
        tokens = np.concatenate([[0], self.store.lengths_of(windows)]).cumsum()  # (N+1,)
        words_of_window = self._words_in(windows)  # (N,)
        words = end_to_end(self.word_offsets[windows], words_of_window)  # (K,)
        words_of_example = self._words_of(indices)  # (examples,)
        return kind.of(
            self.store,
            windows,
            word_starts=torch.from_numpy(self.word_starts[words] + np.repeat(tokens[:-1], words_of_window)),
            cu_words=torch.from_numpy(np.concatenate([[0], words_of_example]).cumsum().astype(np.int32)),
            max_words=int(words_of_example.max(initial=0)),
            **labels,
        )

    def _word_indices(self, indices: np.ndarray) -> np.ndarray:
        """The words of these examples, end to end, (K,)."""
        return end_to_end(self.word_offsets[self.examples[indices]], self._words_of(indices))

    def _windows_of(self, indices: np.ndarray) -> np.ndarray:
        first = self.examples[indices]  # (examples,)
        return end_to_end(first, self.examples[indices + 1] - first)  # (N,)

    def _words_in(self, windows: np.ndarray) -> np.ndarray:
        return self.word_offsets[windows + 1] - self.word_offsets[windows]  # (N,)

    def _words_of(self, indices: np.ndarray) -> np.ndarray:
        return self.word_offsets[self.examples[indices + 1]] - self.word_offsets[self.examples[indices]]


def _parts(pieces: WordPieces, room: int) -> Iterator[Words]:
    """The sentences a chunk at a time, cut into windows of at most `room` word pieces."""
    total = len(pieces.sentences)
    for first in range(0, total, CHUNK):
        sentences = [pieces.sentences[index] for index in range(first, min(first + CHUNK, total))]
        bounds: list[np.ndarray] = []  # of each sentence (its windows, 4), indices of words over these sentences
        first_word = 0
        for words in sentences:
            bounds.append(np.array(list(windows(pieces.lengths[words], room)), dtype=np.int64) + first_word)
            first_word += len(words)
        start, end, kept_start, kept_end = np.concatenate(bounds).T  # (windows,) each
        store, word_tokens = pieces.store(np.concatenate(sentences), start, end)
        before = len(pieces.prefix) - word_tokens[start]  # (windows,)
        yield Words(
            store=store,
            word_starts=word_tokens[:-1] + np.repeat(before, kept_end - kept_start),
            word_offsets=np.append(kept_start, kept_end[-1]),
            examples=np.cumsum([0, *map(len, bounds)]),
        )


def _joined(parts: Iterable[Words]) -> Words:
    """The sentences of all parts, in arrays that need not fit in memory."""
    ids, types, starts = (GrowingArray(dtype) for dtype in (np.int32, np.int8, np.int64))
    offsets, word_offsets, examples = GrowingOffsets(), GrowingOffsets(), GrowingOffsets()
    cut = GrowingArray(np.bool_)
    for part in parts:
        ids.append(part.store.input_ids)
        types.append(part.store.token_type_ids)
        offsets.append(part.store.lengths)
        cut.append(part.store.cut)
        starts.append(part.word_starts)
        word_offsets.append(np.diff(part.word_offsets))
        examples.append(np.diff(part.examples))
    return Words(
        store=TokenStore(ids.finish(), types.finish(), offsets.finish(), cut.finish()),
        word_starts=starts.finish(),
        word_offsets=word_offsets.finish(),
        examples=examples.finish(),
    )
