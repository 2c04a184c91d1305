"""`out_of_fold.tsv`: what models that have not seen a training example say of it.

Tab-separated, with a header:

    number⇥label⇥fold⇥p:NAME…⇥text            a text (or a⇥b, a pair) a row, one probability column p:NAME a label
    number⇥label⇥fold⇥p:NAME…⇥token           a token a row, the rows of a sentence together

`number` is that of the example in the training file, from 1; `label` the one given there; `fold`, from 1, the part
whose model has not seen the example. The probabilities of a row have the sum 1. A tagger's rows are tokens: `number`
is then that of the sentence, NAME a tag, and the probability that of the tag alone, under a CRF the marginal one.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertorch.data.lines import BadLineError, cell, first_few, read_rows, shorten
from bertorch.errors import UserError
from bertorch.files import whole_output

OUT_OF_FOLD = "out_of_fold.tsv"
TEXTS: tuple[tuple[str, ...], ...] = (("text",), ("a", "b"), ("token",))  # names of the last columns
_FIRST = ["number", "label", "fold"]
_PROBABILITY = "p:"  # so that no label is taken for another column
_FORM = "number⇥label⇥fold⇥p:NAME…⇥text"
_DECIMALS = 6  # of a probability
_ROUNDING = 1e-3  # of their sum, or more where there are many


@dataclass(frozen=True)
class OutOfFold:
    """N training examples, or tokens of them, with the probabilities of models that have not seen them."""

    label_names: Sequence[str]  # C of them
    numbers: np.ndarray  # (N,) int64, of the examples in the training file, from 1
    labels: np.ndarray  # (N,) int64, given in the training file
    folds: np.ndarray  # (N,) int64, from 1
    probabilities: np.ndarray  # (N, C) fp64
    texts: dict[str, Sequence[str]]  # name in `TEXTS` → N texts

    @property
    def of_tokens(self) -> bool:
        """Whether a row is a token of a sentence."""
        return tuple(self.texts) == TEXTS[-1]


def write_out_of_fold(path: str, rows: OutOfFold, *, overwrite: bool) -> None:
    """Write the file atomically; a `UserError` if it exists and `overwrite` is false, or cannot be written."""
    header = [*_FIRST, *(_PROBABILITY + name for name in rows.label_names), *rows.texts]
    with whole_output(path, overwrite=overwrite) as file:
        file.write("\t".join(map(cell, header)) + "\n")
        numbers = zip(rows.numbers.tolist(), rows.labels.tolist(), rows.folds.tolist(), strict=True)
        for (number, label, fold), row, *texts in zip(numbers, rows.probabilities, *rows.texts.values(), strict=True):
            probabilities = [f"{value:.{_DECIMALS}f}" for value in row.tolist()]
            line = [str(number), rows.label_names[label], str(fold), *probabilities, *texts]
            file.write("\t".join(map(cell, line)) + "\n")


def read_out_of_fold(path: str) -> OutOfFold:
    """Read what `write_out_of_fold` wrote, or another program in this form.

    Raises:
        UserError: the file cannot be read, its header is another one, or a line is malformed: another number of
            columns, an unknown label, or numbers that are no probabilities.
    """
    names: list[str] = []
    ids: dict[str, int] = {}
    texts: dict[str, list[str]] = {}
    integers = {name: array("q") for name in _FIRST}
    probabilities: array[float] = array("d")

    def parse(line: str) -> None:
        columns = line.split("\t")
        if not texts:
            label_names, text_names = _parse_header(columns)
            names.extend(label_names)
            ids.update({name: index for index, name in enumerate(label_names)})
            texts.update({name: [] for name in text_names})
            return
        width = len(_FIRST) + len(names) + len(texts)
        if len(columns) != width:
            raise BadLineError(f"expected {width} columns as in the header, got {len(columns)}: {shorten(line)}")
        number, label, fold = columns[: len(_FIRST)]
        if label not in ids:
            raise BadLineError(f"expected one of the labels of the header ({first_few(names)}), got {shorten(label)}")
        values = (_counted(number, "number"), ids[label], _counted(fold, "fold"))
        row = _distribution(columns[len(_FIRST) : len(_FIRST) + len(names)])
        for column, value in zip(integers.values(), values, strict=True):
            column.append(value)
        probabilities.extend(row)
        for found, text in zip(texts.values(), columns[len(_FIRST) + len(names) :], strict=True):
            found.append(text)

    for _ in read_rows(path, parse, remedy="Write it again; docs/accuracy has its form."):
        pass
    if not probabilities:
        raise UserError(f"{Path(path)}: expected a row for each training example, got only the header")
    numbers, labels, folds = (np.frombuffer(column, np.int64) for column in integers.values())
    return OutOfFold(names, numbers, labels, folds, np.frombuffer(probabilities).reshape(-1, len(names)), dict(texts))


def _parse_header(columns: list[str]) -> tuple[list[str], tuple[str, ...]]:
    names = [column.removeprefix(_PROBABILITY) for column in columns if column.startswith(_PROBABILITY)]
    for text_names in TEXTS:
        if columns == [*_FIRST, *(_PROBABILITY + name for name in names), *text_names] and len(set(names)) > 1:
            if len(set(names)) < len(names):
                raise BadLineError(f"expected each label once in the header, got {first_few(names)}")
            return names, text_names
    raise BadLineError(f"expected the header {_FORM} (or …⇥a⇥b, …⇥token), got {shorten(chr(9).join(columns))}")


def _counted(column: str, name: str) -> int:
    if not (column.isascii() and column.isdigit() and 0 < len(column) < 19 and int(column)):
        raise BadLineError(f"expected a whole number from 1 on as {name}, got {shorten(column)}")
    return int(column)


def _distribution(columns: list[str]) -> list[float]:
    try:
        row = [float(column) for column in columns]
    except ValueError as error:
        raise BadLineError(f"expected probabilities, got {shorten(chr(9).join(columns))}") from error
    rounding = max(_ROUNDING, len(row) * 10**-_DECIMALS)
    if not (all(0 <= value <= 1 for value in row) and math.isclose(sum(row), 1, abs_tol=rounding)):
        raise BadLineError(f"expected probabilities whose sum is 1, got {shorten(chr(9).join(columns))}")
    return row
