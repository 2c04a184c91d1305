"""Sentence embeddings from in-batch negatives: `run_simcse.py` and `run_batchneg.py`."""

from collections.abc import Callable
from functools import partial
from typing import Self, Unpack

import torch
from loguru import logger
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch import distributed
from bertorch.config import ContrastiveConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, Examples, PromptedRows, TextRows
from bertorch.data.prompts import NO_PROMPTS, Prompts
from bertorch.data.readers import LabelledTexts, read_pairs, read_scored_pairs, read_sentences
from bertorch.data.several_files import SeveralFiles
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.tasks.base import Errors, InputSettings, LoadedFolder, Losses, Negatives
from bertorch.tasks.embedding import EmbeddingTask, empty_embedder, saved_prompts
from bertorch.tasks.losses import in_batch_negatives_loss
from bertorch.tasks.metrics import CorrelationMetric
from bertorch.tasks.scoring import wrong_texts
from bertorch.weights import load_into


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


def reader_of_pairs(prompts: Prompts) -> Callable[..., TextRows]:
    """The function that reads a training file of pairs."""
    return partial(queries_with_passages, prompts=prompts) if prompts.by_role else anchors_with_positives


def scored_pairs(
    path: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    on_bad_line: str,
    prompts: Prompts = NO_PROMPTS,
) -> Dataset:
    """Pairs with a score, whose texts are encoded apart. See `read_scored_pairs`."""
    read = read_scored_pairs(path, on_bad_line=on_bad_line)
    columns = prompts.of_pairs(read.columns)
    return Dataset.of_sentences(tokenizer, columns, read.labels, max_length=max_length)


def warn_without_negatives(config: ContrastiveConfig, train: Examples) -> None:
    """Say so in the log where a batch has no negative, so that its loss is constant: one row without hard negatives."""
    most = config.batch_size * (distributed.world_size() if config.gather_negatives else 1)
    files = train.files if isinstance(train, SeveralFiles) else [train]
    if any(min(len(file), most) == 1 and isinstance(file, TextRows) and file.sentences.shape[1] == 2 for file in files):
        more = "raise --batch_size, or add hard negatives to each line of run_batchneg.py"
        logger.warning("a batch of one row has no negatives, and nothing is learned; {}", more)


