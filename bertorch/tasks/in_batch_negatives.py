"""In-batch negatives: each anchor picks its positive among the texts of all rows of the batch."""

from collections.abc import Callable
from functools import partial
from typing import Self

import numpy as np
from loguru import logger
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch import distributed
from bertorch.config import BatchNegConfig, ContrastiveConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples, PromptedRows, TextRows
from bertorch.data.prompts import Prompts
from bertorch.data.readers import read_pairs, read_sentences
from bertorch.data.several_files import named_files
from bertorch.tasks.base import Negatives
from bertorch.tasks.embedding_loss import EmbeddingLoss
from bertorch.tasks.losses import in_batch_negatives_loss


def sentences_twice(path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, on_bad_line: str) -> TextRows:
    """Each sentence with itself as its positive. See `read_sentences`."""
    sentences = read_sentences(path, on_bad_line=on_bad_line)
    return TextRows.tokenized(tokenizer, (sentences, sentences), max_length=max_length)


def anchors_with_positives(
    path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, on_bad_line: str
) -> TextRows:
    """Anchors, positives, and hard negatives if there are any. See `read_pairs`."""
    return TextRows.tokenized(tokenizer, read_pairs(path, on_bad_line=on_bad_line), max_length=max_length)


def queries_with_passages(
    path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, on_bad_line: str, prompts: Prompts
) -> PromptedRows:
    """As `anchors_with_positives`, after prompts: an anchor is a query, the others are passages."""
    columns = read_pairs(path, on_bad_line=on_bad_line)
    return PromptedRows.with_prompts(tokenizer, columns, prompts, max_length=max_length)


class InBatchNegatives(EmbeddingLoss):
    """See `bertorch.tasks.losses.in_batch_negatives_loss`.

    Args:
        margin, scale, symmetric: as there.
        gather_negatives: whether the rows of the other processes are negatives too.
        keep_duplicates: whether rows with the same text are negatives of each other.
    """

    name = "in_batch_negatives"

    def __init__(
        self,
        *,
        margin: float,
        scale: float,
        symmetric: bool = False,
        gather_negatives: bool = False,
        keep_duplicates: bool = False,
    ) -> None:
        self.negatives = Negatives.GLOBAL if gather_negatives else Negatives.LOCAL
        self._keep_duplicates = keep_duplicates
        self._loss = partial(in_batch_negatives_loss, margin=margin, scale=scale, symmetric=symmetric)

    @classmethod
    @override
    def from_config(cls, config: BatchNegConfig) -> Self:
        return cls.of(config, symmetric=config.mean_loss)

    @classmethod
    def of(cls, config: ContrastiveConfig, *, symmetric: bool = False) -> Self:
        """With the options that its scripts share."""
        return cls(
            margin=config.margin,
            scale=config.scale,
            symmetric=symmetric,
            gather_negatives=config.gather_negatives,
            keep_duplicates=config.keep_duplicates,
        )

    @override
    def reader(self, prompts: Prompts) -> Callable[..., TextRows]:
        return partial(queries_with_passages, prompts=prompts) if prompts.by_role else anchors_with_positives

    @override
    def look_at(self, config: ContrastiveConfig, train: Examples) -> None:
        rows = config.batch_size * (distributed.world_size() if config.gather_negatives else 1)
        pairs = [file for _, file in named_files(train) if file.batch(np.arange(1)).size == 2]
        if any(min(len(file), rows) == 1 for file in pairs):
            more = "raise --batch_size, or add hard negatives to each line of run_batchneg.py"
            logger.warning("a batch of one row has no negatives, and its loss teaches nothing; {}", more)

    @override
    def __call__(self, embeddings: Tensor, batch: PackedBatch) -> Tensor:
        assert batch.text_ids is not None
        texts, local_rows = batch.text_ids, slice(None)  # (rows, S)
        rows = embeddings.view(*texts.shape, embeddings.shape[-1])  # (rows, S, E)
        if self.negatives is Negatives.GLOBAL:
            rows, local_rows = distributed.gather_rows(rows)  # (rows of all processes, S, E)
            texts, _ = distributed.gather_rows(texts)
        return self._loss(rows, None if self._keep_duplicates else texts, local_rows=local_rows)
