"""Exact search for the vectors with the largest inner products, which of vectors of length 1 are cosines.

It goes in blocks: neither all scores nor, with `Nearest`, all vectors need to fit in memory. Of equal scores the vector
with the lower index comes first, whatever the blocks are. Products are in the type of the vectors; equal vectors may
differ in the last bit of their scores, as libraries compute the edges of a block in another order.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

QUERIES_AT_ONCE = 1024
SCORES_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}  # of a block: 16 MB on the CPU, which come from memory in use
NUMBERS_AT_ONCE = 2**28  # of the vectors of a block, which are copied to the device: 1 GB in fp32
# Queries times vectors beyond which faiss, an extra, searches in place of the blocks, where it is installed.
FAISS_BEYOND = 10**10


class Found(NamedTuple):
    """The best vectors of each of Q queries, best first."""

    scores: Tensor  # (Q, K) falling; -inf where there are fewer than K
    indices: Tensor  # (Q, K) int64; -1 there

    def first(self, count: int) -> "Found":
        """Only the best `count`."""
        return Found(self.scores[:, :count], self.indices[:, :count])


def search(
    queries: Tensor, corpus: Tensor, count: int, *, excluded: Tensor | None = None, method: str | None = None
) -> Found:
    """The `count` (K) best of N vectors for each of Q queries, or all of them if N is smaller.

    Args:
        queries: (Q, E), on the device that searches.
        corpus: (N, E), of the same type; also one in memory, such as a mapped file, whose blocks go to the device.
        count: K, at least 1.
        excluded: pairs (X, 2) int64 of a query and a vector that is no result for it, such as a known positive when
            negatives are sought. The memory grows with the most pairs of one query.
        method: of `METHODS`; None takes faiss on the CPU beyond `FAISS_BEYOND` scores, if it is installed.
    """
    if count < 1:
        raise ValueError(f"expected at least one result of each query, got {count}")
    find = METHODS[suited(queries, len(queries) * len(corpus)) if method is None else method]
    if excluded is None or not len(excluded):
        return find(queries, corpus, min(count, len(corpus)))
    most = int(torch.bincount(excluded[:, 0]).max())  # of one query
    found = find(queries, corpus, min(count + most, len(corpus)))
    return _without(found, excluded.to(queries.device), len(corpus)).first(min(count, len(corpus)))


class Nearest:
    """The `count` (K) best of all vectors so far for each of the queries (Q, E)."""

    def __init__(self, queries: Tensor, count: int) -> None:
        self._queries, self._count = queries, count
        self._seen = 0
        indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        self.found = Found(queries.new_empty(len(queries), 0), indices)  # (Q, up to K), counted from 0 over all updates

    def update(self, vectors: Tensor) -> None:
        """Compare with more vectors (B, E)."""
        device, rows = self._queries.device, min(QUERIES_AT_ONCE, len(self._queries))
        if rows and len(vectors):
            size = min(SCORES_AT_ONCE[device.type] // rows, max(1, NUMBERS_AT_ONCE // vectors.shape[1]))
            for block in vectors.split(size):
                self._compare(block.to(device))

    def _compare(self, vectors: Tensor) -> None:
        parts = (rows.split(QUERIES_AT_ONCE) for rows in (self._queries, *self.found))
        merged = [self._merged(queries, Found(*best), vectors) for queries, *best in zip(*parts, strict=True)]
        self.found = Found(*(torch.cat(part) for part in zip(*merged, strict=True)))
        self._seen += len(vectors)

    def _merged(self, queries: Tensor, best: Found, vectors: Tensor) -> Found:
        scores = queries @ vectors.T  # (q, B)
        if best.scores.shape[1] < self._count:
            new = best_of_rows(scores, min(self._count, len(vectors)))
        else:  # more vectors must be better than the last of the best: mostly few are
            new = above(scores, best.scores[:, -1:])
        return merge([best, Found(new.scores, self._seen + new.indices)], self._count)


def above(scores: Tensor, lowest: Tensor) -> Found:
    """The scores of (rows, B) above the lowest of each row, (rows, 1), in the order of the columns, then -inf."""
    rows, columns = (scores > lowest).nonzero(as_tuple=True)  # (found,) each
    counts = torch.bincount(rows, minlength=len(scores))  # (rows,)
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(dim=0) - counts)[rows]  # (found,)
    found = scores.new_full((len(scores), int(counts.max())), -torch.inf)  # (rows, most)
    indices = torch.zeros_like(found, dtype=torch.int64)  # (rows, most)
    found[rows, places], indices[rows, places] = scores[rows, columns], columns
    return Found(found, indices)


def best_of_rows(scores: Tensor, count: int) -> Found:
    """The `count` largest scores of each row of (rows, B), `count` at most B; of equal ones the first columns."""
    values, columns = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    if values.shape[1] > count:  # `topk` does not say which of equal scores it takes
        is_cut = values[:, count - 1] == values[:, count]  # (rows,), whether some that equal the last one are left out
        values, columns = values[:, :count], columns[:, :count]
        if is_cut.any():
            columns[is_cut] = _first_columns(scores[is_cut], values[is_cut, -1:], count)
    columns = columns.sort(dim=1).values
    return merge([Found(scores.gather(1, columns), columns)], count)


def _first_columns(scores: Tensor, lowest: Tensor, count: int) -> Tensor:
    """The columns (rows, count) of scores (rows, B): all above the lowest taken, (rows, 1), the first that equal it."""
    above, equal = scores > lowest, scores == lowest  # (rows, B) each
    room = count - above.sum(dim=1, keepdim=True)  # (rows, 1)
    return (above | (equal & (equal.cumsum(dim=1) <= room))).nonzero()[:, 1].view(len(scores), count)


def merge(found: Sequence[Found], count: int) -> Found:
    """The `count` best of findings of the same queries; of equal scores those of the earlier finding come first."""
    scores, indices = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]  # (Q, up to K)
    return Found(scores.gather(1, order), indices.gather(1, order))


def by_index(found: Found) -> Found:
    """The findings in the order of their indices, in which `merge` takes equal scores."""
    order = found.indices.argsort(dim=1)  # (Q, K)
    return Found(found.scores.gather(1, order), found.indices.gather(1, order))


def _without(found: Found, excluded: Tensor, size: int) -> Found:
    """The excluded pairs (X, 2) of queries and N vectors go to the end, as what is not there."""
    rows = torch.arange(len(found.indices), device=found.indices.device)[:, None]  # (Q, 1)
    is_out = torch.isin(rows * size + found.indices, excluded[:, 0] * size + excluded[:, 1])  # (Q, K)
    left = Found(found.scores.masked_fill(is_out, -torch.inf), found.indices.masked_fill(is_out, -1))
    return merge([left], is_out.shape[1])


def _by_blocks(queries: Tensor, corpus: Tensor, count: int) -> Found:
    nearest = Nearest(queries, count)
    nearest.update(corpus)
    return nearest.found


def _by_faiss(queries: Tensor, corpus: Tensor, count: int) -> Found:
    """Brute force, which is exact; where it leaves out scores that equal the last one, blocks say which come first."""
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())  # it would take all cores in each process
    more = min(count + 1, len(corpus))
    values, columns = faiss.knn(queries.numpy(), corpus.numpy(), more, metric=faiss.METRIC_INNER_PRODUCT)
    scores, indices = torch.from_numpy(values), torch.from_numpy(columns)  # (Q, more) each
    found = merge([by_index(Found(scores, indices))], more)
    if more > count:
        is_cut = found.scores[:, count - 1] == found.scores[:, count]
        found = found.first(count)
        if is_cut.any():
            for part, ours in zip(found, _by_blocks(queries[is_cut], corpus, count), strict=True):
                part[is_cut] = ours
    return found


METHODS: dict[str, Callable[[Tensor, Tensor, int], Found]] = {"blocks": _by_blocks, "faiss": _by_faiss}


def suited(queries: Tensor, count: int) -> str:
    """The name of the method for queries like these (…, E) and `count` scores, those of a search in several calls."""
    fits = queries.device.type == "cpu" and queries.dtype == torch.float32
    return "faiss" if count > FAISS_BEYOND and fits and find_spec("faiss") is not None else "blocks"
