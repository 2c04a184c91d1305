"""Lines of a text file and their errors: what all readers share.

A file is UTF-8, one example a line. A byte-order mark, CRLF and blank lines at the end are fine. Any other error stops
the run before training: the whole file is parsed, and then one `UserError` lists the first errors as
`path:line: expected …, got …` and counts all; or those lines are skipped and counted.
"""

import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import chain
from typing import Any, BinaryIO, TypeAlias, TypeVar

from loguru import logger

from bertorch.errors import UserError
from bertorch.files import STANDARD, is_stream, require_file

SHOWN_ERRORS = 10
# A text is cut to a few thousand tokens at most. A longer line is binary data or lacks line breaks, and the tokenizer,
# which truncates last, would take minutes and gigabytes for it.
LONGEST_LINE = 4 * 2**20
_SHOWN_CHARACTERS = 60
# Whether a line is JSON; Python refuses to parse numbers of more than 4300 digits.
_WITHOUT_NUMBERS = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_OBJECT_START = re.compile(r'\s*\{\s*"')
_BREAKS = re.compile("[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")  # a tab, and what `str.splitlines` splits at
# A lone surrogate is no text: UTF-8 has none, but an escape in JSON or a Python string may hold one.
HALF_PAIR = re.compile("[\ud800-\udfff]")

_FIRST_OF_SPACES = {chr(code).encode()[0] for code in range(0x3001) if chr(code).isspace()}  # bytes of UTF-8
_NumberedLine: TypeAlias = tuple[int, bytes | int]  # from 1; instead of a line over the limit its length

Line = TypeVar("Line")
Row = TypeVar("Row")


class BadLineError(Exception):
    """What is wrong with one line, "expected …, got …", and in which column, in characters from 1, if that is known."""

    def __init__(self, error: str, column: int | None = None) -> None:
        super().__init__(error)
        self.column = column

    def located(self, path: str, line: int) -> str:
        """The error after `path:line` or `path:line:column`."""
        return f"{path}:{line}: {self}" if self.column is None else f"{path}:{line}:{self.column}: {self}"


def read_rows(
    path: str, parse: Callable[[str], Row], parse_json: Callable[[str], Row] | None = None, **options: str
) -> Iterator[Row]:
    """Parse every line of a regular file, see `parse_lines`.

    With `parse_json` the first line that is not blank decides: it parses all of them if that is a JSON object, or
    begins as one and has no tab. Else `parse` does.
    """
    require_file(path, "a readable text file")
    lines: Iterator[_NumberedLine] = _lines(path)
    if parse_json is not None:
        first, lines = _peeked(lines)
        parse = parse_json if object_in(first) is not None or _is_broken_object(first) else parse
    return (row for _, row in parse_lines(path, lines, lambda raw: parse(_decode(raw)), **options))


def read_numbered_rows(
    path: str, parse: Callable[[str], Row], *, blank_lines: bool = False, **options: str
) -> Iterator[tuple[int, Row]]:
    """Line numbers from 1 and rows of `read_rows`; without `blank_lines`, a blank line is malformed."""
    require_file(path, "a readable text file")
    return parse_lines(path, _lines(path), lambda raw: parse(_decode(raw, blank_lines=blank_lines)), **options)


def parse_lines(
    path: str,
    lines: Iterable[tuple[int, Line]],  # with their numbers, from 1
    parse: Callable[[Line], Row],  # raises `BadLineError`
    *,
    on_bad_line: str = "stop",  # "skip" leaves malformed lines out and logs how many
    remedy: str = "Fix them, or skip them with --on_bad_line skip.",  # ends the error
    expected: str = "one example a line",
) -> Iterator[tuple[int, Row]]:
    """Parse numbered lines of `path` one by one, and collect their errors until the last.

    Raises:
        UserError: malformed lines, or no good line; after the last line.
    """
    errors: list[str] = []
    good_lines = bad_lines = 0
    for number, line in lines:
        try:
            row = parse(line)
        except BadLineError as error:
            bad_lines += 1
            if bad_lines <= SHOWN_ERRORS:
                errors.append(error.located(path, number))
        else:
            good_lines += 1
            yield number, row
    if bad_lines and on_bad_line == "stop":
        shown = "" if bad_lines == len(errors) else f", the first {len(errors)} of them"
        raise UserError("\n".join([f"{path}: malformed lines: {bad_lines}{shown}", *errors, remedy]))
    if bad_lines:
        logger.warning("{}: skipped malformed lines: {}; the first: {}", path, bad_lines, errors[0])
    if not good_lines:
        raise UserError(f"{path}: expected {expected}, got no {'good ' if bad_lines else ''}line")


def first_object(path: str) -> dict[str, Any] | None:
    """The JSON object that is the first line of a regular file; None if it is none."""
    require_file(path, "a readable text file")
    with closing(_lines(path)) as lines:
        first, _ = _peeked(lines)
    return object_in(first)


