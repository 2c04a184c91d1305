"""Examples → token store: the ids of all sentences end to end in flat arrays, with offsets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertorch.errors import UserError

# Examples handed to the tokenizer at once: enough for its threads, few enough that the lists it returns stay small.
CHUNK = 2048
# Nor more characters than this: what the tokenizer makes of one takes some 200 bytes until the text is cut.
CHUNK_CHARACTERS = 2**21
# Lengths (N,), and ids and types of the tokens, end to end, of a chunk of N sentences.
_Chunk: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TokenStore:
    """The tokens of N sentences, end to end.

    Attributes:
        input_ids: (tokens,) int32.
        token_type_ids: (tokens,) int8: 1 in the second text of a pair, if the model tells the texts apart.
        offsets: (N+1,) int64: sentence i is tokens `offsets[i] : offsets[i+1]`.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens of each sentence."""
        return np.diff(self.offsets)

    def lengths_of(self, sentences: np.ndarray) -> np.ndarray:
        """Tokens of the sentences with these numbers; the same shape, int64."""
        return self.offsets[sentences + 1] - self.offsets[sentences]


def tokenize(tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int) -> TokenStore:
    """Tokenise texts or text pairs with the special tokens of the model.

    Args:
        tokenizer: the model's tokenizer.
        columns: one list of N texts, or two for pairs.
        max_length: tokens kept of an example, special tokens included; of a pair, the longer text is cut first.

    Raises:
        UserError: `max_length` leaves no room for a token of each text.
    """
    needed = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2) + len(columns)
    if max_length < needed:
        raise UserError(f"--max_seq_length {max_length}: expected at least {needed}, a token of each text among them")
    encode = _encode_directly if _is_plain(tokenizer) else _encode
    bounds = _chunk_bounds(columns)
    chunks = [
        encode(tokenizer, [column[start:end] for column in columns], max_length) for start, end in pairwise(bounds)
    ]
    lengths, ids, types = zip(*chunks, strict=True)
    return TokenStore(
        input_ids=np.concatenate(ids),
        token_type_ids=np.concatenate(types),
        offsets=np.concatenate([[0], *lengths]).cumsum(),
    )


def _chunk_bounds(columns: Sequence[list[str]]) -> list[int]:
    """Where chunks of examples begin, and where the last one ends."""
    bounds, characters = [0], 0
    for number, texts in enumerate(zip(*columns, strict=True)):
        more = sum(map(len, texts))
        if number - bounds[-1] == CHUNK or (characters + more > CHUNK_CHARACTERS and number > bounds[-1]):
            bounds.append(number)
            characters = 0
        characters += more
    return [*bounds, len(columns[0])]


def _encode(tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int) -> _Chunk:
    encoded = tokenizer(
        *columns,
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=True,
    )
    rows = encoded["input_ids"]
    return (
        np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)),
        _flatten(rows, np.int32),
        _flatten(encoded["token_type_ids"], np.int8),
    )


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer is one of its Rust backend and nothing else, unlike those of LUKE or RoCBert."""
    kind = type(tokenizer)
    return (
        issubclass(kind, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerFast.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    )


def _encode_directly(tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int) -> _Chunk:
    """The same as `_encode` without the dicts and lists that a call makes of each text: half the time on two cores."""
    _encode(tokenizer, [column[:1] for column in columns], max_length)  # tells the backend how to truncate
    texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    # one list at a time: thousands of lists alive would set off the garbage collector again and again
    return (
        np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings)),
        _flatten((encoding.ids for encoding in encodings), np.int32),
        _flatten((encoding.type_ids for encoding in encodings), np.int8),
    )


def _flatten(rows: Iterable[list[int]], dtype: type[np.integer]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype)


@dataclass(frozen=True)
class WordPieces:
    """What a tokenizer makes of the words of tagged sentences, each word by itself; a word is stored once.

    Attributes:
        sentences: (words,) int64 for each sentence, the numbers of its words.
        ids: (pieces,) int64, the word pieces of all distinct words, end to end.
        offsets: (distinct words,) int64, where each begins.
        lengths: (distinct words,) int64, how many pieces it has, at least one.
        prefix, suffix: the special tokens around a sentence.
    """

    sentences: list[np.ndarray]
    ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    prefix: list[int]
    suffix: list[int]

    def cut(self, most: int) -> "WordPieces":
        """Keep the first `most` pieces of every word."""
        return replace(self, lengths=np.minimum(self.lengths, most))

    def store(self, start: np.ndarray, end: np.ndarray) -> tuple[TokenStore, np.ndarray]:
        """Windows of words as sentences with their special tokens.

        Args:
            start, end: (N,) int64: window i has words `start[i] : end[i]`, counted over all sentences.

        Returns:
            The store of N sentences, and (words+1,) int64, the pieces before each word, counted over all sentences.
        """
        words = np.concatenate(self.sentences)  # (words,)
        before = np.concatenate([[0], self.lengths[words]]).cumsum()  # (words+1,)
        flat = self.ids[end_to_end(self.offsets[words], self.lengths[words])]  # (pieces of all words,)
        inside = before[end] - before[start]  # (N,)
        special = len(self.prefix) + len(self.suffix)
        offsets = np.concatenate([[0], inside + special]).cumsum()  # (N+1,)
        input_ids = np.empty(offsets[-1], dtype=np.int32)
        input_ids[end_to_end(offsets[:-1] + len(self.prefix), inside)] = flat[end_to_end(before[start], inside)]
        for place, token in enumerate(self.prefix):
            input_ids[offsets[:-1] + place] = token
        for place, token in enumerate(reversed(self.suffix), start=1):
            input_ids[offsets[1:] - place] = token
        return TokenStore(input_ids, np.zeros(len(input_ids), dtype=np.int8), offsets), before


def token_pieces(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[list[str]]) -> WordPieces:
    """Tokenise the words of sentences, each word by itself; one of which nothing is left becomes the unknown token.

    Raises:
        UserError: nothing is left of a word, and the tokenizer has no unknown token.
    """
    numbers: dict[str, int] = {}
    numbered = [
        np.array([numbers.setdefault(word, len(numbers)) for word in sentence], dtype=np.int64)
        for sentence in sentences
    ]
    pieces = tokenizer(list(numbers), add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if unknown is None and not all(pieces):
        word = next(word for word, ids in zip(numbers, pieces, strict=True) if not ids)
        raise UserError(f"expected a tokenizer that keeps every word or has an unknown token, got none of {word!r}")
    pieces = [ids or [unknown] for ids in pieces]
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    prefix, suffix = _special_tokens(tokenizer)
    return WordPieces(
        sentences=numbered,
        ids=_flatten(pieces, np.int64),
        offsets=np.concatenate([[0], lengths[:-1]]).cumsum(),
        lengths=lengths,
        prefix=prefix,
        suffix=suffix,
    )


def end_to_end(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers `start : start + length` of each range, one range after the other."""
    before = np.concatenate([[0], lengths]).cumsum()  # (ranges+1,)
    return np.repeat(starts - before[:-1], lengths) + np.arange(before[-1])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
