"""How well embeddings find passages for queries, by exact search over the whole corpus: recall, MRR, MAP, nDCG."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch import distributed
from bertorch.data.batch import PackedBatch, on_device
from bertorch.data.numbering import in_first_order
from bertorch.data.retrieval_dataset import RetrievalDataset
from bertorch.data.tokens import end_to_end
from bertorch.errors import ConstantScoresError
from bertorch.precision import at_least_fp32
from bertorch.resampling import ExampleTable, Measure
from bertorch.tasks.metrics import Metric
from bertorch.tasks.ranking_metric import CUT, ranks_of
from bertorch.tasks.search import Found, by_index, merge, search

CUTS = (1, 5, 10, 100)  # of recall and accuracy
DEPTH = max(CUTS)  # ranks that are looked at
_ROUNDING = 1e-5  # by which cosines of fp32 differ without meaning


class Hits(NamedTuple):
    """Passages among the first of their queries, in any order."""

    queries: np.ndarray  # (H,) int64
    ranks: np.ndarray  # (H,) int64, from 1
    grades: np.ndarray  # (H,) fp64


def query_measures(hits: Hits, relevant: np.ndarray, grades: np.ndarray) -> dict[str, np.ndarray]:
    """(Q,) fp64 each, from the relevant passages among the first `DEPTH`, and from all R of them.

    `ndcg@10` has the grade itself as its gain and log2(1+rank) as its discount, and is divided by that of the best
    order of all relevant passages. `mrr@10` is one over the rank of the first relevant passage, 0 beyond the tenth.
    `map@100` is the sum of the precision at the ranks of the relevant passages among the first hundred, divided by the
    number of all relevant ones, as `trec_eval -m map_cut` does. `recall@k` is the share of the relevant passages that
    are among the first k, `accuracy@k` whether one is.

    References:
        Järvelin and Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, TOIS 2002.
        Manning, Raghavan and Schütze, Introduction to Information Retrieval, 2008, section 8.4.

    Args:
        hits: of relevant passages.
        relevant: the queries (R,) of all relevant passages; each of Q queries has one.
        grades: their grades (R,), above 0.
    """
    totals = np.bincount(relevant)  # (Q,)

    def sums(queries: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(queries, values, len(totals))  # (Q,)

    def gain(queries: np.ndarray, ranks: np.ndarray, grades: np.ndarray) -> np.ndarray:
        return sums(queries, np.where(ranks <= CUT, grades / np.log2(ranks + 1), 0.0))

    first = np.full(len(totals), np.inf)  # (Q,), rank of the first relevant passage
    np.minimum.at(first, hits.queries, hits.ranks)
    found = {cut: sums(hits.queries, hits.ranks <= cut) for cut in CUTS}
    among_relevant = ranks_of(-hits.ranks, hits.queries)  # (H,)
    return {
        f"ndcg@{CUT}": gain(*hits) / gain(relevant, ranks_of(grades, relevant), grades),
        f"mrr@{CUT}": np.where(first <= CUT, 1 / first, 0.0),
        f"map@{DEPTH}": sums(hits.queries, among_relevant / hits.ranks) / totals,
        **{f"recall@{cut}": count / totals for cut, count in found.items()},
        **{f"accuracy@{cut}": (count > 0).astype(np.float64) for cut, count in found.items()},
    }


class RetrievalMetric(Metric[PackedBatch]):
    """nDCG and others of the passages with the largest cosines; the outputs are embeddings (N, E) of distinct texts.

    Of passages with equal cosines the one that stands earlier in the corpus comes first. Each process searches among
    the texts that it has encoded; only the embeddings of the queries, and the best of each search, are gathered.

    `size` is E. With `may_be_constant`, cosines that are all the same are measured like others. After `reduce`, on
    every process: `first` (Q,) is the best passage of each query, `first_scores` (Q,) its cosine, `first_grades` (Q,)
    its grade, 0 if it is not relevant; `hits` are the relevant passages among the first `DEPTH`, and `hit_passages`
    (H,) which these are.
    """

    name = f"nDCG@{CUT}"

    def __init__(
        self, device: torch.device, dataset: RetrievalDataset, size: int, *, may_be_constant: bool = False
    ) -> None:
        self._device, self.dataset, self._size = device, dataset, size
        self._may_be_constant = may_be_constant
        self._vectors: list[Tensor] = []
        self._texts: list[Tensor] = []

    @override
    def update(self, embeddings: Tensor, batch: PackedBatch | None, indices: np.ndarray, /) -> None:
        self._vectors.append(F.normalize(at_least_fp32(embeddings)))  # (N, E)
        self._texts.append(on_device(indices, embeddings.device))  # (N,)

    @override
    def reduce(self) -> None:
        """As the protocol says; all processes see the same ranks.

        Raises:
            ConstantScoresError: all cosines are the same up to rounding, and may not be.
        """
        data = self.dataset
        if not self._vectors:  # of more processes than texts
            self.update(torch.zeros(0, self._size, device=self._device), None, np.zeros(0, np.int64))
        vectors, texts = torch.cat(self._vectors), torch.cat(self._texts)  # (local, E), (local,)
        self._vectors, self._texts = [], []
        # A search would pass over a passage whose cosines are no numbers, unless it is one of the first.
        is_finite = not distributed.any_process(not bool(vectors.isfinite().all()))
        corpus_texts, _, text_of_passages = in_first_order(data.passages)  # (D,), (D,), (C,)
        found = self._search(vectors, texts, corpus_texts)
        del vectors
        scores = found.scores.double().cpu().numpy()  # (Q, K)
        shown = scores[~np.isneginf(scores)]
        if not self._may_be_constant and scores.shape[1] > 1 and np.ptp(shown) <= _ROUNDING:
            raise ConstantScoresError(
                f"expected cosines that tell passages apart, got {shown[0]:.6g} for all: the model has collapsed"
            )
        self._rank(scores, found.indices.cpu().numpy(), text_of_passages)
        self._of_queries = query_measures(self.hits, data.relevant[:, 0], data.grades)
        self._measures = {name: float(values.mean()) for name, values in self._of_queries.items()}
        if not is_finite:
            self._measures = dict.fromkeys(self._measures, np.nan)

    def _search(self, vectors: Tensor, texts: Tensor, corpus_texts: np.ndarray) -> Found:
        """The best (Q, K) of the distinct texts of passages, as places in `corpus_texts` (D,), of all processes.

        One more than is looked at: the passage that is the query itself does not count.
        """
        wanted, of_queries = np.unique(self.dataset.queries, return_inverse=True)  # (distinct,), (Q,)
        places = torch.full((len(self.dataset),), -1, device=self._device)  # (N,)
        places[on_device(wanted, self._device)] = 0
        is_query = places[texts] == 0  # (local,)
        queries, _ = distributed.gather_rows(vectors[is_query])  # (distinct, E)
        gathered, _ = distributed.gather_rows(texts[is_query])  # (distinct,)
        queries = queries[gathered.argsort()[on_device(of_queries, self._device)]]  # (Q, E)

        places.fill_(-1)
        places[on_device(corpus_texts, self._device)] = torch.arange(len(corpus_texts), device=self._device)
        local, rows = places[texts].sort()  # (local,) each
        local, rows = local[local >= 0], rows[local >= 0]  # those of passages
        count = min(DEPTH + 1, len(corpus_texts))
        found = search(queries, vectors[rows], count)  # (Q, up to K)
        missing = count - found.scores.shape[1]
        scores = F.pad(found.scores, (0, missing), value=-torch.inf)  # (Q, K)
        indices = F.pad(local[found.indices], (0, missing), value=-1)  # (Q, K)
        shares = (distributed.gather_rows(part[None])[0].unbind() for part in (scores, indices))  # W times (Q, K)
        return merge([by_index(Found(*(torch.cat(part, dim=1) for part in shares)))], count)

    def _rank(self, scores: np.ndarray, found: np.ndarray, text_of_passages: np.ndarray) -> None:
        """From the cosines and places (Q, K) of distinct texts to passages, each of which has one of them, (C,)."""
        data = self.dataset
        passages_of_texts = np.argsort(text_of_passages, kind="stable")  # (C,), those of a text in the order of places
        sizes = np.bincount(text_of_passages)  # (D,)
        # Further passages of a text are too far behind, and so are texts below that many passages of larger cosines.
        passages_of_found = np.where(found >= 0, np.minimum(sizes[found], DEPTH + 1), 0)  # (Q, K)
        before = np.where(scores[:, 1:] < scores[:, :-1], passages_of_found.cumsum(axis=1)[:, :-1], 0)  # (Q, K-1)
        above = np.maximum.accumulate(np.pad(before, [(0, 0), (1, 0)]), axis=1)  # (Q, K), of larger cosines
        rows, columns = np.nonzero((found >= 0) & (above <= DEPTH))  # (found,) each
        texts, taken = found[rows, columns], passages_of_found[rows, columns]  # (found,) each
        passages = passages_of_texts[end_to_end((sizes.cumsum() - sizes)[texts], taken)]  # (results,)
        queries, cosines = np.repeat(rows, taken), np.repeat(scores[rows, columns], taken)  # (results,) each
        kept = np.lexsort((passages, queries))  # equal cosines keep this order
        kept = kept[passages[kept] != data.own[queries[kept]]]
        queries, passages, cosines = queries[kept], passages[kept], cosines[kept]
        ranks = ranks_of(cosines, queries)
        grades = self._grades(queries, passages)
        is_first, is_hit = ranks == 1, (grades > 0) & (ranks <= DEPTH)
        self.first, self.first_scores, self.first_grades = passages[is_first], cosines[is_first], grades[is_first]
        self.hits = Hits(queries[is_hit], ranks[is_hit], grades[is_hit])
        self.hit_passages = passages[is_hit]

    def _grades(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """The grades of pairs (N,), 0 of those that are not relevant."""
        data = self.dataset
        known = data.relevant @ (len(data.passages), 1)  # (R,), rising
        asked = queries * len(data.passages) + passages  # (N,)
        places = np.searchsorted(known, asked).clip(max=len(known) - 1)
        return np.where(known[places] == asked, data.grades[places], 0.0)

    @property
    @override
    def value(self) -> float:
        return self._measures[f"ndcg@{CUT}"]

    @override
    def numbers(self) -> Mapping[str, float]:
        return {name: self._measures[name] for name in (f"ndcg@{CUT}", f"mrr@{CUT}")}

    @override
    def line(self) -> str:
        gain, reciprocal = self.numbers().values()
        return f"MRR@{CUT}: {reciprocal:.5f}, nDCG@{CUT}: {gain:.5f}"

    @override
    def report(self) -> dict[str, Any]:
        kept = self.dataset.is_kept
        counts = {"queries": int(kept.sum()), "queries_without_relevant": int((~kept).sum())}
        return counts | {"passages": len(self.dataset.passages), **self._measures}

    @override
    def example_table(self) -> ExampleTable:
        """A row a query: its number in the file, the numbers of its relevant passages, their ranks, its measures.

        Numbers count from 1; of a relevant passage that is not among the first `DEPTH` the rank is None.
        """
        data = self.dataset
        pairs = zip(self.hits.queries.tolist(), self.hit_passages.tolist(), strict=True)
        ranks = dict(zip(pairs, self.hits.ranks.tolist(), strict=True))
        gold: list[list[int]] = [[] for _ in data.queries]
        places: list[list[int | None]] = [[] for _ in data.queries]
        for query, passage in data.relevant.tolist():
            gold[query].append(passage + 1)
            places[query].append(ranks.get((query, passage)))
        columns: dict[str, list[Any]] = {"query": (np.flatnonzero(data.is_kept) + 1).tolist(), "gold": gold}
        columns |= {"ranks": places} | {name: values.tolist() for name, values in self._of_queries.items()}
        for cut in CUTS:  # right or wrong, which has a test of its own
            columns[f"accuracy@{cut}"] = [value == 1 for value in columns[f"accuracy@{cut}"]]
        return ExampleTable(columns, {name: Measure("mean", (name,)) for name in self._of_queries})
