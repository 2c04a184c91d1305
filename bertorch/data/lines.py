"""Lines of a text file and their flaws: what all readers share.

A file is UTF-8, one example a line. A byte-order mark, CRLF and blank lines at the end are fine. Any other flaw stops
the run before training: the whole file is gone through and then one `UserError` raised with the first flaws as
`path:line: expected …, got …` and their count; or those lines are dropped and counted.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import BinaryIO, TypeVar

from loguru import logger

from bertorch.errors import UserError
from bertorch.files import STANDARD, require_file

SHOWN_FLAWS = 10
# Texts are at most a few thousand tokens once they are cut. A line beyond this is a file without line breaks or one
# that is no text, and the tokenizer, which cuts a text last, would take minutes and gigabytes for it.
LONGEST_LINE = 4 * 2**20
_SHOWN_CHARACTERS = 60
_BREAKS = re.compile("[\t\r\n]+")
# Half a surrogate pair, which is no text: UTF-8 has none, but an escape in JSON and a string of Python may hold one.
HALF_PAIR = re.compile("[\ud800-\udfff]")

Row = TypeVar("Row")


class BadLineError(Exception):
    """What is wrong with one line: "expected …, got …".

    Args:
        flaw: the text.
        column: where in the line it is, in characters from 1, if that is known.
    """

    def __init__(self, flaw: str, column: int | None = None) -> None:
        super().__init__(flaw)
        self.column = column


def read_rows(
    path: str,
    parse: Callable[[str], Row],
    *,
    on_bad_line: str,
    remedy: str = "Mend them, or drop them with --on_bad_line skip.",
) -> list[Row]:
    """Parse every line of a file, see `read_numbered_rows`."""
    return [row for _, row in read_numbered_rows(path, parse, on_bad_line=on_bad_line, remedy=remedy)]


def read_numbered_rows(
    path: str, parse: Callable[[str], Row], *, on_bad_line: str, remedy: str, blank_lines: bool = False
) -> list[tuple[int, Row]]:
    """Parse every line of a file.

    Args:
        path: the file.
        parse: line → row; raises `BadLineError`.
        on_bad_line: `stop` raises, `skip` drops malformed lines and logs how many.
        remedy: the last line of the error.
        blank_lines: whether lines of white space mean something, and are parsed as an empty one; else they are flaws.

    Returns:
        Line numbers from 1 and rows.

    Raises:
        UserError: a missing file, what is no regular file, one without a good line, or malformed lines.
    """
    rows: list[tuple[int, Row]] = []
    flaws: list[str] = []
    bad_lines = 0
    for number, raw in _lines(path):
        try:
            rows.append((number, parse(_decode(raw, blank_lines=blank_lines))))
        except BadLineError as flaw:
            bad_lines += 1
            if len(flaws) < SHOWN_FLAWS:
                place = f"{path}:{number}" if flaw.column is None else f"{path}:{number}:{flaw.column}"
                flaws.append(f"{place}: {flaw}")
    if bad_lines and on_bad_line == "stop":
        shown = "" if bad_lines == len(flaws) else f", the first {len(flaws)} of them"
        raise UserError("\n".join([f"{path}: malformed lines: {bad_lines}{shown}", *flaws, remedy]))
    if bad_lines:
        logger.warning("{}: dropped malformed lines: {}; the first: {}", path, bad_lines, flaws[0])
    if not rows:
        raise UserError(f"{path}: expected one example a line, got no {'good ' if bad_lines else ''}line")
    return rows


def stream_rows(path: str, parse: Callable[[str], Row]) -> Iterator[Row]:
    """Parse the lines of a file one after the other, in memory that does not grow with the file.

    Args:
        path: the file, `STANDARD` for what is piped in.
        parse: line → row; raises `BadLineError`.

    Raises:
        UserError: a missing file, what is no regular file, one without a line, or the first malformed line.
    """
    found = False
    for number, raw in _lines(path):
        try:
            yield parse(_decode(raw, blank_lines=False))
        except BadLineError as flaw:
            place = f"{path}:{number}" if flaw.column is None else f"{path}:{number}:{flaw.column}"
            raise UserError(f"{place}: {flaw}") from flaw
        found = True
    if not found:
        raise UserError(f"{path}: expected one example a line, got no line")


def _lines(path: str) -> Iterator[tuple[int, bytes | int]]:
    """Line numbers from 1 and lines without their ends, up to the last line that is not blank.

    Of a line beyond the limit, its length stands in its place.
    """
    if path != STANDARD:
        require_file(path, "a readable text file")
    try:
        with nullcontext(sys.stdin.buffer) if path == STANDARD else open(path, "rb") as file:
            blank = range(0)
            for number, line in enumerate(_ended_lines(file), start=1):
                if isinstance(line, bytes) and not line.strip():
                    blank = range(blank.start or number, number + 1)
                    continue
                yield from ((place, b"") for place in blank)
                blank = range(0)
                yield number, line
    except OSError as error:
        raise UserError(f"{path}: expected a readable text file, got: {error.strerror or error}") from error


def _ended_lines(file: BinaryIO) -> Iterator[bytes | int]:
    """The lines of a file; of one beyond the limit its length, so that it never is in memory."""
    most = LONGEST_LINE + len(b"\r\n")
    mark = b"\xef\xbb\xbf"
    while piece := file.readline(most + len(mark)):
        piece, mark = piece.removeprefix(mark), b""
        length = len(piece)
        while not piece.endswith(b"\n") and (more := file.readline(most)):
            length += len(more)
            piece = (piece[-1:] if length > most else piece) + more
        line = piece.removesuffix(b"\n").removesuffix(b"\r")
        length -= len(piece) - len(line)
        yield line if length <= LONGEST_LINE else length


def _decode(raw: bytes | int, *, blank_lines: bool) -> str:
    if isinstance(raw, int):
        raise BadLineError(f"expected at most {LONGEST_LINE} bytes a line, got {raw}; is a line break missing?")
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError(
            f"expected UTF-8, got byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        ) from error
    if line.strip():
        return line
    if blank_lines:
        return ""
    raise BadLineError("expected an example, got an empty line")


def cell(text: str) -> str:
    """A text as a column of a line: with a space for tabs and line breaks."""
    return _BREAKS.sub(" ", text)


def shorten(text: str) -> str:
    """A text as it is quoted in an error: its beginning."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def some(labels: Sequence[str]) -> str:
    """Labels as they are quoted in an error: the first ones."""
    shown = [
        label if len(label) <= _SHOWN_CHARACTERS else label[:_SHOWN_CHARACTERS] + "…" for label in labels[:SHOWN_FLAWS]
    ]
    return ", ".join(shown) + (", …" if len(labels) > SHOWN_FLAWS else "")
