"""Arrays of any length for one process: a long one is in a file without a name, of which memory holds what is in use.

The file ends with the process, however that ends. It is in the folder of `scratch_in`, else in the system's folder for
temporary files (`TMPDIR`).
"""

import mmap
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from bertorch.errors import UserError

IN_MEMORY = 2**23  # bytes of an array that are no file yet
_LISTS = 128  # of a `GrowingLists` that wait
_JOINED = 2048  # arrays that are joined at once

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def scratch_in(folder: Path) -> Iterator[None]:
    """Files of arrays that are made in the block are in this folder."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


class GrowingArray:
    """An array (rows, *row) to which rows are appended.

    Every method raises a `UserError` if the disk is full or the folder cannot be written.
    """

    def __init__(self, dtype: DTypeLike, row: tuple[int, ...] = ()) -> None:
        self._dtype, self._row = np.dtype(dtype), row
        self._waiting: list[np.ndarray] = []
        self._bytes = 0  # of what is waiting
        self._file: IO[bytes] | None = None

    def __del__(self) -> None:  # also of an array that an error leaves unfinished
        if self._file is not None:
            self._file.close()

    def append(self, rows: ArrayLike) -> None:
        """Add rows (any, *row) at the end; an array must not change afterwards."""
        self._waiting.append(np.ascontiguousarray(rows, self._dtype))
        self._bytes += self._waiting[-1].nbytes
        if self._bytes > IN_MEMORY:
            self._write()

    def finish(self) -> np.ndarray:
        """The whole array, to be read and written; nothing can be appended any more."""
        if self._file is None:
            return np.concatenate([np.empty((0, *self._row), self._dtype), *self._waiting])
        self._write()
        mapped = mmap.mmap(self._file.fileno(), 0)  # which keeps the file
        return np.frombuffer(mapped, self._dtype).reshape(-1, *self._row)

    def _write(self) -> None:
        folder = _folder.get()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - see `__del__`
            for rows in self._waiting:
                content = rows.reshape(-1).view(np.uint8).data
                while content:
                    content = content[self._file.write(content) :]
        except OSError as error:
            where = "the folder for temporary files" if folder is None else f"--cache_dir {folder}"
            raise UserError(
                f"{where}: expected room for texts and tokens, some gigabytes for ten million lines, got: "
                f"{error.strerror or error}; name a folder on another disk with --cache_dir or TMPDIR"
            ) from error
        self._waiting, self._bytes = [], 0


class GrowingOffsets:
    """Where N things end to end begin, and where the last one ends: (N+1,) int64. Errors as in `GrowingArray`."""

    def __init__(self) -> None:
        self._offsets, self._end = GrowingArray(np.int64), 0
        self._offsets.append([0])

    def append(self, lengths: ArrayLike) -> None:
        """Add things of these lengths, (any,)."""
        offsets = np.cumsum(lengths) + self._end
        self._offsets.append(offsets)
        self._end = int(offsets[-1])

    def finish(self) -> np.ndarray:
        """The offsets, to which nothing can be appended any more."""
        return self._offsets.finish()


class ArrayLists(Sequence[np.ndarray]):
    """N arrays, end to end in one."""

    def __init__(self, content: np.ndarray, offsets: np.ndarray) -> None:
        self._content, self._offsets = content, offsets  # (items, *row); (N+1,) int64

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        return self._content[self._offsets[chosen] : self._offsets[chosen + 1]]


class GrowingLists:
    """An `ArrayLists` of int64 to which arrays (any, *row) are appended. Errors as in `GrowingArray`."""

    def __init__(self, row: tuple[int, ...] = ()) -> None:
        self._content, self._offsets = GrowingArray(np.int64, row), GrowingOffsets()
        self._waiting: list[Sequence[int] | np.ndarray] = []

    def append(self, items: Sequence[int] | np.ndarray) -> None:
        """Add an array."""
        self._waiting.append(items)
        if len(self._waiting) == _LISTS:
            self._write()

    def finish(self) -> ArrayLists:
        """The arrays, to which nothing can be appended any more."""
        self._write()
        return ArrayLists(self._content.finish(), self._offsets.finish())

    def _write(self) -> None:
        if self._waiting:
            self._content.append(np.concatenate(self._waiting))
            self._offsets.append([len(items) for items in self._waiting])
            self._waiting = []


def joined_lists(lists: Sequence[np.ndarray], row: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """N arrays (any, *row) of int64 end to end in one, and where each begins and the last ends, (N+1,) int64."""
    content, offsets = GrowingArray(np.int64, row), GrowingOffsets()
    for first in range(0, len(lists), _JOINED):
        some = [lists[index] for index in range(first, min(first + _JOINED, len(lists)))]
        content.append(np.concatenate(some))
        offsets.append(list(map(len, some)))
    return content.finish(), offsets.finish()


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array to be written at any place; a `UserError` as in `GrowingArray`."""
    array = GrowingArray(dtype, shape[1:])
    block = np.zeros((max(1, min(shape[0], 2**16)), *shape[1:]), dtype)
    for start in range(0, shape[0], len(block)):
        array.append(block[: shape[0] - start])  # all written: a hole in a file could find the disk full later
    return array.finish()
