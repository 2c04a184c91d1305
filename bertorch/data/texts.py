"""Columns of texts that may be larger than memory."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from operator import eq
from typing import Any, TypeAlias, TypeVar

import numpy as np

from bertorch.data.scratch import GrowingArray, GrowingOffsets

_READ = 2048  # offsets that are read at once
_BLOCK = 128  # rows that are written at once; each may have some megabytes

_UTF8 = "utf-8", "surrogatepass"  # a text from Python, unlike one from a file, may hold half a pair

T = TypeVar("T")
Columns: TypeAlias = Sequence[Collection[str]]  # of as many texts each


class _Stored(Sequence[T]):
    """N items, of which memory holds what is in use; equal to any sequence of the same items."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)}>"


class Texts(_Stored[str]):
    """N texts."""

    def __init__(self, content: np.ndarray, offsets: np.ndarray) -> None:
        self._content = content.data  # UTF-8, end to end
        self._offsets = offsets  # (N+1,) int64

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[each] for each in chosen]
        return str(self._content[self._offsets[chosen] : self._offsets[chosen + 1]], *_UTF8)

    def __iter__(self) -> Iterator[str]:
        return (str(encoded, *_UTF8) for encoded in self.encoded())

    def encoded(self) -> Iterator[memoryview]:
        """The texts in UTF-8."""
        content = self._content
        for start in range(0, len(self), _READ):
            for begin, end in pairwise(self._offsets[start : start + _READ + 1].tolist()):
                yield content[begin:end]


class TextLists(_Stored[list[str]]):
    """N lists of texts, from their JSON."""

    def __init__(self, lists: Texts) -> None:
        self._lists = lists

    def __len__(self) -> int:
        return len(self._lists)

    def __getitem__(self, index: Any) -> Any:
        return json.loads(self._lists[index])

    def __iter__(self) -> Iterator[list[str]]:
        return map(json.loads, self._lists)


class Interleaved(Collection[str]):
    """The texts of several columns of N texts, row after row."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return sum(map(len, self._columns))

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(zip(*self._columns, strict=True))

    def __contains__(self, text: object) -> bool:
        return any(text in column for column in self._columns)


class Prefixed(Collection[str]):
    """The texts of a column, each after the same prefix."""

    def __init__(self, prefix: str, column: Collection[str]) -> None:
        self._prefix, self._column = prefix, column

    def __len__(self) -> int:
        return len(self._column)

    def __iter__(self) -> Iterator[str]:
        return (self._prefix + text for text in self._column)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and text.startswith(self._prefix) and text[len(self._prefix) :] in self._column


class _Column:
    """Texts to which more are appended."""

    def __init__(self) -> None:
        self._content, self._offsets = GrowingArray(np.uint8), GrowingOffsets()

    def append(self, texts: Iterable[str]) -> None:
        encoded = [text.encode(*_UTF8) for text in texts]
        self._content.append(np.frombuffer(b"".join(encoded), np.uint8))
        self._offsets.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def finish(self) -> Texts:
        return Texts(self._content.finish(), self._offsets.finish())


def columns_of(rows: Iterable[Sequence[str]]) -> tuple[Texts, ...]:
    """The columns of rows of S texts each, at least one row.

    Raises:
        UserError: the disk is full.
    """
    columns: list[_Column] = []
    remaining = iter(rows)
    while chunk := list(islice(remaining, _BLOCK)):
        columns = columns or [_Column() for _ in chunk[0]]
        for column, texts in zip(columns, zip(*chunk, strict=True), strict=True):
            column.append(texts)
    return tuple(column.finish() for column in columns)
