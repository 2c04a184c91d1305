"""CSV with a header, as spreadsheets and data collections publish texts."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bertorch.data.lines import LONGEST_LINE, SHOWN_FLAWS, BadLineError, shorten, some
from bertorch.errors import UserError
from bertorch.files import require_file
from bertorch.prepare.examples import MEND, columns_line

# Files with tabs are written without quotes as a rule, and then a quotation mark is part of the text.
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


def convert_table(
    path: str, columns: Sequence[str], *, delimiter: str, encoding: str, labels: Mapping[str, str]
) -> list[str]:
    """Pick columns of a CSV file.

    Args:
        path: the file; its first row names the columns.
        columns: those to write, in this order.
        delimiter: a name of `DELIMITERS`.
        encoding: of the file; a byte-order mark is fine.
        labels: value of the last column → label to write instead. If there are any, each value must be among them.

    Raises:
        UserError: a missing or empty file, a column that it does not have, bytes that are not of the encoding, or
            malformed rows: another number of cells than in the header, an empty text, a value without label.
    """
    rows = _rows(path, delimiter, encoding)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    missing = [name for name in columns if header.count(name) != 1]
    if missing:
        raise UserError(f"{path}:1: expected a header with {some(columns)}, each once, got {some(header) or 'none'}")
    places = [header.index(name) for name in columns]
    lines = []
    flaws = []
    for number, cells in rows:
        if not cells:
            continue  # the csv module's word for a blank line
        try:
            lines.append(_picked(cells, places, width=len(header), labels=labels))
        except BadLineError as flaw:
            flaws.append(f"{path}:{number}: {flaw}")
    if flaws:
        raise UserError("\n".join([f"{path}: malformed rows: {len(flaws)}", *flaws[:SHOWN_FLAWS], MEND]))
    if not lines:
        raise UserError(f"{path}: expected rows under the header, got none")
    return lines


def _picked(cells: Sequence[str], places: Sequence[int], *, width: int, labels: Mapping[str, str]) -> str:
    """The line of a row."""
    if len(cells) != width:
        raise BadLineError(f"expected {width} cells as in the header, got {len(cells)}")
    columns = [cells[place] for place in places]
    if labels:
        value = columns[-1].strip()
        if value not in labels:
            raise BadLineError(
                f"expected one of the values of --map_label ({some(list(labels))}), got {shorten(value)}"
            )
        columns[-1] = labels[value]
    return columns_line(columns)


def _rows(path: str, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The first line of each row, from 1, and its cells."""
    require_file(path, "a readable CSV file")
    mark = DELIMITERS[delimiter]
    try:
        content = Path(path).read_bytes().decode(encoding).removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"{path}: expected a readable CSV file, got: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: expected {encoding}, got byte 0x{error.object[error.start]:02x}; name another --encoding, "
            "such as gb18030"
        ) from error
    except (LookupError, UnicodeError) as error:
        raise UserError(f"--encoding: expected an encoding of text that Python knows, got {encoding!r}") from error
    csv.field_size_limit(LONGEST_LINE)
    lines = (f"{line}\n" for line in content.split("\n"))
    if mark == "\t":
        reader = csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=mark, strict=True)
    number = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{number}: expected a row of CSV, got: {error}") from error
        yield number, cells
        number = reader.line_num + 1
