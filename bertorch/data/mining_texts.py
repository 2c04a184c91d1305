"""Pairs whose hard negatives are sought, and the passages among which they are."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
from loguru import logger

from bertorch.data.numbering import in_first_order, numbered
from bertorch.data.readers import read_pairs, read_sentences
from bertorch.data.texts import Texts, columns_of


@dataclass(frozen=True)
class MiningTexts:
    """N pairs of a query and its positive, Q distinct queries, C distinct passages of the corpus; equal texts are one.

    Of the numbers of texts those below C are of the corpus, and those below D are of the corpus or of positives.
    """

    texts: Texts  # M distinct ones
    corpus_size: int  # C
    passage_count: int  # D
    pairs: np.ndarray  # (N, 2) int64, the numbers of query and positive
    queries: np.ndarray  # (Q,) int64, the numbers of the queries as they first come
    query_of_pairs: np.ndarray  # (N,) int64, from 0 to Q
    # (X, 2) int64, rising: a query, from 0 to Q, and a passage of the corpus that is no negative for it: one that some
    # line pairs with it, in either order, or that is the query itself.
    known: np.ndarray

    def known_of(self, first: int, end: int) -> np.ndarray:
        """The rows (X′, 2) of `known` of the queries `first : end`."""
        low, high = np.searchsorted(self.known[:, 0], [first, end])
        return self.known[low:high]


def read_mining_texts(path: str, corpus: str | None) -> MiningTexts:
    """Read `query⇥positive` lines, whose further columns are left out, and a passage a line, or None for the positives.

    Raises:
        UserError: a file cannot be read, or a line is malformed.
    """
    queries, positives, *others = read_pairs(path, first="query")
    if others:
        logger.info("{}: the negatives that it has are replaced: {} on each line", path, len(others))
    passages = [] if corpus is None else [read_sentences(corpus)]
    in_order = chain(*passages, positives, queries)  # so the first numbers are those of the corpus
    distinct, (*_, rows) = _numbered(in_order)
    size = len(queries)
    of_corpus = rows[: len(rows) - 2 * size] if passages else rows[:size]
    pairs = np.stack([rows[-size:], rows[-2 * size : -size]], axis=1)  # (N, 2)
    corpus_size = int(of_corpus.max()) + 1
    numbers, _, query_of_pairs = in_first_order(pairs[:, 0])
    return MiningTexts(
        distinct,
        corpus_size,
        max(corpus_size, int(pairs[:, 1].max()) + 1),
        pairs,
        numbers,
        query_of_pairs,
        _known(pairs, numbers, query_of_pairs, corpus_size),
    )


def _numbered(texts: "chain[str]") -> tuple[Texts, list[np.ndarray]]:
    """The distinct texts as they first come, and the number of each text, (all,) int64, as the only column."""
    distinct, rows = numbered(columns_of([text] for text in texts))
    return columns_of([text] for text in distinct)[0], list(rows.T)


def _known(pairs: np.ndarray, queries: np.ndarray, query_of_pairs: np.ndarray, corpus_size: int) -> np.ndarray:
    """`MiningTexts.known`."""
    index = np.full(int(pairs.max()) + 1, -1)  # number of a text → from 0 to Q; -1 of what is no query
    index[queries] = np.arange(len(queries))
    forth = np.stack([query_of_pairs, pairs[:, 1]], axis=1)  # (N, 2)
    back = np.stack([index[pairs[:, 1]], pairs[:, 0]], axis=1)  # (N, 2)
    itself = np.stack([np.arange(len(queries)), queries], axis=1)  # (Q, 2)
    known = np.concatenate([forth, back[back[:, 0] >= 0], itself])
    return np.unique(known[known[:, 1] < corpus_size], axis=0)
