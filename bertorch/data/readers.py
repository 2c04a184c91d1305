"""Readers of text files with one tab between columns: label files, labelled texts, scored pairs, sentences, pairs.

Texts with something beside them may also be JSON lines, see `bertorch.data.line_forms`: the first line decides.

All raise a `UserError` for a missing or empty file and for malformed lines: another number of columns, an empty one,
invalid UTF-8, or what a function names. `on_bad_line="skip"` skips such lines, see `bertorch.data.lines`.
"""

import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bertorch.data.line_forms import (
    LINE_FORMS,
    LineForm,
    has_texts,
    is_pair,
    parse_group,
    parse_input,
    parse_labelled_object,
)
from bertorch.data.lines import BadLineError, first_few, first_object, read_rows, shorten, split_columns, stream_rows
from bertorch.data.texts import Texts, columns_of
from bertorch.errors import UserError

# float() also takes digits of every script, underscores between them, "nan" and "infinity".
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# Invisible characters are never intended in a label, and other programs take some of them for the end of a line.
NOT_IN_LABELS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_SHOWN_NEGATIVES = 3

Row = TypeVar("Row")


@dataclass(frozen=True)
class LabelledTexts:
    """N texts, pairs or rows of more texts, each with a class, a score, or several numbers."""

    columns: tuple[Texts, ...]  # of N texts each: one, two for pairs, or more
    labels: np.ndarray  # (N, …), such as class ids (N,) in int64 or scores (N,) in float64


class Target(NamedTuple):
    """What becomes of the target of a line: labels (N, *shape).

    A conversion gives a number, or for a `shape` its numbers, or raises a `BadLineError`.
    """

    dtype: type[np.number]
    of_column: Callable[[str], Any]
    of_json: Callable[[Any], Any]  # from what the form's `value` lets through
    shape: tuple[int, ...] = ()
    may_be_blank: bool = False  # whether the column may be


def read_label_names(path: str, *, least: int = 2) -> list[str]:
    """Read a label file: one label a line, its line number from 0 is its id.

    Raises:
        UserError: fewer than `least` labels, one or two, an empty or repeated one, or one with control characters.
    """
    first_line: dict[str, int] = {}

    def parse(line: str) -> str:
        name = line.strip()
        if NOT_IN_LABELS.search(name):
            raise BadLineError(f"expected a label without control characters, got {shorten(name)}")
        if name in first_line:
            raise BadLineError(f"expected each label once, got {shorten(name)} again, first on line {first_line[name]}")
        first_line[name] = len(first_line) + 1
        return name

    names = list(read_rows(path, parse, remedy="Fix the label file."))
    if len(names) < least:
        raise UserError(f"{path}: expected at least two labels, one a line, got only {shorten(names[0])}")
    return names


def read_labelled_texts(
    path: str, label_names: Sequence[str], *, num_texts: int = 1, on_bad_line: str = "stop", other_labels: str = ""
) -> LabelledTexts:
    """Read `text⇥label` lines, or `a⇥b⇥label` lines with `num_texts=2`; label ids are indices of `label_names`.

    `other_labels` is what to do about labels beside these; the error of one ends with it.
    """
    ids = {name: index for index, name in enumerate(label_names)}

    def label_id(column: str) -> int:
        name = column.strip()
        if name not in ids:
            expected = f"expected one of the labels ({first_few(label_names)})"
            raise BadLineError(f"{expected}, got {shorten(name)}{other_labels}")
        return ids[name]

    form, target = LINE_FORMS["single_label", num_texts], Target(np.int64, label_id, label_id)
    wider = "; lines of a⇥b⇥label need --is_text_pair" if num_texts == 1 else ""
    return read_with_targets(path, form, target, on_bad_line=on_bad_line, wider=wider)


def has_pairs(path: str) -> bool:
    """Whether a file of labelled texts has pairs: more lines with three columns than with two, or a first JSON line."""
    first = first_object(path)
    if first is not None:
        return is_pair(first)
    tabs = _tabs(path)
    return tabs[2] > tabs[1]


def has_two_columns(path: str) -> bool:
    """Whether a file has more lines with two columns than with three; not if its first line is a JSON object."""
    if first_object(path) is not None:
        return False
    tabs = _tabs(path)
    return tabs[1] > tabs[2]


def _tabs(path: str) -> Counter[int]:
    """How many lines have how many tabs."""
    with open(path, "rb") as file:
        return Counter(line.count(b"\t") for line in file)


def read_scored_pairs(
    path: str, *, on_bad_line: str = "stop", bounds: tuple[float, float] | None = None, to_learn: bool = False
) -> LabelledTexts:
    """Read `a⇥b⇥score` lines; scores are finite decimal numbers.

    They are not all the same, as they are to be correlated, unless a model is `to_learn` them: other files may have
    others. With `bounds` one below the first or above the second is an error of its line, which names `--score_range`.
    """
    form = LINE_FORMS["score", 2]
    pairs = read_with_targets(path, form, scores_of(form, bounds), on_bad_line=on_bad_line)
    if not to_learn:
        require_different_scores(pairs.labels, path)
    return pairs


