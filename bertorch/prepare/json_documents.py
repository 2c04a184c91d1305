"""JSON documents, one a line or in an array, as annotation tools export them."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from bertorch.data.json_lines import JSON, parse_object
from bertorch.data.lines import BadLineError, parse_lines, read_numbered_rows, shorten
from bertorch.errors import UserError
from bertorch.files import require_file
from bertorch.prepare.examples import REMEDY_OF_ROWS

Row = TypeVar("Row")


_BLANK = re.compile(r"[ \t\r\n]*")
_MARK = b"\xef\xbb\xbf"


def read_json_documents(
    path: str, parse: Callable[[dict[str, Any]], Row], *, form: str, on_bad_row: str
) -> Iterator[tuple[int, Row]]:
    """Line numbers, from 1, and rows of the JSON objects of a file: one a line, or the items of an array.

    `parse` raises `BadLineError` for a malformed document, and `form` is a sample of one, for errors.

    Raises:
        UserError: a missing or empty file, an array that is no JSON, or malformed documents.
    """
    require_file(path, "a readable text file")
    if not _is_array(path):
        return read_numbered_rows(
            path, lambda line: parse(parse_object(line, form, JSON)), on_bad_line=on_bad_row, remedy=REMEDY_OF_ROWS
        )

    def parse_item(item: tuple[Any, int]) -> Row:
        value, column = item
        if not isinstance(value, dict):
            raise BadLineError(f"expected a JSON object ({form}), got {shorten(json.dumps(value))}", column)
        try:
            return parse(value)
        except BadLineError as error:
            raise BadLineError(str(error), column) from error

    options = {"on_bad_line": on_bad_row, "remedy": REMEDY_OF_ROWS, "expected": f"an array of JSON objects ({form})"}
    return parse_lines(path, _items(path), parse_item, **options)


def _is_array(path: str) -> bool:
    with _reading(path), open(path, "rb") as file:
        return file.read(2**12).removeprefix(_MARK).lstrip().startswith(b"[")


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: expected a readable text file, got: {error.strerror or error}") from error


def _items(path: str) -> Iterator[tuple[int, tuple[Any, int]]]:
    """Line of each item of the array, from 1; the item and its column."""
    text = _decoded(path)
    line, begin, counted = 1, 0, 0  # line of the character `counted`, and where that line begins

    def place(index: int) -> tuple[int, int]:
        nonlocal line, begin, counted
        if breaks := text.count("\n", counted, index):
            line, begin = line + breaks, text.rfind("\n", counted, index) + 1
        counted = index
        return line, index - begin + 1

    def fail(index: int, got: str) -> UserError:
        row, column = place(index)
        return UserError(f"{path}:{row}:{column}: expected an array of JSON objects, got: {got}")

    index = _skip(text, text.index("[") + 1)
    while not text.startswith("]", index):
        where = place(index)
        try:
            value, end = JSON.raw_decode(text, index)
        except json.JSONDecodeError as error:
            raise fail(error.pos, error.msg) from error
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of more than 4300 digits
            raise fail(index, str(error)) from error
        yield where[0], (value, where[1])
        index = _skip(text, end)
        if text.startswith(",", index):
            index = _skip(text, index + 1)
        elif not text.startswith("]", index):
            raise fail(index, "no comma or bracket after an item")
    if (rest := _skip(text, index + 1)) < len(text):
        raise fail(rest, "text after the array")


def _skip(text: str, index: int) -> int:
    match = _BLANK.match(text, index)
    return index if match is None else match.end()


def _decoded(path: str) -> str:
    try:
        with _reading(path):
            return Path(path).read_bytes().removeprefix(_MARK).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: expected UTF-8, got byte 0x{error.object[error.start]:02x}") from error
