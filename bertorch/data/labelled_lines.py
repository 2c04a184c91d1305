"""What a line of `run_classifier.py` has for each problem type, and what becomes of it.

The names of columns, and of keys in JSON, are in `bertorch.data.line_forms`. All readers raise a `UserError` for a
missing or empty file and for malformed lines; `on_bad_line="skip"` skips such lines, see `bertorch.data.lines`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from loguru import logger

from bertorch.data.line_forms import LINE_FORMS, LineForm
from bertorch.data.lines import BadLineError, first_few, shorten
from bertorch.data.numbering import numbered
from bertorch.data.readers import (
    LabelledTexts,
    Target,
    finite_number,
    read_labelled_texts,
    read_pairs,
    read_with_targets,
    require_different_scores,
    scores_of,
)
from bertorch.data.texts import columns_of
from bertorch.errors import UserError


def read_labelled(
    path: str,
    form: str,
    *,
    label_names: Sequence[str],
    num_texts: int,
    label_separator: str = ",",
    on_bad_line: str = "stop",
) -> LabelledTexts:
    """Read texts, or pairs with `num_texts=2`, with what `form` has beside them.

    | form | line | labels |
    |---|---|---|
    | single_label | `text⇥label` | (N,) int64, indices of `label_names` |
    | multi_label | `text⇥a,b`, or `text⇥` without a label | (N, C) uint8, 1 for each label of the text |
    | score | `text⇥score` | (N,) fp64 |
    | different_scores | the same, and not all scores are equal | (N,) fp64 |
    | ranking | `query⇥candidate⇥relevance` | (N, 2) fp64, the relevance and the number of the query from 0 |
    | groups | `query⇥positive⇥negative…` | (N,) int64, the index of the right candidate: 0 |

    If the first line is a JSON object, all are: `{"text": …, "label": …}`, see `LINE_FORMS`. The columns of groups are
    those of the lines; those of the other forms are texts or pairs.

    Raises:
        UserError: see above; of `ranking` also if no query has a relevant candidate.
    """
    if form == "single_label":
        return read_labelled_texts(path, label_names, num_texts=num_texts, on_bad_line=on_bad_line)
    if form == "different_scores":
        read = read_labelled(path, "score", label_names=(), num_texts=num_texts, on_bad_line=on_bad_line)
        require_different_scores(read.labels, path)
        return read
    if form == "groups":
        return _read_groups(path, on_bad_line)
    line_form = LINE_FORMS[form, num_texts]
    if form == "ranking":
        return _read_candidates(path, line_form, on_bad_line)
    target = scores_of(line_form) if form == "score" else _label_sets(label_names, label_separator)
    wider = f"; lines of {LINE_FORMS[form, 2].columns} need --is_text_pair" if num_texts == 1 else ""
    return read_with_targets(path, line_form, target, on_bad_line=on_bad_line, wider=wider)


def require_separable(label_names: Sequence[str], separator: str, path: str) -> None:
    """Raise a `UserError` if labels of a label file cannot be told apart with this between them."""
    for number, name in enumerate(label_names, start=1):
        if (name + separator).find(separator) < len(name):  # behind `a-`, `--` would be found a character too early
            expected = f"without {separator!r}" if separator in name else f"that does not end as {separator!r} begins"
            raise UserError(
                f"{path}:{number}: expected a label {expected}, which separates the labels of a text, got "
                f"{shorten(name)}; choose another --label_separator"
            )


def _label_sets(label_names: Sequence[str], separator: str) -> Target:
    ids = {name: index for index, name in enumerate(label_names)}

    def row_of(names: Sequence[str]) -> bytearray:
        row = bytearray(len(ids))
        for name in map(str.strip, names):
            if name not in ids:
                raise BadLineError(f"expected labels of the label file ({first_few(label_names)}), got {shorten(name)}")
            row[ids[name]] = 1
        return row

    def of_column(column: str) -> bytearray:
        column = column.strip()  # white space at its ends separates nothing, even if it is the separator
        return row_of(column.split(separator) if column else ())

    return Target(np.uint8, of_column, row_of, shape=(len(ids),), may_be_blank=True)


def _relevances(form: LineForm) -> Target:
    def converted(shown_form: str) -> Callable[[str], float]:
        def convert(column: str) -> float:
            relevance = finite_number(column, form=form.columns)
            if relevance < 0:
                raise BadLineError(f"expected a relevance of at least 0 ({shown_form}), got {shorten(column)}")
            return relevance

        return convert

    return Target(np.float64, converted(form.columns), converted(form.sample))


def _read_candidates(path: str, form: LineForm, on_bad_line: str) -> LabelledTexts:
    read = read_with_targets(path, form, _relevances(form), on_bad_line=on_bad_line)
    _, numbers = numbered(read.columns[:1])  # (N, 1)
    queries, relevances = numbers[:, 0], read.labels  # (N,) each
    best = np.zeros(queries.max() + 1)  # (queries,)
    np.maximum.at(best, queries, relevances)
    kept = np.flatnonzero(best[queries] > 0)
    if not len(kept):
        raise UserError(f"{path}: expected queries with a relevant candidate ({form.columns} above 0), got none")
    columns: Sequence[Any] = read.columns
    if len(kept) < len(queries):
        logger.warning("{}: queries without a relevant candidate are left out: {}", path, int((best == 0).sum()))
        columns = columns_of([column[index] for column in read.columns] for index in kept.tolist())
    return LabelledTexts(tuple(columns), np.stack([relevances, queries], axis=1)[kept])


def _read_groups(path: str, on_bad_line: str) -> LabelledTexts:
    columns = read_pairs(path, on_bad_line=on_bad_line, first="query", may_be_json=True)
    if len(columns) < 3:
        raise UserError(f"{path}: expected at least 3 columns (query⇥positive⇥negative…), got 2: nothing to rank")
    return LabelledTexts(columns, np.zeros(len(columns[0]), np.int64))
