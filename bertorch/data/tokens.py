"""Examples → token store: the ids of all sentences end to end in flat arrays, with offsets."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertorch import log
from bertorch.data.mapped import announce_reading
from bertorch.data.scratch import ArrayLists, GrowingArray, GrowingLists, GrowingOffsets
from bertorch.data.text_splits import CHARACTERS, spaced
from bertorch.errors import UserError

_EMBEDDINGS = "bertorch_embeddings"  # attribute of a tokenizer with tokens beyond the model's embeddings: their number
CHUNK = 2048  # examples handed to the tokenizer at once: enough for its threads, and the lists it returns stay small
CHUNK_CHARACTERS = 2**21  # at most: the tokenizer takes some 200 bytes for each until it truncates the text
# Of N sentences: lengths (N,), token ids (T,), token types (T,), and whether each was cut (N,).
_Chunk: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TokenStore:
    """The T tokens of N sentences, end to end: sentence i is tokens `offsets[i] : offsets[i+1]`."""

    input_ids: np.ndarray  # (T,) int32
    token_type_ids: np.ndarray  # (T,) int8: 1 in the second text of a pair, if the model distinguishes the texts
    offsets: np.ndarray  # (N+1,) int64
    cut: np.ndarray  # (N,) bool: the text had more tokens than a sentence may have

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens of each sentence."""
        return np.diff(self.offsets)

    def lengths_of(self, sentences: np.ndarray) -> np.ndarray:
        """Tokens of the sentences with these indices; the same shape, int64."""
        return self.offsets[sentences + 1] - self.offsets[sentences]

    def tokens_of(self, sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of N sentences, end to end in this order: token ids (T,) and types (T,); and the lengths (N,), int64."""
        starts, ends = self.offsets[sentences], self.offsets[sentences + 1]
        for array in (self.input_ids, self.token_type_ids):
            announce_reading(array, starts, ends)
        tokens = end_to_end(starts, ends - starts)  # (T,)
        return self.input_ids[tokens], self.token_type_ids[tokens], ends - starts

    def hashes(self, sentences: np.ndarray) -> np.ndarray:
        """Of N sentences, (N, 2) uint64, equal for the same token ids; see `joined_hashes`."""
        ids, _, lengths = self.tokens_of(sentences)  # (T,), (T,), (N,)
        return joined_hashes(np.stack([ids, ids], axis=1).astype(np.uint64), lengths)


def allow_ids_below(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Let tokenisation refuse the ids of tokens that a model with this many embeddings has none for."""
    setattr(tokenizer, _EMBEDDINGS, rows)


def ids_below(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What `allow_ids_below` has set; None for any ids."""
    return getattr(tokenizer, _EMBEDDINGS, None)


def _require_embeddings(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> None:
    rows = ids_below(tokenizer)
    if rows is not None and (beyond := ids[ids >= rows]).size:
        token = tokenizer.convert_ids_to_tokens(int(beyond[0]))
        raise UserError(
            f"expected texts of the {rows} tokens that the model has embeddings for, got one with {token!r}, which the "
            f"tokenizer has as number {beyond[0]}; give the model embeddings for it (resize_token_embeddings), or take "
            "it out of the tokenizer's files"
        )


def tokenize(
    tokenizer: PreTrainedTokenizerBase, columns: Sequence[Iterable[str]], max_length: int, *, total: int | None = None
) -> TokenStore:
    """Tokenise N texts, or N pairs as two columns, with the special tokens of the model, a chunk at a time.

    An example has at most `max_length` tokens, special ones included. The tokenizer's side of truncation is kept; of a
    pair, the longer text is truncated first. `total` is N for the progress bar, if it is known.

    Raises:
        UserError: `max_length` leaves no room for a token of each text, an example has none, a token is none of
            `allow_ids_below`, or the disk is full.
    """
    _room(tokenizer, len(columns), max_length)
    encode = _encode_directly if _is_plain(tokenizer) else _encode
    all_ids, all_types, offsets = GrowingArray(np.int32), GrowingArray(np.int8), GrowingOffsets()
    all_cut = GrowingArray(np.bool_)
    with log.tokenizing_bar(total) as progress:
        for rows in _chunks(zip(*columns, strict=True)):
            columns_of_chunk = [list(column) for column in zip(*rows, strict=True)]
            lengths, ids, types, cut = encode(tokenizer, columns_of_chunk, max_length)
            if not lengths.all():  # only without special tokens
                raise UserError(f"expected texts with a token, got one without: {rows[int(lengths.argmin())]!r}")
            _require_embeddings(tokenizer, ids)
            all_ids.append(ids)
            all_types.append(types)
            offsets.append(lengths)
            all_cut.append(cut)
            progress.update(len(rows))
    return TokenStore(all_ids.finish(), all_types.finish(), offsets.finish(), all_cut.finish())


class TextWindows(NamedTuple):
    """M texts or pairs, each as one or several sentences: overlapping windows."""

    store: TokenStore  # of all windows; the last one of an input is cut if it has tokens that are in none of them
    offsets: np.ndarray  # (M+1,) int64: input i has windows `offsets[i] : offsets[i+1]`


def tokenize_windows(
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[Iterable[str]],
    max_length: int,
    windows: int,
    *,
    total: int | None = None,
) -> TextWindows:
    """Tokenise M texts, or M pairs as two columns, as at most `windows` windows each of at most `max_length` tokens.

    A text that fits is one window, with the tokens that `tokenize` gives it. Else its windows overlap by a quarter of
    their room, and the last one may be shorter. Of a pair the second text is cut into windows, and the first one is in
    each of them; it takes at most half of the room, or what the second one leaves. The first windows are kept, the last
    ones with a tokenizer that truncates on the left.

    Raises:
        UserError: as `tokenize`, and if the tokenizer is none that runs in Rust alone.
    """
    room = _room(tokenizer, len(columns), max_length)
    if not _is_plain(tokenizer):
        raise UserError(
            f"--windows {windows}: expected a fast tokenizer without code of its own, which gives the tokens of a text "
            f"without truncation, got {type(tokenizer).__name__}; leave out --windows"
        )
    backend, side = tokenizer.backend_tokenizer, tokenizer.truncation_side
    ids, types, all_cut = GrowingArray(np.int32), GrowingArray(np.int8), GrowingArray(np.bool_)
    offsets, windows_of = GrowingOffsets(), GrowingOffsets()
    with log.tokenizing_bar(total) as progress:
        for rows in _chunks(zip(*columns, strict=True)):
            backend.no_truncation()  # which an earlier call may have set, like padding
            backend.no_padding()
            texts = [backend.encode_batch_fast(column, add_special_tokens=False) for column in zip(*rows, strict=True)]
            cut = [_cut_into_windows(each, room, side) for each in zip(*texts, strict=True)]
            # Each by itself: the backend's own overflow has wrong types in the second text of a pair.
            encodings = [backend.post_process(*each) for inputs, _ in cut for each in inputs[:windows]]
            ids_of_chunk = _flatten((encoding.ids for encoding in encodings), np.int32)
            _require_embeddings(tokenizer, ids_of_chunk)
            ids.append(ids_of_chunk)
            types.append(_flatten((encoding.type_ids for encoding in encodings), np.int8))
            offsets.append(_lengths(encodings))
            counts = np.array([min(len(inputs), windows) for inputs, _ in cut])  # (inputs,)
            windows_of.append(counts)
            flags = np.zeros(len(encodings), np.bool_)  # (windows,)
            flags[counts.cumsum() - 1] = [first_is_cut or len(inputs) > windows for inputs, first_is_cut in cut]
            all_cut.append(flags)
            progress.update(len(rows))
    store = TokenStore(ids.finish(), types.finish(), offsets.finish(), all_cut.finish())
    return TextWindows(store, windows_of.finish())


def _cut_into_windows(texts: Sequence[Any], room: int, side: str) -> tuple[list[tuple[Any, ...]], bool]:
    """The windows of a text or pair without special tokens, from its encodings; whether the first of a pair is cut."""
    *first, last = texts
    is_cut = False
    for text in first:
        most = max(room // 2, room - len(last))
        is_cut = len(text) > most
        text.truncate(most, direction=side)
        room -= len(text)
    last.truncate(room, stride=room // 4, direction=side)
    return [(*first, window) for window in (last, *last.overflowing)], is_cut


def _room(tokenizer: PreTrainedTokenizerBase, num_texts: int, max_length: int) -> int:
    """Tokens of an example beside the special ones; a `UserError` if there is none for each text."""
    special = tokenizer.num_special_tokens_to_add(pair=num_texts == 2)
    if max_length < special + num_texts:
        needed = special + num_texts
        raise UserError(f"--max_seq_length {max_length}: expected at least {needed}, a token of each text among them")
    return max_length - special


def _chunks(rows: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Lists of at most `CHUNK` rows, with at most `CHUNK_CHARACTERS` unless it is one row."""
    chunk: list[Sequence[str]] = []
    characters = 0
    for row in rows:
        more = sum(map(len, row))
        if len(chunk) == CHUNK or (chunk and characters + more > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(row)
        characters += more
    if chunk:
        yield chunk


def _encode(tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int) -> _Chunk:
    ids, types = _call(tokenizer, columns, max_length)
    lengths = _lengths(ids)
    cut = lengths == max_length
    full = np.flatnonzero(cut)
    if len(full):  # with room for one more token, those that are not cut keep their length
        longer, _ = _call(tokenizer, [[column[row] for row in full] for column in columns], max_length + 1)
        cut[full] = _lengths(longer) > max_length
    return lengths, _flatten(ids, np.int32), _flatten(types, np.int8), cut


def _call(
    tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and types of each row."""
    encoded = tokenizer(
        *columns,
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=True,
    )
    return encoded["input_ids"], encoded["token_type_ids"]


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer only calls its Rust backend, unlike LUKE's or RoCBert's."""
    kind = type(tokenizer)
    return (
        issubclass(kind, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerFast.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    )


def _encode_directly(tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int) -> _Chunk:
    """The result of `_encode` without its dicts and lists for each text: half the time on two cores."""
    _call(tokenizer, [column[:1] for column in columns], max_length)  # sets the backend's truncation
    texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    # generators, one list alive at a time: thousands would trigger the garbage collector again and again
    ids, types = (encoding.ids for encoding in encodings), (encoding.type_ids for encoding in encodings)
    lengths = _lengths(encodings)
    cut = lengths == max_length
    full = np.flatnonzero(cut)
    cut[full] = [bool(encodings[row].overflowing) for row in full]  # a copy of what was cut off, so not of all
    return lengths, _flatten(ids, np.int32), _flatten(types, np.int8), cut


def _lengths(rows: Sequence[Sized]) -> np.ndarray:
    return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))


def _flatten(rows: Iterable[list[int]], dtype: type[np.integer]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype)


@dataclass(frozen=True)
class WordPieces:
    """The word pieces of tagged sentences, each of D distinct words tokenised by itself and stored once."""

    sentences: Sequence[np.ndarray]  # of each sentence (words,) int64, indices of its words among the D
    ids: np.ndarray  # (pieces,) int64, the pieces of all distinct words, end to end
    offsets: np.ndarray  # (D,) int64, the first piece of each
    lengths: np.ndarray  # (D,) int64, the number of its pieces, at least one
    prefix: list[int]  # special tokens before a sentence
    suffix: list[int]  # and after it

    def store(self, words: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[TokenStore, np.ndarray]:
        """N windows of words as sentences with their special tokens, and (K+1,) int64, the pieces before each word.

        Window i has words `start[i] : end[i]` of the K words; `start` and `end` are (N,) int64.
        """
        before = np.concatenate([[0], self.lengths[words]]).cumsum()  # (K+1,)
        flat = self.ids[end_to_end(self.offsets[words], self.lengths[words])]  # (pieces of all words,)
        inside = before[end] - before[start]  # (N,)
        offsets = np.concatenate([[0], len(self.prefix) + inside + len(self.suffix)]).cumsum()  # (N+1,)
        input_ids = np.empty(offsets[-1], dtype=np.int32)  # (T,)
        input_ids[end_to_end(offsets[:-1] + len(self.prefix), inside)] = flat[end_to_end(before[start], inside)]
        input_ids[offsets[:-1, None] + np.arange(len(self.prefix))] = self.prefix
        input_ids[offsets[1:, None] - np.arange(len(self.suffix), 0, -1)] = self.suffix
        types, cut = np.zeros(len(input_ids), dtype=np.int8), np.zeros(len(start), dtype=np.bool_)  # (T,), (N,)
        return TokenStore(input_ids, types, offsets, cut), before


def token_pieces(
    tokenizer: PreTrainedTokenizerBase, sentences: Iterable[list[str]], split: str = CHARACTERS
) -> WordPieces:
    """Tokenise the words of sentences, each by itself; a word that the tokenizer drops becomes the unknown token.

    `split` says how they were cut, which decides whether they stand after spaces, see `spaced`.

    Raises:
        UserError: the tokenizer drops a word and has no unknown token, or a token is none of `allow_ids_below`.
    """
    words, indices = distinct(sentences)
    pieces = tokenizer([spaced(word, split) for word in words], add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if unknown is None and not all(pieces):
        word = words[pieces.index([])]
        raise UserError(f"expected a tokenizer that keeps every word or has an unknown token, got none of {word!r}")
    pieces = [ids or [unknown] for ids in pieces]
    lengths = _lengths(pieces)
    offsets = np.concatenate([[0], lengths[:-1]]).cumsum()
    flat = _flatten(pieces, np.int64)
    _require_embeddings(tokenizer, flat)
    return WordPieces(indices, flat, offsets, lengths, *_special_tokens(tokenizer))


def distinct(lists: Iterable[list[str]]) -> tuple[list[str], ArrayLists]:
    """The distinct texts of several lists, as they first come, and the indices of each list's texts among them."""
    index_of: dict[str, int] = {}
    indices = GrowingLists()
    for texts in lists:
        indices.append([index_of.setdefault(text, len(index_of)) for text in texts])
    return list(index_of), indices.finish()


def end_to_end(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices `start : start + length` of each range, one range after the other; int64."""
    before = np.concatenate([[0], lengths]).cumsum()  # (ranges+1,)
    return np.repeat(starts - before[:-1], lengths) + np.arange(before[-1])


def joined_hashes(parts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The hashes (N, 2) of N sequences, from those of their parts, (parts, 2) uint64 end to end; `counts` is (N,).

    A part and its place in the sequence are mixed by the finaliser of SplitMix64, and added up. With 128 bits, two of
    n different sequences that nobody chose for it share a hash with a probability of about n²/2¹²⁹.
    """
    place = end_to_end(np.zeros_like(counts), counts).astype(np.uint64) + np.uint64(1)  # (parts,)
    bounds = np.concatenate([[0], counts]).cumsum()  # (N+1,)
    hashes = np.empty((len(counts), 2), np.uint64)
    for column, factor in enumerate((0x9E3779B97F4A7C15, 0xD1342543DE82EF95)):  # odd: no place is lost
        mixed = place * np.uint64(factor)  # (parts,)
        mixed ^= parts[:, column]
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed ^= mixed >> np.uint64(shift)
            mixed *= np.uint64(multiplier)
        mixed ^= mixed >> np.uint64(31)
        sums = np.concatenate([np.zeros(1, np.uint64), mixed.cumsum(dtype=np.uint64)])  # (parts+1,), modulo 2^64
        hashes[:, column] = sums[bounds[1:]] - sums[bounds[:-1]]
    return hashes


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(index for index in range(len(whole)) if whole[index : index + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
