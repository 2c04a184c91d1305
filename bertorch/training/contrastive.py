"""Training of sentence embeddings on in-batch negatives, as SimCSE and text pairs share it."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertorch import distributed
from bertorch.config import ContrastiveConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset
from bertorch.data.load import pairs_with_scores, training_and_dev
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.sentence_transformers import SentenceTransformerFiles
from bertorch.tasks.losses import in_batch_negatives_loss
from bertorch.tasks.metadata import EMBEDDING, Description
from bertorch.training.loop import fit
from bertorch.training.metrics import CorrelationMetric
from bertorch.training.step import BatchOutput
from bertorch.training.tasks import Task
from bertorch.training.weights import Companion


def fit_contrastive(
    config: ContrastiveConfig,
    read: Callable[..., Dataset],
    *,
    both_ways: bool = False,
    dropout: float | None = None,
) -> None:
    """Train a sentence encoder on rows of texts; evaluate it on the scored pairs of `--dev_data_file`.

    Args:
        config: the run's options.
        read: of `bertorch.data.load`, for rows of anchor, positive, and hard negatives if there are any.
        both_ways: also pick the anchor of each positive, see `in_batch_negatives_loss`.
        dropout: hidden and attention dropout of the encoder; None keeps those of its config.

    Raises:
        UserError: a file, the model or an option is at fault.
    """
    name = config.pretrained_model_name_or_path
    tokenizer = load_tokenizer(name)
    train, dev = training_and_dev(config, tokenizer, read, pairs_with_scores)

    embedder = SentenceEncoder.from_pretrained(name, config.pooling_mode, config.output_emb_size, dropout=dropout)
    embedder.encoder.require_positions(config.max_seq_length)
    description = Description(
        task=EMBEDDING,
        max_seq_length=config.max_seq_length,
        pooling_mode=config.pooling_mode,
        output_emb_size=config.output_emb_size,
    )
    description.write(embedder.config)
    task = ContrastiveTask(
        embedder,
        [embedder.config, tokenizer, SentenceTransformerFiles(embedder, config.max_seq_length)],
        loss=partial(in_batch_negatives_loss, margin=config.margin, scale=config.scale, both_ways=both_ways),
        gather_negatives=config.gather_negatives,
        keep_duplicates=config.keep_duplicates,
        micro_batch_size=config.micro_batch_size,
    )
    fit(config, task, train, dev)


class ContrastiveTask(Task[PackedBatch]):
    """In-batch negatives over rows of two or more sentences; the dev metric is the Spearman correlation.

    Args:
        model: gives embeddings (N, E).
        companions: saved with it.
        loss: `bertorch.tasks.losses.in_batch_negatives_loss` with its margin and scale.
        gather_negatives: whether the rows of the other processes are negatives too.
        keep_duplicates: whether rows with the same text are negatives of each other.
        micro_batch_size: rows that are encoded at once; None encodes the whole batch.
    """

    def __init__(
        self,
        model: SentenceEncoder,
        companions: Sequence[Companion],
        *,
        loss: Callable[..., Tensor],
        gather_negatives: bool,
        keep_duplicates: bool,
        micro_batch_size: int | None,
    ) -> None:
        super().__init__(model, companions)
        self.joins_processes = gather_negatives
        self.depends_on_processes = not gather_negatives
        self.recomputes = micro_batch_size is not None
        self._loss = loss
        self._keep_duplicates = keep_duplicates
        self._micro_batch_size = micro_batch_size

    def training_output(self, batch: PackedBatch) -> BatchOutput:
        """The loss summed over the rows of a batch, whose labels are the numbers (rows, S) of their texts."""
        rows_at_once, sentences = self._micro_batch_size, batch.labels.shape[1]
        embeddings = encode_in_chunks(self.model, batch, rows_at_once and rows_at_once * sentences)  # (N, E)
        rows = embeddings.view(*batch.labels.shape, embeddings.shape[-1])  # (rows, S, E)
        texts, own = batch.labels, slice(None)
        if self.joins_processes:
            rows, own = distributed.gather_rows(rows)  # (rows of all processes, S, E)
            texts, _ = distributed.gather_rows(texts)
        return BatchOutput(loss=self._loss(rows, None if self._keep_duplicates else texts, own=own), correct=None)

    def new_metric(self, device: torch.device) -> CorrelationMetric:
        """Spearman and Pearson correlation of the cosine with the scores of pairs."""
        return CorrelationMetric(device)


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
        sentences: those of a chunk; None, or as many as the batch has, encodes it in one piece.

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
