"""Squared error of the cosine: that of a pair should be its score."""

from typing import Self

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch.config import BatchNegConfig
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
    def loss_of(self, cosines: Tensor, scores: Tensor) -> Tensor:
        targets = (scores - self._low) / (self._high - self._low)  # (pairs,) in [0, 1]
        return F.mse_loss(cosines, targets.to(cosines.dtype), reduction="sum")
