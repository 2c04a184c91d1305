"""Pooling: hidden states of tokens (T, H) → one vector a sentence (N, H)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bertorch.data.batch import PackedBatch
from bertorch.precision import at_least_fp32

Pooling = Callable[[Tensor, PackedBatch], Tensor]


def cls(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The hidden state of each sentence's first token, [CLS]."""
    return hidden.index_select(0, batch.cu_seqlens[:-1])  # (N, H)


def mean(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The mean over each sentence's tokens, [CLS] and [SEP] included."""
    return _sums(hidden, batch) / batch.cu_seqlens.diff()[:, None]  # (N, H)


def mean_sqrt_len(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The sum over each sentence's tokens divided by the square root of their count."""
    sums = _sums(hidden, batch)  # (N, H)
    return sums / batch.cu_seqlens.diff().to(sums.dtype).sqrt()[:, None]


def weighted_mean(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The mean over each sentence's tokens with weights 1, 2, 3, …; SGPT, Muennighoff, 2022."""
    lengths = batch.cu_seqlens.diff()  # (N,)
    weights = batch.position_ids + 1  # (T,)
    return _sums(at_least_fp32(hidden) * weights[:, None], batch) / (lengths * (lengths + 1) / 2)[:, None]  # (N, H)


def maximum(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The largest value of each dimension over each sentence's tokens."""
    sentences = batch.sentence_ids[:, None].expand_as(hidden)  # (T, H)
    lowest = hidden.new_full((len(batch.bounds) - 1, hidden.shape[1]), -torch.inf)  # (N, H), a row more for filler
    return lowest.scatter_reduce(0, sentences, hidden, "amax")[: batch.size]  # (N, H)


def last(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The hidden state of each sentence's last token."""
    return hidden.index_select(0, batch.cu_seqlens[1:] - 1)  # (N, H)


def _sums(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Sums over each sentence's tokens, (N, H), at least in fp32: 512 tokens in bf16 would lose most digits."""
    hidden = at_least_fp32(hidden)  # (T, H)
    sums = hidden.new_zeros(len(batch.bounds) - 1, hidden.shape[1])  # (N, H), a row more for filler
    return sums.index_add(0, batch.sentence_ids, hidden)[: batch.size]


def mean_over_windows(logits: Tensor, counts: Tensor) -> Tensor:
    """The mean (inputs, C), at least in fp32, of the logits (N, C) of the windows of each input, `counts` (inputs,)."""
    logits = at_least_fp32(logits)  # (N, C)
    inputs = torch.arange(len(counts), device=counts.device)  # (inputs,)
    input_ids = torch.repeat_interleave(inputs, counts, output_size=len(logits))  # (N,), without asking a GPU for N
    sums = logits.new_zeros(len(counts), logits.shape[1]).index_add(0, input_ids, logits)  # (inputs, C)
    return sums / counts[:, None]


class PretrainedPooler(nn.Module):
    """The pooler that came with an encoder: a dense layer and an activation over the first token.

    Most poolers expect (N, L, H). Those of ALBERT and BigBird are bare linear layers, whose activation stands beside
    them in the encoder.

    Raises:
        ValueError: the encoder has no pooler.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if getattr(model, "pooler", None) is None:
            raise ValueError(f"expected an encoder with a pooler, got {type(model).__name__} without one")
        self.pooler = model.pooler
        beside = getattr(model, "pooler_activation", None) or getattr(model, "activation", None)
        self.activation = beside if isinstance(model.pooler, nn.Linear) else None

    def forward(self, first_tokens: Tensor) -> Tensor:
        """Pool the hidden states of the first tokens, (N, H) → (N, H)."""
        if self.activation is not None:
            return self.activation(self.pooler(first_tokens))
        return self.pooler(first_tokens[:, None])


def linear(model: Any) -> Pooling:
    """Pooling by the pooler that came with an encoder; a `ValueError` if it has none."""
    return partial(_pooled_first, PretrainedPooler(model))


def _pooled_first(pooler: PretrainedPooler, hidden: Tensor, batch: PackedBatch) -> Tensor:
    return pooler(cls(hidden, batch))  # (N, H)


# What `--pooling_mode` names, and the other poolings of sentence-transformers: encoder → pooling of its hidden states.
POOLING: dict[str, Callable[[Any], Pooling]] = {
    "linear": linear,
    "cls": lambda _: cls,
    "max": lambda _: maximum,
    "mean": lambda _: mean,
    "mean_sqrt_len_tokens": lambda _: mean_sqrt_len,
    "weightedmean": lambda _: weighted_mean,
    "lasttoken": lambda _: last,
}
