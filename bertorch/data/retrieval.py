"""Queries, the passages to find for them, and which are relevant: readers of the forms of evaluation data.

| form | what it is |
|---|---|
| folder | `corpus.jsonl`, `queries.jsonl` and `qrels.tsv` as BEIR has them |
| pairs | a file of `query⇥passage` lines; the passages of all lines are the corpus |

A passage is no result for the query that it is itself: in a folder one with the query's id, among pairs one with the
query's text. It is left out of what is relevant too. Queries without a relevant passage are left out and counted.

References:
    Thakur et al., BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation of Information Retrieval Models, 2021.
"""

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from loguru import logger

from bertorch.data.line_forms import parse_document
from bertorch.data.lines import BadLineError, read_rows, shorten, split_columns
from bertorch.data.numbering import in_first_order, numbered
from bertorch.data.readers import finite_number, has_two_columns
from bertorch.data.texts import Texts, columns_of
from bertorch.errors import UserError

CORPUS, QUERIES, QRELS = FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")  # of a folder
_HEADER = "query-id⇥corpus-id⇥score"
_PAIR = "query⇥passage"


@dataclass(frozen=True)
class RetrievalTexts:
    """Q queries, each with at least one relevant passage, and C passages in the order in which they first come."""

    queries: Texts  # Q of them
    passages: Texts  # C of them
    own: np.ndarray  # (Q,) int64, the passage that is the query itself; -1 without one
    relevant: np.ndarray  # (R, 2) int64, a query and a passage, in rising order
    grades: np.ndarray  # (R,) fp64, above 0
    is_kept: np.ndarray  # (queries of the file,) bool, of which Q are true


class RetrievalForm(NamedTuple):
    """A form of retrieval data."""

    recognises: Callable[[str], bool]  # whether a path has it
    read: Callable[..., RetrievalTexts]  # path, on_bad_line → the texts


def read_retrieval_files(corpus: str, queries: str, qrels: str, *, on_bad_line: str = "stop") -> RetrievalTexts:
    """Read a corpus and queries, a JSON object a line, and `query-id⇥corpus-id⇥score` lines under a header.

    A score above 0 is relevant, and is the grade.

    Raises:
        UserError: a file cannot be read, a line is malformed, an id or a pair of ids comes twice or is unknown, or no
            query has a relevant passage.
    """
    passage_ids, passages = _read_documents(corpus, has_title=True, on_bad_line=on_bad_line)
    query_ids, texts = _read_documents(queries, has_title=False, on_bad_line=on_bad_line)
    pairs, grades = _read_qrels(qrels, (query_ids, queries), (passage_ids, corpus), on_bad_line)
    own = np.fromiter((passage_ids.get(name, -1) for name in query_ids), np.int64, len(query_ids))
    _warn_of_other_texts(queries, list(query_ids), texts, passages, own)
    is_relevant = grades > 0
    return _with_relevant(qrels, (texts, passages), own, pairs[is_relevant], grades[is_relevant])


def read_retrieval_folder(path: str, *, on_bad_line: str = "stop") -> RetrievalTexts:
    """Read a folder with the three files, see `read_retrieval_files`."""
    missing = [name for name in FILES if not (Path(path) / name).exists()]
    if missing:
        hint = "; BEIR's folders have qrels/test.tsv: link it as qrels.tsv" if missing == [QRELS] else ""
        raise UserError(
            f"{path}: expected a file, or a folder with {', '.join(FILES)}, got one without {', '.join(missing)}{hint}"
        )
    return read_retrieval_files(*files_of(path), on_bad_line=on_bad_line)


def read_query_passages(path: str, *, on_bad_line: str = "stop") -> RetrievalTexts:
    """Read `query⇥passage` lines; equal texts are one query or passage, and all grades are 1.

    Raises:
        UserError: the file cannot be read, a line is malformed, or no query has a passage other than itself.
    """
    columns = columns_of(read_rows(path, lambda line: split_columns(line, 2, _PAIR), on_bad_line=on_bad_line))
    _, numbers = numbered(columns)  # (N, 2), equal for equal texts of both columns
    (queries, first_queries, of_lines), (passages, first_passages, to) = map(in_first_order, numbers.T)
    pairs = np.unique(np.stack([of_lines, to], axis=1), axis=0)  # (R, 2)
    passage_of = dict(zip(passages.tolist(), range(len(passages)), strict=True))
    own = np.fromiter((passage_of.get(number, -1) for number in queries.tolist()), np.int64, len(queries))
    texts = (_chosen(columns[0], first_queries), _chosen(columns[1], first_passages))
    return _with_relevant(path, texts, own, pairs, np.ones(len(pairs)))


