"""CoSENT: of two pairs, that with the lower score should have the lower cosine."""

from typing import Self

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch import distributed
from bertorch.config import BatchNegConfig, ContrastiveConfig
from bertorch.data.dataset import Examples
from bertorch.data.several_files import named_files, schedule_of
from bertorch.errors import UserError
from bertorch.tasks.base import Negatives
from bertorch.tasks.scored_pairs import ScoredPairsLoss


def cosent_loss(cosines: Tensor, scores: Tensor, *, scale: float) -> Tensor:
    """log(1 + Σ exp(λ(cos_k − cos_l))) over the ordered couples k, l of pairs with y_k < y_l.

    Pairs with the same score are not compared; if all have it, the loss is 0, and so is its gradient.

    References:
        Su Jianlin, CoSENT (一): 比 Sentence-BERT 更有效的句向量方案, 2022, https://kexue.fm/archives/8847

    Args:
        cosines: (M,), of M pairs, in fp32 at least.
        scores: (M,) y, of which only the order counts.
        scale: λ.

    Returns:
        Scalar in the type of the cosines.
    """
    is_lower = scores[:, None] < scores  # (M, M), y_k < y_l
    differences = scale * (cosines[:, None] - cosines)  # (M, M), λ(cos_k − cos_l)
    terms = differences.masked_fill(~is_lower, -torch.inf).flatten()  # (M²,)
    return F.pad(terms, (1, 0)).logsumexp(0)  # the 1 is exp(0)


class CoSENT(ScoredPairsLoss):
    """See `cosent_loss`; the pairs are those of a batch over all processes.

    A batch counts as one in the mean of a step, however many pairs it has.

    Args:
        scale: λ.
    """

    name = "cosent"
    negatives = Negatives.GLOBAL

    def __init__(self, *, scale: float) -> None:
        super().__init__()
        self._scale = scale

    @classmethod
    @override
    def from_config(cls, config: BatchNegConfig) -> Self:
        return cls(scale=config.scale)

    @override
    def look_at(self, config: ContrastiveConfig, train: Examples) -> None:
        """As the protocol says; a `UserError` if the scores of all pairs are the same."""
        super().look_at(config, train)
        of_files = [np.unique(file.labels_of(np.arange(len(file)))) for _, file in named_files(train)]
        if len(np.unique(np.concatenate(of_files))) == 1:
            expected = "--train_data_file: expected scores that differ, since --loss cosent compares pairs by them"
            raise UserError(f"{expected}, got only {of_files[0][0]:g}; --loss cosine_mse learns a single score too")
        size = config.batch_size * distributed.world_size()
        batches = schedule_of(train, size, config.gradient_accumulation_steps, config.seed).batches(epoch=1)
        alike = [bool(np.ptp(train.labels_of(indices)) == 0) for indices in batches]
        counts = f"{sum(alike)} of {len(alike)} ({sum(alike) / len(alike):.1%})"
        logger.info("data: train: batches of the first epoch with one score only, which give no gradient: {}", counts)
        if all(alike):
            can_differ = any(len(scores) > 1 for scores in of_files)
            remedy = "raise --batch_size" if can_differ else "a batch has pairs of one file: join the files"
            logger.warning(
                "data: train: no batch has two different scores, and nothing is learned from them; {}", remedy
            )

    @override
    def loss_of(self, cosines: Tensor, scores: Tensor) -> Tensor:
        both = torch.stack([cosines.double(), scores], dim=1)  # (pairs, 2), so that no score is rounded
        both, _ = distributed.gather_rows(both)  # (M, 2), of all processes
        loss = cosent_loss(both[:, 0].to(cosines.dtype), both[:, 1], scale=self._scale)
        return loss / distributed.world_size()  # each process has all of it

    @override
    def weight(self, examples: Examples, indices: np.ndarray) -> float:
        return 1.0
