"""Files: can this one be read, is it whole, what did a library say of a broken one; written whole, and on the disk."""

import json
import os
import pickle
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from bertorch.errors import UserError

# What is no regular file, and what to do instead. Opening a pipe waits for its writer, and a device may never end.
_OTHERS = {
    stat.S_IFDIR: "a folder; name a file in it",
    stat.S_IFIFO: "a pipe; write its content into a file first",
    stat.S_IFSOCK: "a socket; write its content into a file first",
    stat.S_IFCHR: "a device; write its content into a file first",
    stat.S_IFBLK: "a device; write its content into a file first",
}
Record = TypeVar("Record")

_ZIP = b"PK\x03\x04"
_PIECE = 2**20
_SHOWN_CHARACTERS = 300
STANDARD = "-"  # what stands for standard input and output in place of a file's name


def require_file(path: str | Path, expected: str) -> None:
    """Make sure that a path is a regular file before it is opened.

    Args:
        path: what the user named.
        expected: what it should be, for the error.

    Raises:
        UserError: it is missing, out of reach, or a folder, pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UserError(f"{path}: expected {expected}, got: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: expected {expected}, got {_OTHERS.get(stat.S_IFMT(mode), 'something else')}")


def check_sums(path: Path) -> None:
    """Compare the content of a zip archive, which is what torch.save writes, with its checksums; torch.load does not.

    A file of another kind is not looked at. Neither is a member whose checksum is 0: torch.save can leave them out.

    Raises:
        Exception: it is damaged; zipfile raises many kinds.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC:
                with archive.open(member) as content:
                    while content.read(_PIECE):
                        pass


def reason(error: Exception) -> str:
    """What a library says of a file that it cannot read, as one short line.

    torch advises to load a refused pickle without protection. That is the last thing to do with a hostile file, so only
    what the pickle asked for is kept.
    """
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        asked = re.search(r"GLOBAL (\S+)", text)
        wanted = f" ({asked[1]})" if asked else ""
        text = f"a damaged pickle, or one that asks for more than tensors{wanted}; none of its code was run"
    line = " ".join([type(error).__name__ + (":" if text else ""), *text.split()])
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "…"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that no reader ever sees half of it: it takes its place, or that of an older one, at the end.

    Args:
        path: of the file; of a link, it is the file that the link leads to.

    Yields:
        Where to write it, in the same folder.

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
    """Around writing a file.

    Raises:
        UserError: it cannot be written, or what is to be written is no text.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be written, got: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: expected text to write, got half a surrogate pair, which is none") from error


def read_record(path: Path, parse: Callable[[Any], Record], *, expected: str, remedy: str) -> Record | None:
    """Read a file of JSON that a command keeps for itself; None if there is none.

    Args:
        path: of the file.
        parse: picks what is needed out of the JSON.
        expected: what it should be, for the error.
        remedy: what to do if it is something else.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected {expected}, got {type(error).__name__}: {error}; {remedy}") from error


@contextmanager
def whole_output(path: str, *, overwrite: bool) -> Iterator[TextIO]:
    """A text file that takes its place when it is written in full; `STANDARD` is standard output.

    Args:
        path: where.
        overwrite: whether to replace what is there.

    Raises:
        UserError: it is there and is not to be replaced, or cannot be written.
    """
    if path == STANDARD:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        sys.stdout.flush()
        return
    refuse_existing([path], overwrite=overwrite)
    with writing(path), replacing(Path(path)) as unfinished, unfinished.open("w", encoding="utf-8") as file:
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
    """Make sure that a command replaces nothing unasked, before it has done its work.

    Raises:
        UserError: one of the files is there, or is a folder or the like, or two are the same.
    """
    seen = set()
    for path in map(os.path.realpath, paths):
        if path in seen:
            raise UserError(f"{path}: expected another file for each output, got this one twice")
        seen.add(path)
        if os.path.exists(path):
            require_file(path, "the name of a file")
        if os.path.lexists(path) and not overwrite:
            raise UserError(f"{path}: expected no file of this name, got one; name another, or add --overwrite")


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Write a text file so that no reader ever sees half of it: under another name, and renamed when it is complete.

    Args:
        path: the file, which is replaced; its folder is made.
        lines: without their ends.

    Raises:
        UserError: it cannot be written; what stood there is as it was.
    """
    with writing(path):
        Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
            file.writelines(f"{line}\n" for line in lines)
