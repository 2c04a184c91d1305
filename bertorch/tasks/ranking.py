"""Order of the candidates of a query, by a cross-encoder: `run_classifier.py --problem_type ranking`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.readers import LabelledTexts
from bertorch.precision import at_least_fp32
from bertorch.tasks.base import Errors, Losses
from bertorch.tasks.ranking_metric import RankingMetric
from bertorch.tasks.scored import OneScoreTask


class RankingTask(OneScoreTask):
    """Cross-entropy over the scores of a query's candidates, one of them right; the dev metric is MRR@10.

    A training example is a group: a query with its positive and S-1 negatives, each pair encoded together. All pairs of
    all groups of a batch are one packed call.

    References:
        Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007, with one right candidate.
        Nogueira and Cho, Passage Re-ranking with BERT, 2019 (the encoder).
    """

    name = "ranking"
    scripts = "run_classifier.py --problem_type ranking"
    pipeline_tag = "text-ranking"
    library = "sentence-transformers"
    problem_type = "ranking"
    train_form, dev_form = "groups", "ranking"

    @override
    def losses_of(self, outputs: Tensor, batch: PackedBatch) -> Losses:
        """Cross-entropy, summed over B groups; `outputs` are (B·S, 1), the labels (B,) which of the S is right."""
        scores = at_least_fp32(outputs).view(len(batch.labels), -1)  # (B, S)
        return {"loss": F.cross_entropy(scores, batch.labels, reduction="sum")}

    @override
    def metric(self, device: torch.device) -> RankingMetric:
        return RankingMetric(device)

    @override
    def errors(self, metric: Any, source: LabelledTexts) -> Errors:
        """The queries whose first candidate is not relevant, those first whose best relevant one is behind it most."""
        candidates = metric.candidates
        ranks, is_relevant = candidates.ranks, candidates.relevances > 0  # (N,) each
        first = {candidates.queries[index]: index for index in np.flatnonzero(ranks == 1).tolist()}
        best: dict[int, int] = {}  # of each query, its relevant candidate with the best rank
        for index in np.flatnonzero(is_relevant)[np.argsort(ranks[is_relevant])].tolist():
            best.setdefault(candidates.queries[index], index)
        wrong = [(first[query], index) for query, index in best.items() if ranks[index] > 1]
        wrong.sort(key=lambda pair: (candidates.scores[pair[1]] - candidates.scores[pair[0]], pair[0]))
        queries, texts = source.columns
        scores = [f"{score:.6f}" for score in candidates.scores]
        rows = [
            [queries[top], texts[top], scores[top], texts[right], scores[right], str(ranks[right])]
            for top, right in wrong
        ]
        return Errors(["query", "first", "score", "best_relevant", "its_score", "its_rank"], rows)

    @override
    def usage(self) -> tuple[str, str]:
        query, candidates = "怎么把零钱提现？", ["零钱怎样提到银行卡？", "怎么换零钱？"]
        theirs = f"{self._differences}print(CrossEncoder({{folder}}).rank({query!r}, {candidates!r}))"
        return f"rank({query!r}, {candidates!r})", f"from sentence_transformers import CrossEncoder\n\n{theirs}"
