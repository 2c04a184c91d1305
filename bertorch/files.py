"""Checks before files are read, and atomic, durable writing."""

import json
import os
import pickle
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from bertorch.errors import UserError

# What is not a regular file, and what to do instead. Opening a pipe waits for its writer, and a device may never end.
_OTHER_KINDS = {
    stat.S_IFDIR: "a folder; name a file in it",
    stat.S_IFIFO: "a pipe; write its content into a file first",
    stat.S_IFSOCK: "a socket; write its content into a file first",
    stat.S_IFCHR: "a device; write its content into a file first",
    stat.S_IFBLK: "a device; write its content into a file first",
}
_SHOWN_CHARACTERS = 300
STANDARD = "-"  # names standard input or output instead of a file

Record = TypeVar("Record")


def require_file(path: str | Path, expected: str) -> None:
    """Check that a path is a regular file before it is opened; `expected` says in the error what it should be.

    Raises:
        UserError: it is missing, out of reach, or a folder, pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UserError(f"{path}: expected {expected}, got: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: expected {expected}, got {_OTHER_KINDS.get(stat.S_IFMT(mode), 'something else')}")


def check_sums(path: Path) -> None:
    """Verify the checksums of a zip archive, which is what torch.save writes; torch.load does not.

    Other kinds of files are skipped, and so are members whose checksum is 0: torch.save can omit them. Of a damaged
    archive, zipfile raises many kinds of exceptions.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # how a zip archive begins
            return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC:
                with archive.open(member) as content:
                    while content.read(2**20):
                        pass


def reason(error: Exception) -> str:
    """The message of a library about a file that it cannot read, as one short line.

    torch's advice to load a rejected pickle without protection is left out: the file may be hostile.
    """
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        wanted = "".join(f" ({name})" for name in re.findall(r"GLOBAL (\S+)", text)[:1])
        text = f"a damaged pickle, or one that asks for more than tensors{wanted}; none of its code was run"
    line = " ".join([type(error).__name__ + (":" if text else ""), *text.split()])
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "…"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path in its folder, which replaces it at the end.

    Of a link, the file that it leads to is replaced.

    Raises:
        OSError: it cannot be written; an older one is still there.
    """
    final = Path(os.path.realpath(path))
    unfinished = final.with_name(f".{final.name}.unfinished-{os.getpid()}")
    try:
        yield unfinished
        to_disk(unfinished)
        unfinished.replace(final)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Report errors of writing a file.

    Raises:
        UserError: the file cannot be written, or what is written is not text.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be written, got: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: expected text to write, got half a surrogate pair") from error


@contextmanager
def _replacing_text(path: str) -> Iterator[TextIO]:
    with writing(path), replacing(Path(path)) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Write lines, given without their ends, to a text file atomically; its folder is made, an older file replaced.

    Raises:
        UserError: it cannot be written; an older one is unchanged.
    """
    with writing(path):
        Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)
    with _replacing_text(path) as file:
        file.writelines(f"{line}\n" for line in lines)


@contextmanager
def whole_output(path: str, *, overwrite: bool) -> Iterator[TextIO]:
    """Write a text file atomically, or standard output where `path` is `STANDARD`.

    Raises:
        UserError: the file exists and `overwrite` is false, or it cannot be written.
    """
    if path == STANDARD:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        sys.stdout.flush()
        return
    refuse_existing([path], overwrite=overwrite)
    with _replacing_text(path) as file:
        yield file


def to_disk(path: Path, *, deep: bool = True) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if deep and path.is_dir():
        for inside in path.iterdir():
            to_disk(inside)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_existing(paths: Iterable[str], *, overwrite: bool) -> None:
    """Check the outputs of a command before it starts its work.

    Raises:
        UserError: one exists and `overwrite` is false, one is not a regular file, or two are the same.
    """
    seen = set()
    for path in map(os.path.realpath, paths):
        if path in seen:
            raise UserError(f"{path}: expected another file for each output, got this one twice")
        seen.add(path)
        with writing(path), suppress(FileNotFoundError):  # such as below a file, or a name too long
            os.stat(path)
        if os.path.exists(path):
            require_file(path, "the name of a file")
        if os.path.lexists(path) and not overwrite:
            raise UserError(f"{path}: expected no file of this name, got one; name another, or add --overwrite")


def read_record(path: Path, parse: Callable[[Any], Record], *, expected: str, remedy: str) -> Record | None:
    """Read a JSON file that a command keeps for itself, of which `parse` takes what is needed; None if there is none.

    Raises:
        UserError: it is damaged, or not what is `expected`; the error ends with the `remedy`.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected {expected}, got {type(error).__name__}: {error}; {remedy}") from error
