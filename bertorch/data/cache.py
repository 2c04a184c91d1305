"""Tokenised datasets on disk: built once by one process, then mapped into memory by all, also by later runs.

A dataset is a folder in that of `--cache_dir`, named by a hash of everything that it depends on: another content,
option, tokenizer or version is another folder, and an old one is never wrong, only unused. It is renamed once complete
and on the disk, so that a folder with the final name is whole. Any number of runs may share the cache; of those that
build the same dataset at once, the first to finish provides it for all.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from loguru import logger

from bertorch import distributed
from bertorch.atomic import to_disk, unfinished
from bertorch.data.array_folder import DamagedError, array_names, map_arrays, save_arrays
from bertorch.data.dataset import Examples
from bertorch.data.fingerprint import content_digest, fingerprint
from bertorch.data.scratch import scratch_in
from bertorch.errors import UserError
from bertorch.files import to_json

# To be raised whenever the same file and options give other arrays than before, or these are stored in another way.
FORMAT = 3
META = "meta.json"

D = TypeVar("D", bound=Examples)


def open_dataset(read: "partial[D]", path: str, cache_dir: str | None) -> D:
    """Read and tokenise a file, or with a cache map the result of an earlier run; None for `cache_dir` has no cache.

    On each machine one process builds the dataset while the others wait; then all map the same files, read-only, and
    share their memory. Warnings of the build are logged each time. `read` is a module's function, path → dataset, whose
    return annotation is a dataclass of arrays, or several with `|`, with all other arguments bound, see `fingerprint`.

    Raises:
        UserError: an error in the file, the file changes meanwhile, or the folder cannot be written.
    """
    if cache_dir is None:
        return _reading(read, path)
    with distributed.machine_first():
        content = _digest(path)
        if content is None:  # a pipe, which can be read only once, or a path that `read` will reject
            return _reading(read, path)
        return _Entry(read, path, content, Path(cache_dir)).open()


def _reading(read: "partial[D]", path: str) -> D:
    logger.info("{}: reads and tokenises", path)  # some seconds for large files
    return read(path)


def _digest(path: str) -> str | None:
    """A hash of the content; None if the path cannot be read."""
    with suppress(OSError):
        return content_digest(path)
    return None


class _Entry(Generic[D]):
    """One dataset in the cache."""

    def __init__(self, read: "partial[D]", path: str, content: str, cache_dir: Path) -> None:
        self._read, self._path, self._content, self._cache_dir = read, path, content, cache_dir
        hint: Any = get_type_hints(read.func)["return"]
        kinds: Sequence[type[D]] = get_args(hint) if isinstance(hint, UnionType) else [hint]
        self._kinds = {kind.__qualname__: kind for kind in kinds}
        layout = [part for name, kind in self._kinds.items() for part in (name, list(array_names(kind)))]
        key = fingerprint(read, content, [FORMAT, *layout])
        self._folder = cache_dir / f"{read.func.__name__}-{key}"

    def open(self) -> D:
        """Map the dataset; build it first if it is missing or damaged."""
        if os.path.isdir(self._folder):  # unlike `Path.is_dir`, False also without permission
            try:
                dataset, meta = self._map()
            except DamagedError as error:
                logger.warning("{}: is damaged ({}) and built again", self._folder, error)
            else:
                logger.info("{}: {} examples from the cache {}", self._path, len(dataset), self._folder)
                for message in meta["warnings"]:  # the file may have had another name
                    logger.warning("{}", message.replace(f"{meta['path']}:", f"{self._path}:"))
                return dataset
        began = time.perf_counter()
        self._build()
        try:
            dataset, _ = self._map()
        except DamagedError as error:
            raise UserError(f"--cache_dir: expected {self._folder} as just written, got: {error}") from error
        size, seconds = len(dataset), time.perf_counter() - began
        logger.info("{}: {} examples, tokenised in {:.1f} s, cached in {}", self._path, size, seconds, self._folder)
        return dataset

    def _map(self) -> tuple[D, dict[str, Any]]:
        """The dataset as read-only memory maps, and the content of `meta.json`; see `map_arrays` for errors."""
        try:
            meta = json.loads((self._folder / META).read_text(encoding="utf-8"))
        except PermissionError as error:
            raise UserError(
                f"--cache_dir {self._cache_dir}: expected a folder whose tokens this user may read, got those of "
                f"another user in {self._folder.name}; choose another one, or leave --cache_dir out"
            ) from error
        except (OSError, ValueError) as error:
            raise DamagedError(f"{META}: {error}") from error
        kind = self._kinds.get(meta.get("kind", next(iter(self._kinds))))  # of one kind, it was not always written
        if kind is None:
            raise DamagedError(f"{META}: expected one of {', '.join(self._kinds)}, got {meta['kind']}")
        return map_arrays(kind, self._folder, meta["arrays"]), meta

    def _build(self) -> None:
        with ExitStack() as stack:
            with self._writing():  # before the long work, so that a wrong folder is an error at once
                self._cache_dir.mkdir(parents=True, exist_ok=True)
                new = stack.enter_context(unfinished(self._cache_dir, is_folder=True))
            with _recorded_warnings() as warnings, scratch_in(self._cache_dir):
                dataset = _reading(self._read, self._path)
            if _digest(self._path) != self._content:
                raise UserError(f"{self._path}: changed while it was read; start again when it is complete")
            with self._writing():
                arrays, kind = save_arrays(dataset, new), type(dataset).__qualname__
                meta = {"path": self._path, "warnings": warnings, "kind": kind, "arrays": arrays}
                (new / META).write_text(to_json(meta, indent=2), encoding="utf-8")
                to_disk(new)
                self._publish(new)
                to_disk(self._cache_dir, deep=False)

    def _publish(self, new: Path) -> None:
        """Give the folder its final name, unless another run was faster; a damaged one is removed."""
        if self._folder.is_dir():
            with suppress(DamagedError):
                self._map()
                return
            # Renamed first: a folder with the final name is never half-removed.
            with unfinished(self._cache_dir, is_folder=True) as damaged, suppress(FileNotFoundError):
                self._folder.rename(damaged)  # fails if another run has just done the same
        try:
            new.rename(self._folder)
        except OSError:
            if not self._folder.is_dir():  # else another run has just done the same
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--cache_dir {self._cache_dir}: expected a folder that can be written and has room for the tokens of "
                f"{self._path}, got: {error.strerror or error}; choose another one or leave --cache_dir out"
            ) from error


@contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(message.record["message"]), level="WARNING")
    try:
        yield messages
    finally:
        logger.remove(sink)
