"""CSV with a header, the form in which spreadsheets and data collections publish texts."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch.data.lines import LONGEST_LINE, BadLineError, first_few, parse_lines, shorten
from bertorch.errors import UserError
from bertorch.files import require_file
from bertorch.prepare.examples import REMEDY_OF_ROWS, columns_line

# Files with tabs are usually written without quotes; a quotation mark is part of the text there.
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


def convert_table(
    path: str,
    columns: Sequence[str],
    *,
    delimiter: str,
    encoding: str,
    labels: Mapping[str, str],
    on_bad_row: str = "stop",
) -> list[str]:
    """Pick columns of a CSV file, named by its first row, in this order.

    `delimiter` is a name of `DELIMITERS`; a byte-order mark is fine in any `encoding`. `labels`, unless empty, replace
    the values of the last column. `on_bad_row` "skip" leaves malformed rows out and logs how many.

    Raises:
        UserError: a missing or empty file, a column that it does not have, bytes that are not of the encoding, or
            malformed rows: another number of cells than in the header, an empty text, a value that `labels` lacks.
    """
    rows = _rows(path, delimiter, encoding)
    first = next(rows, (1, []))[1]
    header = [] if isinstance(first, csv.Error) else [name.strip() for name in first]
    if any(header.count(name) != 1 for name in columns):
        got = first_few(header) or "none"
        raise UserError(f"{path}:1: expected a header with {first_few(columns)}, each once, got {got}")
    indices = [header.index(name) for name in columns]

    def parse(cells: list[str] | csv.Error) -> str:
        if isinstance(cells, csv.Error):
            raise BadLineError(f"expected a row of CSV, got: {cells}")
        if len(cells) != len(header):
            raise BadLineError(f"expected {len(header)} cells as in the header, got {len(cells)}")
        picked = [cells[index] for index in indices]
        if labels:
            value = picked[-1].strip()
            if value not in labels:
                expected = f"one of the values of --map_label ({first_few(list(labels))})"
                raise BadLineError(f"expected {expected}, got {shorten(value)}")
            picked[-1] = labels[value]
        return columns_line(picked)

    filled = (row for row in rows if row[1])  # a blank line has no cells
    options = {"on_bad_line": on_bad_row, "expected": "rows under the header"}
    return [line for _, line in parse_lines(path, filled, parse, remedy=REMEDY_OF_ROWS, **options)]


def _rows(path: str, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The first line of each row, from 1, and its cells, or what is wrong with it.

    After a malformed row it goes on at the next line: a quotation mark that is never closed costs no other row. Only
    lines up to the next odd number of quotation marks that are no rows by themselves are the rest of the malformed one.
    A cell over lines that could be rows is told as a warning.
    """
    csv.field_size_limit(LONGEST_LINE)
    lines = _content(path, encoding).split("\n")
    quoting = csv.QUOTE_NONE if delimiter == "tab" else csv.QUOTE_MINIMAL
    form: dict[str, Any] = {"delimiter": DELIMITERS[delimiter], "quoting": quoting, "strict": delimiter != "tab"}
    first = 0  # line of the next row, from 0
    width = 0  # cells of the header
    swallowing: list[int] = []  # lines of rows in whose cells there are lines that look like rows
    while first < len(lines):
        start = first
        reader = csv.reader((f"{lines[index]}\n" for index in range(start, len(lines))), **form)
        try:
            for cells in reader:
                width = width or len(cells)
                end = start + reader.line_num
                if any(_width(line, form) == width > 1 for line in lines[first + 1 : end - 1]):
                    swallowing.append(first + 1)
                yield first + 1, cells
                first = end
        except csv.Error as error:
            yield first + 1, error
            first += 1
            for rest in range(first, _end_of_cell(lines, first, width, form)):
                yield rest + 1, csv.Error("the rest of a malformed row")
                first = rest + 1
    if swallowing:
        logger.warning(
            "{}:{}: a cell goes on over lines that look like rows; {} such rows in all: is a quotation mark missing or "
            "one too many?",
            path,
            swallowing[0],
            len(swallowing),
        )


def _end_of_cell(lines: Sequence[str], first: int, width: int, form: dict[str, Any]) -> int:
    """The line after the cell that a malformed row, the line before `first`, leaves open; `first` if it leaves none."""
    if _is_balanced(lines[first - 1]):
        return first
    for index in range(first, len(lines)):
        if not _is_balanced(lines[index]):
            return index + 1
        if _width(lines[index], form) == width:
            break
    return first


def _is_balanced(line: str) -> bool:
    return line.count('"') % 2 == 0


def _width(line: str, form: dict[str, Any]) -> int | None:
    """The cells of a line that is a row by itself; None if it is none."""
    try:
        return len(next(csv.reader([line], **form), []))
    except csv.Error:
        return None


def _content(path: str, encoding: str) -> str:
    require_file(path, "a readable CSV file")
    try:
        return Path(path).read_bytes().decode(encoding).removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"{path}: expected a readable CSV file, got: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{error.object[error.start]:02x}; name another --encoding, such as gb18030"
        raise UserError(f"{path}:{line}: expected {encoding}, got {got}") from error
    except (LookupError, UnicodeError) as error:
        raise UserError(f"--encoding: expected an encoding of text that Python knows, got {encoding!r}") from error