def require_different_scores(scores: np.ndarray, path: str) -> None:
    """Raise a `UserError` if the scores (N,) of a file are all the same: there is nothing to correlate with."""
    if scores.min() == scores.max():
        raise UserError(f"{path}: expected scores that differ, to correlate with, got only {scores[0]:g}")


def scores_of(form: LineForm, bounds: tuple[float, float] | None = None) -> Target:
    """Numbers, in fp64, within the `bounds` of `--score_range` if there are some."""
    low, high = bounds or (-math.inf, math.inf)

    def within(score: float) -> float:
        if not low <= score <= high:
            raise BadLineError(f"expected a score from {low:g} to {high:g} (--score_range), got {score:g}")
        return score

    def of_column(column: str) -> float:
        return within(finite_number(column, form=form.columns))

    return Target(np.float64, of_column, lambda value: within(float(value)))


def finite_number(column: str, *, form: str) -> float:
    """A finite decimal number in a column of lines of this form; a `BadLineError` if it is none."""
    value = float(column) if _NUMBER.fullmatch(column.strip()) else math.nan
    if not math.isfinite(value):
        raise BadLineError(f"expected a number as {form.rsplit('⇥', maxsplit=1)[-1]} ({form}), got {shorten(column)}")
    return value


def read_with_targets(path: str, form: LineForm, target: Target, *, on_bad_line: str, wider: str = "") -> LabelledTexts:
    """The texts of a file of lines of this form, and what stands beside them as labels (N, *shape).

    `wider` ends the error of a line with one column more.
    """
    targets: array[Any] = array(np.dtype(target.dtype).char)
    add = targets.extend if target.shape else targets.append
    names, convert, may_be_blank = form.columns, target.of_column, target.may_be_blank
    width = names.count("⇥") + 1

    def parse(line: str) -> list[str]:
        *texts, column = split_columns(line, width, names, wider, last_may_be_blank=may_be_blank)
        add(convert(column))
        return texts

    def parse_json(line: str) -> list[str]:
        texts, converted = parse_labelled_object(line, form, target.of_json)
        add(converted)
        return texts

    columns = columns_of(read_rows(path, parse, parse_json, on_bad_line=on_bad_line))
    return LabelledTexts(columns, np.frombuffer(targets, target.dtype).reshape(-1, *target.shape))


def read_sentences(path: str, **options: str) -> Texts:
    """Read one sentence a line, without tabs; an object of JSON with texts is no sentence. See `parse_lines`."""

    def parse(line: str) -> list[str]:
        return split_columns(line, 1, "sentence")

    return columns_of(read_rows(path, parse, partial(_unless_json, parse), **options))[0]


def stream_texts(path: str, *, num_texts: int, may_be_json: bool = False) -> Iterator[tuple[str, ...]]:
    """Read `text`, `a⇥b` or longer lines one by one; for `num_texts=0` as the first one is.

    See `stream_rows` for errors. If they `may_be_json`, a first line that is a JSON object says that all are.
    """

    def parse(line: str) -> tuple[str, ...]:
        nonlocal num_texts
        num_texts = num_texts or min(2, line.count("\t") + 1)
        form = {1: "text", 2: "a⇥b"}.get(num_texts) or "⇥".join(["text"] * num_texts)
        return tuple(split_columns(line, num_texts, form))

    def parse_json(line: str) -> tuple[str, ...]:
        nonlocal num_texts
        texts = parse_input(line, num_texts)
        num_texts = len(texts)
        return texts

    return stream_rows(path, parse, parse_json if may_be_json else partial(_unless_json, parse))


def _unless_json(parse: Callable[[str], Row], line: str) -> Row:
    """What a line is parsed to, unless it is an object of JSON with texts, which would be taken whole for a text."""
    if has_texts(line):
        raise BadLineError(f"expected plain texts, which JSON lines are not here, got {shorten(line)}")
    return parse(line)


def read_pairs(
    path: str, *, on_bad_line: str = "stop", first: str = "anchor", may_be_json: bool = False
) -> tuple[Texts, ...]:
    """Read `anchor⇥positive` lines, or `anchor⇥positive⇥negative…` with as many negatives as the first good line.

    `first` is what errors call the first column. If they `may_be_json`, they may be the JSON lines of groups.
    """
    width = 0

    def parse(line: str) -> list[str]:
        nonlocal width
        found = line.count("\t") + 1
        if found < 2:
            raise BadLineError(f"expected at least 2 columns ({first}⇥positive), got 1: {shorten(line)}")
        negatives = (width or found) - 2
        form = f"{first}⇥positive" + "⇥negative" * min(negatives, _SHOWN_NEGATIVES)
        columns = split_columns(line, width or found, form + "…" * (negatives > _SHOWN_NEGATIVES))
        width = found
        return columns

    def parse_json(line: str) -> list[str]:
        nonlocal width
        columns = parse_group(line, max(width - 2, 0))
        width = len(columns)
        return columns

    return columns_of(read_rows(path, parse, parse_json if may_be_json else None, on_bad_line=on_bad_line))