def stream_rows(
    path: str, parse: Callable[[str], Row], parse_json: Callable[[str], Row] | None = None
) -> Iterator[Row]:
    """Parse the lines of a file, a pipe, or standard input for `STANDARD`, one by one in constant memory.

    With `parse_json` the first line that is not blank decides: it parses all of them if that is a JSON object.

    Raises:
        UserError: nothing that can be read, no line, or the first malformed line.
    """
    number = 0
    if not is_stream(path):
        require_file(path, "a readable text file")
    lines: Iterator[_NumberedLine] = _lines(path)
    if parse_json is not None:
        first, lines = _peeked(lines)
        parse = parse if object_in(first) is None else parse_json
    for number, raw in lines:
        try:
            row = parse(_decode(raw))
        except BadLineError as error:
            raise UserError(error.located(path, number)) from error
        yield row
    if not number:
        raise UserError(f"{path}: expected one example a line, got no line")


def _peeked(lines: Iterator[_NumberedLine]) -> tuple[str, Iterator[_NumberedLine]]:
    """The first line that is not blank, as far as it can be decoded, and all lines with it; no line is read ahead."""
    taken: list[_NumberedLine] = []
    for each in lines:
        taken.append(each)
        if each[1]:
            break
    first = taken[-1][1] if taken else b""
    return "" if isinstance(first, int) else first.decode("utf-8", "replace"), chain(taken, lines)


def object_in(line: str) -> dict[str, Any] | None:
    """The JSON object that a line is, with numbers as they are written; None if it is none."""
    try:
        parsed = _WITHOUT_NUMBERS.decode(line)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_broken_object(line: str) -> bool:
    """Whether a line, which has a tab if it is one of columns, was probably meant as a JSON object."""
    return _OBJECT_START.match(line) is not None and "\t" not in line


def _lines(path: str) -> Generator[_NumberedLine, None, None]:
    """Line numbers from 1 and the lines of `_ended_lines`, up to the last line that is not blank."""
    if path == STANDARD and sys.stdin is None:
        raise UserError(f"{path}: expected standard input, got a closed one; name a file")
    try:
        with nullcontext(sys.stdin.buffer) if path == STANDARD else open(path, "rb") as file:
            last = 0
            for number, line in enumerate(_ended_lines(file), start=1):
                if isinstance(line, int) or not _is_blank(line):
                    for blank in range(last + 1, number):
                        yield blank, b""
                    yield number, line
                    last = number
    except OSError as error:
        raise UserError(f"{path}: expected a readable text file, got: {error.strerror or error}") from error


def _is_blank(line: bytes) -> bool:
    """Whether a line is white space, also that of Unicode, such as U+3000."""
    visible = line.strip()
    return not visible or (visible[0] in _FIRST_OF_SPACES and not visible.decode("utf-8", "replace").strip())


def _ended_lines(file: BinaryIO) -> Iterator[bytes | int]:
    """Lines without their ends; instead of a line over the limit, which is never held in memory, its length."""
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


def _decode(raw: bytes | int, *, blank_lines: bool = False) -> str:
    if isinstance(raw, int):
        raise BadLineError(f"expected at most {LONGEST_LINE} bytes a line, got {raw}; is a line break missing?")
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        raise BadLineError(f"expected UTF-8, got {byte}") from error
    if not blank_lines and not line.strip():
        raise BadLineError("expected an example, got an empty line")
    return line


def split_columns(line: str, width: int, form: str, wider: str = "", *, last_may_be_blank: bool = False) -> list[str]:
    """The tab-separated columns of a line, `form` in errors; a `BadLineError` if not `width`, or if one is blank.

    `wider` ends the error of a line with one column more. The last one is not checked if it may be blank.
    """
    columns = line.split("\t")
    if len(columns) != width:
        expected = f"{width} column{'s' * (width > 1)}"
        hint = wider if len(columns) == width + 1 else ""
        if last_may_be_blank and len(columns) == width - 1:
            hint = "; a line whose last column is empty ends with the tab"
        raise BadLineError(f"expected {expected} ({form}), got {len(columns)}: {shorten(line)}{hint}")
    if not all(map(str.strip, columns[:-1] if last_may_be_blank else columns)):
        raise BadLineError(f"expected no empty column ({form}), got {shorten(line)}")
    return columns


def cell(text: str) -> str:
    """A text as a column of a line, with a space for tabs and line breaks."""
    return _BREAKS.sub(" ", text)


def shorten(text: str) -> str:
    """The beginning of a text, quoted for an error."""
    return repr(_beginning(text))


def first_few(names: Sequence[str]) -> str:
    """The first names of a list for an error."""
    return ", ".join(map(_beginning, names[:SHOWN_ERRORS])) + (", …" if len(names) > SHOWN_ERRORS else "")


def _beginning(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