class ContrastiveTask(EmbeddingTask):
    """In-batch negatives over rows of two or more sentences; the dev metric is the Spearman correlation.

    Args:
        model: gives embeddings (N, E).
        loss: `bertorch.tasks.losses.in_batch_negatives_loss` with its margin and scale; None where it is not trained.
        gather_negatives: whether the rows of the other processes are negatives too.
        keep_duplicates: whether rows with the same text are negatives of each other.
        micro_batch_size: rows that are encoded at once; None encodes the whole batch.
        prompts, inputs: see `EmbeddingTask`.
    """

    name = "embedding"
    scripts = "run_simcse.py or run_batchneg.py"
    head = "pooling"

    def __init__(
        self,
        model: SentenceEncoder,
        *,
        loss: Callable[..., Tensor] | None = None,
        gather_negatives: bool = False,
        keep_duplicates: bool = False,
        micro_batch_size: int | None = None,
        prompts: Prompts = NO_PROMPTS,
        **inputs: Unpack[InputSettings],
    ) -> None:
        super().__init__(model, model, prompts=prompts, **inputs)
        self.negatives = Negatives.GLOBAL if gather_negatives else Negatives.LOCAL
        self.recomputes = micro_batch_size is not None
        self._loss = loss
        self._keep_duplicates = keep_duplicates
        self._micro_batch_size = micro_batch_size

    @classmethod
    def from_config(
        cls,
        config: ContrastiveConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        symmetric: bool = False,
        dropout: float | None = None,
        prompts: Prompts = NO_PROMPTS,
    ) -> Self:
        """Load the model that the options name, with the loss that they describe, see `in_batch_negatives_loss`.

        Args:
            dropout: hidden and attention dropout of the encoder; None keeps those of its config.
            prompts: that the examples have.

        Raises:
            UserError: the model cannot be loaded, or does not suit an option.
        """
        model = SentenceEncoder.from_pretrained(
            config.pretrained_model_name_or_path, config.pooling_mode, config.output_emb_size, dropout=dropout
        )
        model.encoder.require_positions(config.max_seq_length)
        return cls(
            model,
            loss=partial(in_batch_negatives_loss, margin=config.margin, scale=config.scale, symmetric=symmetric),
            gather_negatives=config.gather_negatives,
            keep_duplicates=config.keep_duplicates,
            micro_batch_size=config.micro_batch_size,
            prompts=prompts,
            tokenizer=tokenizer,
            max_seq_length=config.max_seq_length,
        )

    @classmethod
    @override
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        model = empty_embedder(loaded)
        load_into(model.weights, loaded.weights, model.encoder_prefix, loaded.folder)
        return cls(model, prompts=saved_prompts(loaded), **loaded.inputs)

    @override
    def outputs(self, batch: PackedBatch) -> Tensor:
        if self._micro_batch_size is None or batch.text_ids is None:  # the batches of an evaluation are small
            return self.model(batch)  # (N, E)
        return encode_in_chunks(self.model, batch, self._micro_batch_size * batch.text_ids.shape[1])  # (N, E)

    @override
    def losses_of(self, outputs: Tensor, batch: PackedBatch) -> Losses:
        assert self._loss is not None
        assert batch.text_ids is not None
        texts, local_rows = batch.text_ids, slice(None)  # (rows, S)
        rows = outputs.view(*texts.shape, outputs.shape[-1])  # (rows, S, E)
        if self.negatives is Negatives.GLOBAL:
            rows, local_rows = distributed.gather_rows(rows)  # (rows of all processes, S, E)
            texts, _ = distributed.gather_rows(texts)
        return {"loss": self._loss(rows, None if self._keep_duplicates else texts, local_rows=local_rows)}

    @override
    def metric(self, device: torch.device) -> CorrelationMetric:
        return CorrelationMetric(device)

    @override
    def _read(self, path: str, on_bad_line: str) -> LabelledTexts:
        return read_scored_pairs(path, on_bad_line=on_bad_line)

    @override
    def errors(self, metric: CorrelationMetric, source: LabelledTexts) -> Errors:
        """Where the scores are 0 and 1: the pairs on the wrong side of the threshold that is best by accuracy."""
        gold, threshold = metric.scores == 1, metric.report().get("threshold")  # (examples,)
        predicted = gold if threshold is None else metric.cosines >= threshold["accuracy_threshold"]  # (examples,)
        return wrong_texts(source, gold.astype(int), predicted.astype(int), {"cosine": metric.cosines})


def encode_in_chunks(model: nn.Module, batch: PackedBatch, sentences: int | None) -> Tensor:
    """Embed a batch in the memory of a chunk, with the gradient of the whole batch (gradient caching).

    Each chunk runs without keeping its activations. When the gradient comes back from the loss, which needs all
    embeddings at once, the chunk runs again from the same random state, so that dropout is the same, and its
    activations live until its part of the gradient is done.

    References:
        Gao, Zhang, Han and Callan, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.

    Args:
        model: gives embeddings (N, E).
        batch: N sentences.
        sentences: those of a chunk; None encodes the batch in one piece.

    Returns:
        (N, E).
    """
    if sentences is None or batch.size <= sentences:
        return model(batch)

    def encode(_: Tensor, chunk: PackedBatch) -> Tensor:
        return model(chunk)

    # checkpoint() saves the random state of the devices of the tensors that it is given: hence the ids by themselves.
    return torch.cat(
        [checkpoint(encode, chunk.input_ids, chunk, use_reentrant=False) for chunk in batch.split(sentences)]
    )
