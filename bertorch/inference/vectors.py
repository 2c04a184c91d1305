"""A `.npy` file of vectors that is memory-mapped while it is written, and gone on with after an interruption.

Beside `vectors.npy` stands `vectors.npy.json`: what the vectors are made of, and how many of them are done. Until all
are, they are in `vectors.npy.partial`, so that no reader takes half of them for all.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bertorch.errors import UserError
from bertorch.files import read_record, refuse_existing, replacing, to_disk, writing

# What a file system answers that cannot take room beforehand.
_UNKNOWN = (errno.EINVAL, errno.EOPNOTSUPP)


class VectorFile:
    """The file of one run of `bertorch.encode`. Only the first process uses it.

    Args:
        path: of the `.npy` file.
        made_of: what the vectors depend on, as JSON has it.
        overwrite: start anew, whatever is there.

    Attributes:
        rows, done: vectors in all, and how many of them are written.

    Raises:
        UserError: the file is there and is made of something else, or cannot be written.
    """

    def __init__(self, path: str, made_of: dict[str, Any], *, overwrite: bool) -> None:
        self._path = Path(os.path.realpath(path))  # a link stays one
        self._partial = self._path.with_name(f"{self._path.name}.partial")
        self._record = self._path.with_name(f"{self._path.name}.json")
        self._made_of = made_of
        self._vectors: np.ndarray | None = None  # once it is open
        self.rows: int = made_of["rows"]
        self.done = 0
        if overwrite:
            return
        record = self._read_record()
        if record is not None and record["made_of"] != made_of and (self._path.exists() or self._partial.exists()):
            differences = [name for name in made_of if record["made_of"].get(name) != made_of[name]]
            raise UserError(
                f"{path}: holds vectors of another run, which differs in {', '.join(differences)}; choose another "
                "name, or let --overwrite replace them"
            )
        if record is None or record["done"] < self.rows:
            refuse_existing([path], overwrite=False)
        if record is None:
            return
        if record["done"] == self.rows and self._partial.exists() and not self._path.exists():
            self.finish()  # interrupted when all was done but this
        if (self._path if record["done"] == self.rows else self._partial).exists():
            self.done = record["done"]

    def open(self) -> None:
        """Map the file into memory, and make it if there is nothing to go on with.

        Raises:
            UserError: there is no room for it, or no right to write it.
        """
        with writing(self._partial):
            if self.done:
                self._vectors = self._gone_on_with()
            else:
                self._vectors = self._reserved()
                # From here on the vectors of `--overwrite` are gone; a partial file without a record is nothing.
                self._record.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)
                self._write_record()

    def _gone_on_with(self) -> np.ndarray:
        try:
            return np.load(self._partial, mmap_mode="r+")
        except ValueError as error:
            raise UserError(f"{self._partial}: expected vectors to go on with, got: {error}; remove it") from error

    def _reserved(self) -> np.ndarray:
        """A new file, whose room is taken: a mapped file that finds none ends the process when it is written to."""
        shape, dtype = (self.rows, self._made_of["size"]), np.dtype(self._made_of["dtype"])
        vectors = np.lib.format.open_memmap(self._partial, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            try:
                with self._partial.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, self._partial.stat().st_size)
            except OSError as error:
                if error.errno not in _UNKNOWN:
                    self._partial.unlink()
                    raise
        return vectors

    def append(self, vectors: np.ndarray) -> None:
        """Write the next vectors, (rows, size), to the disk; the file is open.

        Raises:
            UserError: they cannot be written.
        """
        assert isinstance(self._vectors, np.memmap)
        with writing(self._partial):
            self._vectors[self.done : self.done + len(vectors)] = vectors
            self._vectors.flush()
            self.done += len(vectors)
            self._write_record()

    def finish(self) -> None:
        """Give the file its name.

        Raises:
            UserError: it cannot have it.
        """
        self._vectors = None
        with writing(self._partial):
            to_disk(self._partial)
            self._partial.replace(self._path)

    def _write_record(self) -> None:
        with replacing(self._record) as unfinished:
            unfinished.write_text(json.dumps({"made_of": self._made_of, "done": self.done}, indent=1), encoding="utf-8")

    def _read_record(self) -> dict[str, Any] | None:
        return read_record(
            self._record,
            lambda record: {"made_of": dict(record["made_of"]), "done": int(record["done"])},
            expected="the record of an encoding",
            remedy="remove it, or let --overwrite start anew",
        )
