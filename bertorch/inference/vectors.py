"""A `.npy` file of vectors that is memory-mapped while it is written, and resumed after an interruption.

Beside `vectors.npy`, `vectors.npy.json` records what the vectors depend on, and how many are written. Until all are,
the file is called `vectors.npy.partial`, so that no reader takes it for complete.
"""

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertorch import distributed, log
from bertorch.atomic import replacing, to_disk, unfinished
from bertorch.data.teacher import record_path
from bertorch.errors import UserError
from bertorch.files import read_record, refuse_existing, writing

_CANNOT_RESERVE = (errno.EINVAL, errno.EOPNOTSUPP)  # from file systems without posix_fallocate


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What vectors depended on, or depend on, and is not the same in both."""
    return [name for name in {**now, **before} if name not in before or name not in now or before[name] != now[name]]


def vector_files(path: str) -> tuple[Path, Path, Path]:
    """The files of vectors: the array, what it is called until it is complete, and the record; a link is followed."""
    array = Path(os.path.realpath(path))
    return array, array.with_name(f"{array.name}.partial"), record_path(path)


class VectorFile:
    """The `.npy` file of one run of `bertorch.encode`, which only the first process uses.

    `made_of` is what the vectors depend on, as JSON, with `rows`, `size` and `dtype`; `record` is what the record has
    beside it.

    Raises:
        UserError: the file exists and depends on something else. All methods raise it where they cannot write.
    """

    def __init__(self, path: str, made_of: dict[str, Any], *, overwrite: bool, record: Mapping[str, Any]) -> None:
        self._path, self._partial, self._record = vector_files(path)
        self._made_of, self._beside = made_of, record
        self._vectors: np.ndarray | None = None  # once it is open
        self.rows: int = made_of["rows"]  # in all
        self.done: int = 0 if overwrite else self._done_before(path)

    def _done_before(self, path: str) -> int:
        record = read_record(
            self._record,
            lambda record: (dict(record["made_of"]), int(record["done"])),
            expected="the record of an encoding",
            remedy="remove it, or let --overwrite start anew",
        )
        if record is None:
            refuse_existing([path], overwrite=False)
            return 0
        made_of, done = record
        is_partial = self._partial.exists() and not self._partial.is_symlink()
        if made_of != self._made_of and (self._path.exists() or is_partial):
            differences = ", ".join(differing(made_of, self._made_of))
            raise UserError(
                f"{path}: holds vectors of another run, which differs in {differences}; choose another "
                "name, or let --overwrite replace them"
            )
        if done < self.rows:
            refuse_existing([path], overwrite=False)
            return done if is_partial else 0
        if is_partial and not self._path.exists():
            self.finish()  # interrupted before the file got its name
        return done if self._path.exists() else 0

    def open(self) -> None:
        """Map the file into memory; create it if there is nothing to resume."""
        with writing(self._partial):
            if not self.done:
                with unfinished(self._path.parent) as new:
                    self._vectors = self._reserved(new)
                    # From here on the vectors of an earlier run are gone; a partial file without a record is ignored.
                    self._record.unlink(missing_ok=True)
                    self._path.unlink(missing_ok=True)
                    new.replace(self._partial)
                self._write_record()
                return
            try:
                self._vectors = np.load(self._partial, mmap_mode="r+")
            except ValueError as error:
                raise UserError(f"{self._partial}: expected vectors to resume from, got: {error}; remove it") from error

    def _reserved(self, file: Path) -> np.ndarray:
        """A new file with its space reserved: a write to a mapped file on a full disk kills the process."""
        shape, dtype = (self.rows, self._made_of["size"]), np.dtype(self._made_of["dtype"])
        vectors = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            try:
                with file.open("r+b") as opened:
                    os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
        return vectors

    def append(self, vectors: np.ndarray) -> None:
        """Write the next vectors (rows, size) to the disk; requires `open`."""
        assert isinstance(self._vectors, np.memmap)
        with writing(self._partial):
            self._vectors[self.done : self.done + len(vectors)] = vectors
            self._vectors.flush()
            self.done += len(vectors)
            self._write_record()

    def finish(self) -> None:
        """Give the complete file its final name."""
        self._vectors = None
        with writing(self._partial):
            to_disk(self._partial)
            self._partial.replace(self._path)

    def _write_record(self) -> None:
        content = {"made_of": self._made_of, "done": self.done, **self._beside}
        with replacing(self._record) as new:
            new.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_vectors(prepare: Callable[[], VectorFile], blocks: Callable[[int], Iterable[np.ndarray]]) -> None:
    """Write a file of vectors, or the rest of it; a complete one is left as it is. All processes must call it.

    Args:
        prepare: makes the file, on the first process alone.
        blocks: from the number of rows that are there to the further ones, (rows, size) at a time; on all processes.

    Raises:
        UserError: see `VectorFile`; one that `prepare` raises is raised on all processes.
    """
    file = None  # only the first process has one

    def begin() -> int:
        nonlocal file
        file = prepare()
        if file.done < file.rows:
            file.open()
        return file.done

    done = distributed.on_main(begin)
    with log.input_bar(done) as progress:
        for vectors in blocks(done):
            if file is not None:
                file.append(vectors)
            progress.update(len(vectors))
    if file is not None and done < file.rows:
        file.finish()
