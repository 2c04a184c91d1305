"""Files in the scripts' own forms, line by line: what all that sorts, splits and compares such files shares."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bertorch.data.lines import BadLineError, cell, read_numbered_rows, shorten
from bertorch.data.tagged_sentences import parse_tagged
from bertorch.errors import UserError

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
MEND = "Mend them in the file; nothing was written."


@dataclass(frozen=True)
class Example:
    """One line.

    Attributes:
        number: of the line, from 1.
        line: as it stands in the file.
        texts: what makes two examples the same: the text columns, or the tokens.
        labels: the label column, or the tags; empty where there is none.
    """

    number: int
    line: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]


def columns_line(columns: Sequence[str]) -> str:
    """A line of columns; tabs and line breaks within them, which such a line cannot hold, become a space.

    Raises:
        BadLineError: an empty column.
    """
    for column in columns:
        if not column.strip():
            raise BadLineError(f"expected no empty text or label, got {shorten(' | '.join(columns))}")
    return "\t".join(cell(column) for column in columns)


def read_examples(path: str, texts: int | None = None) -> list[Example]:
    """Read JSON lines of tagged sentences, or lines of columns.

    Args:
        path: the file; JSON lines if its first line begins with a brace and has no tab.
        texts: how many columns are texts, those behind them being labels; by default all but the last, and the only one
            if there is only one.

    Raises:
        UserError: a missing or empty file, or malformed lines: another number of columns than in the first line.
    """
    is_json = False
    width = 0

    def parse(line: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        nonlocal is_json, width
        if not width:
            is_json = line.lstrip().startswith("{") and "\t" not in line
            width = 1 if is_json else line.count("\t") + 1
        if is_json:
            tokens, tags = parse_tagged(line)
            return line, tuple(tokens), tuple(tags)
        columns = line.split("\t")
        if len(columns) != width:
            raise BadLineError(f"expected {width} columns as in the first line, got {len(columns)}: {shorten(line)}")
        if any(not column.strip() for column in columns):
            raise BadLineError(f"expected no empty column, got {shorten(line)}")
        kept = max(width - 1, 1) if texts is None else texts
        return line, tuple(columns[:kept]), tuple(column.strip() for column in columns[kept:])

    rows = read_numbered_rows(path, parse, on_bad_line="stop", remedy=MEND)
    if texts is not None and (is_json or texts > width):
        got = "JSON lines" if is_json else f"{width}"
        raise UserError(f"{path}: expected lines with at least {texts} columns, as --texts has it, got {got}")
    return [Example(number, *row) for number, row in rows]


def collect_labels(examples: Sequence[Example], order: str) -> list[str]:
    """The labels or tags of examples, for a label file.

    Args:
        examples: of one or several files.
        order: `sorted` (O first, then numbers by their value), `first` (as they first come) or `frequency` (the most
            frequent first, of the equally frequent the one that comes first).
    """
    counts = Counter(label for example in examples for label in example.labels)
    if order == "first":
        return list(counts)
    if order == "frequency":
        return [label for label, _ in counts.most_common()]
    return sorted(counts, key=_place)


def _place(label: str) -> tuple[bool, float, str]:
    return label != "O", float(label) if _NUMBER.fullmatch(label) else math.inf, label
