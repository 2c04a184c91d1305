"""Tokenised datasets on disk: made once by one process, then mapped into memory by all, also by later runs.

A dataset is a folder of its own in the folder of `--cache_dir`: its arrays, and `meta.json`. Its name holds a hash of
all that the dataset is made of (`bertorch.data.fingerprint`), so that another content, option, tokenizer or version is
another folder, and an old one is never wrong, only unused. It is written under another name, and renamed when it is
complete and on the disk: whatever has the final name is whole. Any number of runs may share the cache; of those that
build the same dataset at once, the first one to end gives its own to all.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from loguru import logger

from bertorch import distributed
from bertorch.data.array_folder import DamagedError, array_names, map_arrays, save_arrays
from bertorch.data.dataset import Examples
from bertorch.data.fingerprint import file_digest, fingerprint
from bertorch.errors import UserError
from bertorch.files import to_disk

# Raise it whenever the same file and options give other arrays than before, or these are stored in another way.
FORMAT = 1
META = "meta.json"
# An unfinished folder of this age is of a run that was killed: no one takes a day over a file.
LEFTOVER_SECONDS = 24 * 60 * 60
_UNFINISHED = ".unfinished-"

D = TypeVar("D", bound=Examples)


def open_dataset(read: "partial[D]", path: str, cache_dir: str | None) -> D:
    """Read and tokenise a file; with a cache, only if that has not been done before.

    On each machine one process builds the dataset while the others wait; then all map the same files, read-only, and
    share their memory. What was warned of in building is said again each time.

    Args:
        read: path → dataset: a function of a module whose return annotation is a dataclass of arrays and of such
            dataclasses, with all other arguments bound, see `fingerprint`.
        path: the file.
        cache_dir: the folder of the cache; None reads and tokenises in this process's memory.

    Raises:
        UserError: the file is at fault, it changes meanwhile, or the folder cannot be written.
    """
    if cache_dir is None:
        return read(path)
    with distributed.machine_first():
        content = _digest(path)
        if content is None:  # a pipe, which can be read only once, or something that `read` will complain of
            return read(path)
        return _Entry.of(read, path, content, Path(cache_dir)).open()


def _digest(path: str) -> str | None:
    """A hash of the content, None if the path is no file that can be read."""
    try:
        return file_digest(path) if Path(path).is_file() else None
    except OSError:
        return None


@dataclass(frozen=True)
class _Entry(Generic[D]):
    """The place of one dataset in the cache.

    Attributes:
        read, path, content: the reading function, the file and its digest.
        kind: the dataset's class.
        folder: where the dataset is or will be.
    """

    read: "partial[D]"
    path: str
    content: str
    kind: type[D]
    folder: Path

    @classmethod
    def of(cls, read: "partial[D]", path: str, content: str, cache_dir: Path) -> "_Entry[D]":
        kind = get_type_hints(read.func)["return"]
        key = fingerprint(read, content, [FORMAT, kind.__qualname__, list(array_names(kind))])
        return cls(read, path, content, kind, cache_dir / f"{read.func.__name__}-{key}")

    def open(self) -> D:
        """Open the dataset; build it first if it is not there, or damaged."""
        if os.path.isdir(self.folder):  # unlike `Path.is_dir`, False also where it may not look
            try:
                dataset, meta = self._mapped()
            except DamagedError as error:
                logger.warning("{}: is damaged ({}) and built anew", self.folder, error)
            else:
                logger.info("{}: {} examples from the cache {}", self.path, len(dataset), self.folder)
                for message in meta["warnings"]:  # the file may have had another name
                    logger.warning("{}", message.replace(f"{meta['path']}:", f"{self.path}:"))
                return dataset
        began = time.perf_counter()
        self._build()
        try:
            dataset, _ = self._mapped()
        except DamagedError as error:
            raise UserError(f"--cache_dir: expected {self.folder} as it was just written, got: {error}") from error
        seconds = time.perf_counter() - began
        logger.info(
            "{}: {} examples, tokenised in {:.1f} s, cached in {}", self.path, len(dataset), seconds, self.folder
        )
        return dataset

    def _mapped(self) -> tuple[D, dict[str, Any]]:
        """The dataset as read-only memory maps, and its meta data.

        Raises:
            DamagedError: a file is missing or is not as it was written.
        """
        try:
            meta = json.loads((self.folder / META).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedError(f"{META}: {error}") from error
        return map_arrays(self.kind, self.folder, meta["arrays"]), meta

    def _build(self) -> None:
        """Read, tokenise, write.

        Raises:
            UserError: the file is at fault or has changed, or the cache cannot be written.
        """
        cache_dir = self.folder.parent
        unfinished = cache_dir / f"{_UNFINISHED}{uuid.uuid4().hex}"
        try:
            with self._writing():  # before the long work, so that a mistake in the option is told at once
                cache_dir.mkdir(parents=True, exist_ok=True)
                _remove_leftovers(cache_dir)
                unfinished.mkdir()
            with _warnings() as warnings:
                dataset = self.read(self.path)
            if _digest(self.path) != self.content:
                raise UserError(f"{self.path}: changed while it was read; start again when it is complete")
            with self._writing():
                meta = {"path": self.path, "warnings": warnings, "arrays": save_arrays(dataset, unfinished)}
                (unfinished / META).write_text(json.dumps(meta, ensure_ascii=False, indent=2), encoding="utf-8")
                to_disk(unfinished)
                self._publish(unfinished)
                to_disk(cache_dir, deep=False)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _publish(self, unfinished: Path) -> None:
        """Give the folder its final name, unless another run was faster; a damaged one makes room."""
        if self.folder.is_dir():
            with suppress(DamagedError):
                self._mapped()
                return
            # renamed first: whatever has the final name is never half-removed
            damaged = unfinished.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
            with suppress(FileNotFoundError):  # another run has just done the same
                self.folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        try:
            unfinished.rename(self.folder)
        except OSError:
            if not self.folder.is_dir():  # else another run has just done the same
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--cache_dir {self.folder.parent}: expected a folder that can be written and has room for the tokens "
                f"of {self.path}, got: {error.strerror or error}; choose another one or leave --cache_dir out"
            ) from error


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The warnings that are logged in the block."""
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(message.record["message"]), level="WARNING")
    try:
        yield messages
    finally:
        logger.remove(sink)


def _remove_leftovers(cache_dir: Path) -> None:
    """Remove what runs that were killed have left."""
    for folder in cache_dir.glob(f"{_UNFINISHED}*"):
        with suppress(FileNotFoundError):  # its own run has just ended
            if time.time() - folder.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
