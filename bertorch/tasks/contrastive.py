"""Sentence embeddings from sentences and pairs of them: `run_simcse.py` and `run_batchneg.py`."""

import shlex
from collections.abc import Sequence
from typing import Self, Unpack

import numpy as np
import torch
from loguru import logger
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.config import ContrastiveConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.prompts import NO_PROMPTS, Prompts
from bertorch.data.readers import LabelledTexts, read_scored_pairs
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.tasks.base import Errors, InputSettings, LoadedFolder, Losses, Negatives
from bertorch.tasks.cosent import CoSENT
from bertorch.tasks.cosine_mse import CosineMSE
from bertorch.tasks.embedding import PROMPT_SETTINGS, EmbeddingTask, empty_embedder, saved_prompts
from bertorch.tasks.embedding_loss import EmbeddingLoss
from bertorch.tasks.in_batch_negatives import InBatchNegatives
from bertorch.tasks.matryoshka import saved_widths
from bertorch.tasks.metadata import KEY
from bertorch.tasks.metrics import CorrelationMetric
from bertorch.tasks.scoring import wrong_texts
from bertorch.weights import load_into

# Of `run_batchneg.py`, by the name of the option.
LOSSES: dict[str, type[EmbeddingLoss]] = {loss.name: loss for loss in (InBatchNegatives, CoSENT, CosineMSE)}


class ContrastiveTask(EmbeddingTask):
    """A loss over rows of two or more sentences; the dev metric is the Spearman correlation.

    Args:
        model: gives embeddings (N, E).
        loss: one of `LOSSES`; None where it is not trained.
        micro_batch_size: rows that are encoded at once in training; None encodes the whole batch.
        prompts, matryoshka, inputs: see `EmbeddingTask`.
    """

    name = "embedding"
    scripts = "run_simcse.py or run_batchneg.py"
    head = "pooling"

    def __init__(
        self,
        model: SentenceEncoder | OnnxModel,
        *,
        loss: EmbeddingLoss | None = None,
        micro_batch_size: int | None = None,
        prompts: Prompts = NO_PROMPTS,
        matryoshka: Sequence[int] = (),
        **inputs: Unpack[InputSettings],
    ) -> None:
        super().__init__(model, model, prompts=prompts, matryoshka=matryoshka, **inputs)
        self.negatives = Negatives.NONE if loss is None else loss.negatives
        self.recomputes = micro_batch_size is not None
        self._loss = loss
        self._micro_batch_size = micro_batch_size

    @classmethod
    def from_config(
        cls,
        config: ContrastiveConfig,
        tokenizer: PreTrainedTokenizerBase,
        loss: EmbeddingLoss,
        *,
        dropout: float | None = None,
        prompts: Prompts = NO_PROMPTS,
    ) -> Self:
        """Load the model that the options name.

        Args:
            loss: one of `LOSSES`.
            dropout: hidden and attention dropout of the encoder; None keeps those of its config.
            prompts: that the examples have.

        Raises:
            UserError: the model cannot be loaded, or does not suit an option.
        """
        model = SentenceEncoder.from_pretrained(
            config.pretrained_model_name_or_path, config.pooling_mode, config.output_emb_size, dropout=dropout
        )
        model.encoder.require_positions(config.max_seq_length)
        if not prompts.by_role:
            _tell_of_prompts(model.config, config.pretrained_model_name_or_path)
        return cls(
            model,
            loss=loss,
            micro_batch_size=config.micro_batch_size,
            prompts=prompts,
            matryoshka=config.matryoshka_widths,
            tokenizer=tokenizer,
            max_seq_length=config.max_seq_length,
        )

    @classmethod
    @override
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        model = empty_embedder(loaded)
        load_into(model.weights, loaded.weights, model.encoder_prefix, loaded.folder)
        return cls(model, prompts=saved_prompts(loaded), matryoshka=saved_widths(loaded), **loaded.inputs)

    @override
    def outputs(self, batch: PackedBatch) -> Tensor:
        if self._micro_batch_size is None or not torch.is_grad_enabled():  # the batches of an evaluation are small
            return self.model(batch)  # (N, E)
        sentences_per_row = batch.size // max(len(batch.labels), 1)  # S
        return encode_in_chunks(self.model, batch, self._micro_batch_size * sentences_per_row)  # (N, E)

    @override
    def losses_at(self, embeddings: Tensor, batch: PackedBatch) -> Losses:
        assert self._loss is not None
        return {"loss": self._loss(embeddings, batch)}

    @override
    def loss_weight(self, examples: Examples, indices: np.ndarray) -> float:
        assert self._loss is not None
        return self._loss.weight(examples, indices)

    @override
    def metric_at(self, device: torch.device) -> CorrelationMetric:
        return CorrelationMetric(device)

    @override
    def _read(self, path: str, on_bad_line: str) -> LabelledTexts:
        return read_scored_pairs(path, on_bad_line=on_bad_line)

    @override
    def errors_of(self, metric: CorrelationMetric, source: LabelledTexts) -> Errors:
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


def _tell_of_prompts(config: PretrainedConfig, name: str) -> None:
    """Warn of the prompts that the model to start from was trained with, in a run without any."""
    saved = getattr(config, KEY, None)
    settings = saved if isinstance(saved, dict) else {}  # checked where such a folder is loaded as a whole
    options = [f"--{each} {shlex.quote(str(settings[each]))}" for each in PROMPT_SETTINGS if settings.get(each)]
    if options:
        logger.warning("{}: was trained with prompts, this run has none: {}", name, " ".join(options))
