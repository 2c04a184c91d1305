"""Pairs with a score beside them, for evaluation and for the losses that learn from scores."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.config import ContrastiveConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, Examples
from bertorch.data.prompts import NO_PROMPTS, Prompts
from bertorch.data.readers import read_scored_pairs
from bertorch.data.several_files import named_files
from bertorch.precision import at_least_fp32
from bertorch.tasks.embedding_loss import EmbeddingLoss
from bertorch.tasks.metrics import pair_cosines


def scored_pairs(
    path: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    on_bad_line: str,
    prompts: Prompts = NO_PROMPTS,
    bounds: tuple[float, float] | None = None,
    to_learn: bool = False,
) -> Dataset:
    """Pairs with a score, whose texts are encoded apart, a as a query and b as a passage. See `read_scored_pairs`."""
    read = read_scored_pairs(path, on_bad_line=on_bad_line, bounds=bounds, to_learn=to_learn)
    columns = prompts.of_pairs(read.columns)
    return Dataset.of_sentences(tokenizer, columns, read.labels, max_length=max_length)


class ScoredPairsLoss(EmbeddingLoss):
    """A loss that learns from the scores of pairs.

    Args:
        bounds: lowest and highest score that a training line may have; None: any.
    """

    def __init__(self, bounds: tuple[float, float] | None = None) -> None:
        self._bounds = bounds

    @override
    def reader(self, prompts: Prompts) -> Callable[..., Dataset]:
        read = partial(scored_pairs, prompts=prompts, to_learn=True)
        return read if self._bounds is None else partial(read, bounds=self._bounds)

    @override
    def look_at(self, config: ContrastiveConfig, train: Examples) -> None:
        for name, file in named_files(train):
            scores = file.labels_of(np.arange(len(file)))  # (N,)
            found = scores.min(), scores.max(), scores.mean()
            logger.info("data: {}: scores from {:g} to {:g}, mean {:.4g}", name, *found)

    @override
    def __call__(self, embeddings: Tensor, batch: PackedBatch) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = pair_cosines(at_least_fp32(embeddings).view(-1, 2, embeddings.shape[-1]))  # (pairs,)
            return self.loss_of(cosines, batch.labels)

    @abstractmethod
    def loss_of(self, cosines: Tensor, scores: Tensor) -> Tensor:
        """See `EmbeddingLoss`; of this process's cosines (pairs,), at least in fp32, and scores (pairs,)."""
