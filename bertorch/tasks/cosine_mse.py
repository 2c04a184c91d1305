"""Squared error of the cosine: that of a pair should be its score."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch.config import BatchNegConfig
from bertorch.data.batch import PackedBatch
from bertorch.precision import at_least_fp32
from bertorch.tasks.metrics import pair_cosines
from bertorch.tasks.scored_pairs import ScoredPairsLoss


class CosineMSE(ScoredPairsLoss):
    """Σ (cos − y)² over the pairs, with the scores scaled to y from 0 to 1; as a mean it is over those of a step.

    References:
        Reimers and Gurevych, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, EMNLP 2019 (regression
        objective).

    Args:
        bounds: lowest and highest score, which become 0 and 1.
    """

    name = "cosine_mse"

    def __init__(self, bounds: tuple[float, float]) -> None:
        super().__init__(bounds)
        self._low, self._high = bounds

    @classmethod
    @override
    def from_config(cls, config: BatchNegConfig) -> Self:
        return cls(config.score_bounds)

    @override
    def __call__(self, embeddings: Tensor, batch: PackedBatch) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = pair_cosines(at_least_fp32(embeddings).view(-1, 2, embeddings.shape[-1]))  # (pairs,)
            targets = (batch.labels - self._low) / (self._high - self._low)  # (pairs,) in [0, 1]
            return F.mse_loss(cosines, targets.to(cosines.dtype), reduction="sum")
