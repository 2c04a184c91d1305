"""Pairs whose hard negatives are sought, and the passages among which they are."""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from bertorch.data.lines import read_rows, split_columns
from bertorch.data.numbering import in_first_order, numbered
from bertorch.data.readers import read_sentences
from bertorch.data.texts import Texts, columns_of

_WIDER = "; leave labels, scores and earlier negatives out, and pairs that do not match"


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
    # (X,) int64, end to end for each query: the passages of the corpus, rising, that are no negatives for it. Some line
    # pairs them with it, in either order, or they are the query itself.
    known: np.ndarray
    known_bounds: np.ndarray  # (Q+1,) int64

    def known_of(self, query: int) -> np.ndarray:
        """The passages of `known` of a query, from 0 to Q."""
        return self.known[self.known_bounds[query] : self.known_bounds[query + 1]]


def read_mining_texts(path: str, corpus: str | None) -> MiningTexts:
    """Read `query⇥positive` lines, and a passage a line; without `corpus` the passages are the positives.

    Further columns are an error: among labelled pairs some do not match.

    Raises:
        UserError: a file cannot be read, or a line is malformed.
    """
    rows = read_rows(path, lambda line: split_columns(line, 2, "query⇥positive", _WIDER), remedy="Fix them.")
    queries, positives = columns_of(rows)
    passages = positives if corpus is None else read_sentences(corpus, remedy="Fix them.")
    everything = columns_of([text] for text in chain(passages, positives, queries))  # the corpus has the first numbers
    distinct, numbers = numbered(everything)
    (texts,) = columns_of([text] for text in distinct)
    of_corpus, of_positives, of_queries = np.split(numbers[:, 0], [len(passages), len(passages) + len(positives)])
    corpus_size = int(of_corpus.max()) + 1
    different, _, query_of_pairs = in_first_order(of_queries)
    pairs = np.stack([of_queries, of_positives], axis=1)  # (N, 2)
    known, known_bounds = _known(pairs, different, query_of_pairs, corpus_size)
    return MiningTexts(
        texts=texts,
        corpus_size=corpus_size,
        passage_count=max(corpus_size, int(of_positives.max()) + 1),
        pairs=pairs,
        queries=different,
        query_of_pairs=query_of_pairs,
        known=known,
        known_bounds=known_bounds,
    )


def _known(
    pairs: np.ndarray, queries: np.ndarray, query_of_pairs: np.ndarray, corpus_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """`MiningTexts.known` and its bounds."""
    index = np.full(int(pairs.max()) + 1, -1)  # number of a text → from 0 to Q; -1 of what is no query
    index[queries] = np.arange(len(queries))
    of_queries = np.concatenate([query_of_pairs, index[pairs[:, 1]], np.arange(len(queries))])  # (2N+Q,)
    passages = np.concatenate([pairs[:, 1], pairs[:, 0], queries])  # (2N+Q,)
    is_known = (of_queries >= 0) & (passages < corpus_size)
    known = np.unique(of_queries[is_known] * corpus_size + passages[is_known])  # (X,)
    bounds = np.searchsorted(known, np.arange(len(queries) + 1) * corpus_size)
    return known % corpus_size, bounds
