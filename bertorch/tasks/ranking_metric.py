"""How well scores rank the candidates of queries: MRR, nDCG, MAP, hits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.errors import ConstantScoresError
from bertorch.resampling import ExampleTable, Measure
from bertorch.tasks.metrics import ExampleRows, Metric

CUT = 10  # ranks that MRR and nDCG look at
# Scores of fp32 that differ by less, relative to 1 or to themselves, differ by rounding; of a coarser type by its own.
_ROUNDING = 1e-5


class Candidates(NamedTuple):
    """N candidates of several queries, in the order of the file."""

    scores: np.ndarray  # (N,) fp64
    relevances: np.ndarray  # (N,) fp64, at least 0; above 0 is relevant
    queries: np.ndarray  # (N,) int64, the number of each one's query

    @property
    def ranks(self) -> np.ndarray:
        """(N,) int64: each one's place among the candidates of its query, from 1; ties go to the earlier line."""
        return ranks_of(self.scores, self.queries)


def ranks_of(scores: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The rank of each of N scores among those of its query, from 1, (N,) int64; of equal ones the earlier is first."""
    order = np.lexsort((-scores, queries))  # (N,), stable
    ordered = queries[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))  # (queries,)
    sizes = np.diff(np.append(starts, len(scores)))  # (queries,)
    ranks = np.empty(len(scores), np.int64)
    ranks[order] = np.arange(1, len(scores) + 1) - np.repeat(starts, sizes)
    return ranks


def query_measures(candidates: Candidates) -> dict[str, np.ndarray]:
    """(queries,) fp64 each, in the order of their numbers; each query has a relevant candidate.

    `mrr@10` is one over the rank of the first relevant candidate, 0 beyond the tenth. `ndcg@10` has the relevance
    itself as its gain and log2(1+rank) as its discount. `map` is the mean of the precision at the ranks of all relevant
    candidates, `hits@1` whether the first is relevant.

    References:
        Järvelin and Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, TOIS 2002.
    """
    scores, relevances, numbers = candidates
    _, queries = np.unique(numbers, return_inverse=True)  # (N,), from 0 without gaps
    count = int(queries.max()) + 1
    ranks, is_relevant = ranks_of(scores, queries), relevances > 0  # (N,) each
    first = np.full(count, np.inf)  # (queries,), rank of the first relevant one
    np.minimum.at(first, queries[is_relevant], ranks[is_relevant])

    def gains(ranks: np.ndarray) -> np.ndarray:
        discounted = np.where(ranks <= CUT, relevances / np.log2(ranks + 1), 0.0)  # (N,)
        return np.bincount(queries, discounted)  # (queries,)

    among_relevant = ranks_of(scores[is_relevant], queries[is_relevant])  # (relevant,)
    precisions = np.bincount(queries[is_relevant], among_relevant / ranks[is_relevant])  # (queries,), sums
    return {
        f"mrr@{CUT}": np.where(first <= CUT, 1 / first, 0.0),
        f"ndcg@{CUT}": gains(ranks) / gains(ranks_of(relevances, queries)),
        "map": precisions / np.bincount(queries[is_relevant]),
        "hits@1": (first == 1).astype(np.float64),
    }


def ranking_measures(candidates: Candidates) -> dict[str, float]:
    """The means of `query_measures` over the queries."""
    return {name: float(values.mean()) for name, values in query_measures(candidates).items()}


class RankingMetric(Metric[PackedBatch]):
    """MRR and nDCG; the outputs are scores (N, 1), the labels relevances and numbers of queries (N, 2).

    After `reduce`, `candidates` are those of all processes, in the order of the file.
    """

    name = f"MRR@{CUT}"

    def __init__(self, device: torch.device) -> None:
        self._rows = ExampleRows(device, 4)

    @override
    def update(self, outputs: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        scores = outputs.squeeze(1)  # (N,)
        step = max(_ROUNDING, torch.finfo(scores.dtype).eps)  # of a score of 1
        rounding = step * scores.double().abs().clamp(min=1)  # (N,)
        relevances, queries = batch.labels.unbind(1)  # (N,) each
        self._rows.add(indices, scores, rounding, relevances, queries)

    @override
    def reduce(self) -> None:
        """As the protocol says; all processes see the same scores.

        Raises:
            ConstantScoresError: all scores are the same up to rounding.
        """
        scores, rounding, relevances, queries = self._rows.gather()
        self.candidates = Candidates(scores, relevances, queries.astype(np.int64))
        is_finite = np.isfinite(scores).all()
        if is_finite and len(scores) > 1 and np.ptp(scores) <= rounding.max():
            raise ConstantScoresError(
                f"expected scores that tell candidates apart, got {scores[0]:.6g} for all {len(scores)} lines: "
                "the model has collapsed"
            )
        self._of_queries = query_measures(self.candidates)
        self._measures = {name: float(values.mean()) for name, values in self._of_queries.items()}
        if not is_finite:  # sorted like others, such scores would go unnoticed
            self._measures = dict.fromkeys(self._measures, np.nan)

    @property
    @override
    def value(self) -> float:
        return self._measures[f"mrr@{CUT}"]

    @override
    def numbers(self) -> Mapping[str, float]:
        return {name: self._measures[name] for name in (f"mrr@{CUT}", f"ndcg@{CUT}")}

    @override
    def line(self) -> str:
        reciprocal, gain = self.numbers().values()
        return f"MRR@{CUT}: {reciprocal:.5f}, nDCG@{CUT}: {gain:.5f}"

    @override
    def report(self) -> dict[str, Any]:
        queries = len(np.unique(self.candidates.queries))
        return {"examples": len(self.candidates.scores), "queries": queries, **self._measures}

    @override
    def example_table(self) -> ExampleTable:
        """A row a query: the relevances of its candidates in the order of the file, and its measures."""
        _, relevances, queries = self.candidates
        order = np.argsort(queries, kind="stable")  # (N,)
        ends = np.flatnonzero(np.diff(queries[order])) + 1
        gold = [each.tolist() for each in np.split(relevances[order], ends)]
        columns = {"gold": gold, **{name: values.tolist() for name, values in self._of_queries.items()}}
        columns["hits@1"] = [value == 1 for value in columns["hits@1"]]  # right or wrong, which has a test of its own
        return ExampleTable(columns, {name: Measure("mean", (name,)) for name in self._of_queries})