FORMS = {
    "folder": RetrievalForm(os.path.isdir, read_retrieval_folder),
    "pairs": RetrievalForm(has_two_columns, read_query_passages),
}


def retrieval_form(path: str) -> RetrievalForm | None:
    """The form of a path; None if it has none of them, such as a file of `a⇥b⇥score` lines.

    Raises:
        UserError: it cannot be read.
    """
    return next((form for form in FORMS.values() if form.recognises(path)), None)


def files_of(path: str) -> list[str]:
    """The files that a path of data stands for: itself, or those of a folder."""
    return [str(Path(path) / name) for name in FILES] if os.path.isdir(path) else [path]


def _read_documents(path: str, *, has_title: bool, on_bad_line: str) -> tuple[dict[str, int], Texts]:
    """Index of each text by its id, and the texts."""
    indices: dict[str, int] = {}

    def parse(line: str) -> list[str]:
        name, text = parse_document(line, has_title=has_title)
        if name in indices:
            raise BadLineError(f"expected each _id once, got {shorten(name)} again")
        indices[name] = len(indices)
        return [text]

    (texts,) = columns_of(read_rows(path, parse, on_bad_line=on_bad_line))
    return indices, texts


def _read_qrels(
    path: str, queries: tuple[dict[str, int], str], passages: tuple[dict[str, int], str], on_bad_line: str
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (R, 2) int64 of a query and a passage, and their grades (R,); each as ids and the file that has them."""
    pairs, grades = array("q"), array("d")
    seen: set[tuple[int, int]] = set()
    has_header = False

    def index(name: str, ids: dict[str, int], file: str, column: str) -> int:
        if name not in ids:
            raise BadLineError(f"expected a {column} that {file} has, got {shorten(name)}")
        return ids[name]

    def parse(line: str) -> None:
        nonlocal has_header
        columns = split_columns(line, 3, _HEADER)
        if not has_header:
            has_header = True
            if columns != _HEADER.split("⇥"):
                raise BadLineError(f"expected the header {_HEADER}, got {shorten(line)}")
            return
        pair = index(columns[0], *queries, "query-id"), index(columns[1], *passages, "corpus-id")
        grade = finite_number(columns[2], form=_HEADER)
        if pair in seen:
            raise BadLineError(f"expected each pair of ids once, got {shorten(line)} again")
        seen.add(pair)
        pairs.extend(pair)
        grades.append(grade)

    for _ in read_rows(path, parse, on_bad_line=on_bad_line):
        pass
    return np.frombuffer(pairs, np.int64).reshape(-1, 2), np.frombuffer(grades, np.float64)


def _warn_of_other_texts(path: str, names: Sequence[str], queries: Texts, passages: Texts, own: np.ndarray) -> None:
    """Warn of passages that have the id of a query, (Q,) or -1, and another text: they may be no queries at all."""
    others = [name for name, query, passage in zip(names, queries, own.tolist(), strict=True)
              if passage >= 0 and query != passages[passage]]  # fmt: skip
    if others:
        logger.warning(
            "{}: queries whose id is also that of a passage with another text: {}, the first {}; such a passage counts "
            "as the query itself and is left out of what it finds; if it is another text, give it another id",
            path, len(others), shorten(others[0]),
        )  # fmt: skip


def _with_relevant(
    path: str, texts: tuple[Texts, Texts], own: np.ndarray, pairs: np.ndarray, grades: np.ndarray
) -> RetrievalTexts:
    """The queries that have a relevant passage beside their own; `path` is that of the pairs (R, 2)."""
    queries, passages = texts
    order = np.lexsort(pairs.T[::-1])
    order = order[pairs[order, 1] != own[pairs[order, 0]]]
    kept, of_pairs = np.unique(pairs[order, 0], return_inverse=True)  # (Q,), (R,)
    if not len(kept):
        raise UserError(f"{path}: expected a query with a relevant passage that is not the query itself, got none")
    is_kept = np.zeros(len(queries), np.bool_)
    is_kept[kept] = True
    if len(kept) < len(queries):
        logger.warning("{}: queries without a relevant passage are left out: {}", path, len(queries) - len(kept))
        queries = _chosen(queries, kept)
    relevant = np.stack([of_pairs, pairs[order, 1]], axis=1)
    return RetrievalTexts(queries, passages, own[kept], relevant, grades[order], is_kept)


def _chosen(texts: Texts, indices: np.ndarray) -> Texts:
    return columns_of([texts[index]] for index in indices.tolist())[0]
