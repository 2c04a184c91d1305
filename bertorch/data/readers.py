"""The files of texts: labels, labelled texts, scored pairs, sentences, pairs.

These have one tab between columns; `bertorch.data.tagged_sentences` reads JSON lines. `bertorch.data.lines` says what
happens to a malformed line.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bertorch.data.lines import BadLineError, read_rows, shorten, some, stream_rows
from bertorch.errors import UserError
from bertorch.files import require_file

# float() also takes digits of every script, underscores between them, "nan" and "infinity".
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# What no label has on purpose: it is invisible in every message, and another program would take it for a line's end.
NOT_IN_LABELS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_SHOWN_NEGATIVES = 3


@dataclass(frozen=True)
class LabelledTexts:
    """Texts or text pairs, each with a class or score.

    Attributes:
        columns: one list of N texts for single texts, two for pairs.
        labels: (N,), class ids in int64 or scores in float64.
    """

    columns: tuple[list[str], ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def read_label_names(path: str) -> list[str]:
    """Read a label file: one label a line, its line number from 0 is its id.

    Raises:
        UserError: a missing or empty file, fewer than two labels, an empty, repeated or undecodable one, or one with
            control characters.
    """
    first_line: dict[str, int] = {}

    def parse(line: str) -> str:
        label = line.strip()
        if NOT_IN_LABELS.search(label):
            raise BadLineError(f"expected a label without control characters, got {shorten(label)}")
        if label in first_line:
            raise BadLineError(
                f"expected each label once, got {shorten(label)} again, first on line {first_line[label]}"
            )
        first_line[label] = len(first_line) + 1
        return label

    labels = read_rows(path, parse, on_bad_line="stop", remedy="Mend the label file.")
    if len(labels) < 2:
        raise UserError(f"{path}: expected at least two labels, one a line, got only {shorten(labels[0])}")
    return labels


def read_labelled_texts(
    path: str, labels: Sequence[str], *, num_texts: int = 1, on_bad_line: str = "stop"
) -> LabelledTexts:
    """Read `text⇥label` lines, or `a⇥b⇥label` lines with `num_texts=2`.

    Args:
        path: the file.
        labels: the labels in the order of their ids.
        num_texts: text columns before the label, 1 or 2.
        on_bad_line: `stop` raises, `skip` drops malformed lines and logs how many.

    Raises:
        UserError: a missing or empty file, or malformed lines: a wrong number of columns, an unknown label, invalid
            UTF-8, an empty text.
    """
    ids = {label: index for index, label in enumerate(labels)}
    form = "⇥".join(("text",) if num_texts == 1 else ("a", "b")) + "⇥label"

    def parse(line: str) -> tuple[list[str], int]:
        *row, last = _columns(line, num_texts + 1, form)
        label = last.strip()
        if label not in ids:
            raise BadLineError(f"expected one of the labels ({some(labels)}), got {shorten(label)}")
        return row, ids[label]

    rows, ids_read = zip(*read_rows(path, parse, on_bad_line=on_bad_line), strict=True)
    return LabelledTexts(_transposed(rows), np.array(ids_read, dtype=np.int64))


def has_pairs(path: str) -> bool:
    """Whether a file of labelled texts has pairs: more lines with three columns than with two.

    Raises:
        UserError: a missing file, or what is no regular file.
    """
    require_file(path, "a readable text file")
    with open(path, "rb") as file:
        tabs = Counter(line.count(b"\t") for line in file)
    return tabs[2] > tabs[1]


def read_scored_pairs(path: str, *, on_bad_line: str = "stop") -> LabelledTexts:
    """Read `a⇥b⇥score` lines, as they are needed to correlate a similarity with the scores.

    Args:
        path: the file.
        on_bad_line: `stop` raises, `skip` drops malformed lines and logs how many.

    Raises:
        UserError: a missing or empty file, malformed lines (a wrong number of columns, a score that is no number,
            invalid UTF-8, an empty text), or scores that are all the same.
    """

    def parse(line: str) -> tuple[list[str], float]:
        *row, last = _columns(line, 3, "a⇥b⇥score")
        score = float(last) if _NUMBER.fullmatch(last.strip()) else math.nan
        if not math.isfinite(score):
            raise BadLineError(f"expected a number as score (a⇥b⇥score), got {shorten(last)}")
        return row, score

    rows, scores = zip(*read_rows(path, parse, on_bad_line=on_bad_line), strict=True)
    if min(scores) == max(scores):
        raise UserError(f"{path}: expected scores that differ, to correlate with, got only {scores[0]:g}")
    return LabelledTexts(_transposed(rows), np.array(scores, dtype=np.float64))


def read_sentences(path: str, *, on_bad_line: str = "stop") -> list[str]:
    """Read one sentence a line.

    Args:
        path: the file.
        on_bad_line: `stop` raises, `skip` drops malformed lines and logs how many.

    Raises:
        UserError: a missing or empty file, or malformed lines: a tab, invalid UTF-8, an empty line.
    """

    def parse(line: str) -> str:
        return _columns(line, 1, "sentence")[0]

    return read_rows(path, parse, on_bad_line=on_bad_line)


def stream_texts(path: str, *, num_texts: int) -> Iterator[tuple[str, ...]]:
    """Read `text` lines, or `a⇥b` lines with `num_texts=2`, one after the other.

    Args:
        path: the file, or `-` for what is piped in.
        num_texts: columns of a line; 0 takes as many as the first line has, one or two.

    Raises:
        UserError: a missing or empty file, or a malformed line: a wrong number of columns, invalid UTF-8, an empty
            text.
    """

    def parse(line: str) -> tuple[str, ...]:
        nonlocal num_texts
        num_texts = num_texts or min(2, line.count("\t") + 1)
        return tuple(_columns(line, num_texts, "text" if num_texts == 1 else "a⇥b"))

    return stream_rows(path, parse)


def read_pairs(path: str, *, on_bad_line: str = "stop") -> tuple[list[str], ...]:
    """Read `anchor⇥positive` lines, or `anchor⇥positive⇥negative…` with the same number of hard negatives on each.

    Args:
        path: the file.
        on_bad_line: `stop` raises, `skip` drops malformed lines and logs how many.

    Returns:
        A list of N texts for each column.

    Raises:
        UserError: a missing or empty file, or malformed lines: fewer than two columns, another number than on the
            first good line, invalid UTF-8, an empty text.
    """
    width = 0

    def parse(line: str) -> list[str]:
        nonlocal width
        found = line.count("\t") + 1
        if found < 2:
            raise BadLineError(f"expected at least 2 columns (anchor⇥positive), got 1: {shorten(line)}")
        columns = _columns(line, width or found, _form_of_pairs(width or found))
        width = found
        return columns

    return _transposed(read_rows(path, parse, on_bad_line=on_bad_line))


def _form_of_pairs(width: int) -> str:
    negatives = width - 2
    return "anchor⇥positive" + "⇥negative" * min(negatives, _SHOWN_NEGATIVES) + "…" * (negatives > _SHOWN_NEGATIVES)


def _transposed(rows: Sequence[list[str]]) -> tuple[list[str], ...]:
    return tuple([row[column] for row in rows] for column in range(len(rows[0])))


def _columns(line: str, expected: int, form: str) -> list[str]:
    columns = line.split("\t")
    if len(columns) != expected:
        noun = "column" if expected == 1 else "columns"
        raise BadLineError(f"expected {expected} {noun} ({form}), got {len(columns)}: {shorten(line)}")
    if any(not column.strip() for column in columns):
        raise BadLineError(f"expected no empty column ({form}), got {shorten(line)}")
    return columns
