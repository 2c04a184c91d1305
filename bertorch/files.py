"""Checks before files are read and written, and how errors are told."""

import json
import os
import pickle
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from bertorch.atomic import replacing
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
REPORT, PREDICTIONS = "report.json", "predictions.jsonl"  # what bertorch.evaluate writes and bertorch.compare reads
ERRORS = "errors.tsv"  # also of bertorch.evaluate
# Valid in JSON, but UTF-8 has no lone surrogates, and other programs take the others for the end of a line.
_TO_ESCAPE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")

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


def is_stream(path: str) -> bool:
    """Whether a path is standard input or output, a pipe or a device: read once, and written as it comes."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return path == STANDARD
    return path == STANDARD or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that can be written as UTF-8, on one line without `indent`, whatever is in its texts."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _TO_ESCAPE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


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
def writing(path: str | Path) -> Iterator[None]:
    """Report errors of writing a file.

    Raises:
        UserError: the file cannot be written, or what is written is not text.
        BrokenPipeError: it is a pipe whose reader has gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be written, got: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: expected text to write, got half a surrogate pair") from error


@contextmanager
def replacing_output(path: str) -> Iterator[Path]:
    """As `replacing`, for a file that the user has named: of a link, the file that it leads to is replaced.

    Raises:
        UserError: as `writing`.
    """
    with writing(path), replacing(Path(os.path.realpath(path))) as new:
        yield new


@contextmanager
def _replacing_text(path: str) -> Iterator[TextIO]:
    with writing(path):
        Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)
    with replacing_output(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Write lines, given without their ends, to a text file atomically; its folder is made, an older file replaced.

    Raises:
        UserError: it cannot be written; an older one is unchanged.
    """
    with _replacing_text(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def write_files(files: Mapping[str, Iterable[str]]) -> None:
    """As `write_lines`, several files that belong together: interrupted, none is beside one of an earlier time.

    Raises:
        UserError: one cannot be written; older ones are unchanged.
    """
    with ExitStack() as stack:
        for path, lines in files.items():
            file = stack.enter_context(_replacing_text(path))
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
        for path in files:
            with writing(path):
                Path(os.path.realpath(path)).unlink(missing_ok=True)


@contextmanager
def whole_output(path: str, *, overwrite: bool) -> Iterator[TextIO]:
    """Write a text file atomically, its folder made; or as it comes, where `path` is a stream.

    Raises:
        UserError: the file exists and `overwrite` is false, or it cannot be written.
        BrokenPipeError: the reader of a stream has gone.
    """
    if is_stream(path):
        is_standard = path == STANDARD
        with (
            writing("standard output" if is_standard else path),
            _standard_output() if is_standard else open(path, "w", encoding="utf-8") as file,
        ):
            yield file
        return
    refuse_existing([path], overwrite=overwrite)
    with _replacing_text(path) as file:
        yield file


@contextmanager
def _standard_output() -> Iterator[TextIO]:
    if sys.stdout is None:
        raise UserError(f"{STANDARD}: expected standard output, got a closed one; name a file")
    try:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushing at exit would fail again
        raise


def refuse_existing(paths: Iterable[str], *, overwrite: bool, inputs: Iterable[str | None] = ()) -> None:
    """Check the outputs of a command before it starts its work; of the inputs those that are None are left out.

    Raises:
        UserError: one exists and `overwrite` is false, one is not a regular file, two are the same, or one is an input.
    """
    outputs, seen = list(map(os.path.realpath, paths)), set()
    refuse_inputs(outputs, inputs)
    for path in outputs:
        if path in seen:
            raise UserError(f"{path}: expected another file for each output, got this one twice")
        seen.add(path)
        with writing(path), suppress(FileNotFoundError):  # such as below a file, or a name too long
            os.stat(path)
        if os.path.exists(path):
            require_file(path, "the name of a file")
        if os.path.lexists(path) and not overwrite:
            raise UserError(f"{path}: expected no file of this name, got one; name another, or add --overwrite")


def refuse_inputs(outputs: Iterable[str], inputs: Iterable[str | None]) -> None:
    """Raise a `UserError` if a command would write a file that it reads, also through a link; None is no input."""
    read = {os.path.realpath(path) for path in inputs if path is not None}
    for path in map(os.path.realpath, outputs):
        if path in read:
            raise UserError(f"{path}: expected another file for the output, got one that is read; name another")


def read_record(path: Path, parse: Callable[[Any], Record], *, expected: str, remedy: str) -> Record | None:
    """Read a JSON file that a command keeps for itself, of which `parse` takes what is needed; None if there is none.

    Raises:
        UserError: it is damaged, or not what is `expected`; the error ends with the `remedy`.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected {expected}, got {type(error).__name__}: {error}; {remedy}") from error
