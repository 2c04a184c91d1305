"""Pooling: hidden states of tokens (T, H) → one vector a sentence (N, H)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bertorch.data.batch import PackedBatch
from bertorch.precision import at_least_fp32

Pooling = Callable[[Tensor, PackedBatch], Tensor]


def cls(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The hidden state of each sentence's first token, [CLS]: (T, H) → (N, H)."""
    return hidden.index_select(0, batch.cu_seqlens[:-1])  # (N, H)


def mean(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The mean over each sentence's tokens, [CLS] and [SEP] included: (T, H) → (N, H), at least in fp32."""
    lengths = batch.cu_seqlens.diff()  # (N,)
    hidden = at_least_fp32(hidden)  # a sum over 512 tokens in bf16 would lose most of its digits
    sums = hidden.new_zeros(len(batch.bounds) - 1, hidden.shape[1])  # (N, H), one row more with filler
    return sums.index_add(0, batch.sentence_ids, hidden)[: batch.size] / lengths[:, None]  # (N, H)


class PretrainedPooler(nn.Module):
    """The pooler that came with an encoder: a dense layer and an activation over the first token.

    Args:
        model: an encoder with a `pooler`, most often one that expects (N, L, H). Those of ALBERT and BigBird are bare
            linear layers, whose activation stands beside them.

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
    """Pooling by the pooler that came with an encoder.

    Raises:
        ValueError: the encoder has no pooler.
    """
    pooler = PretrainedPooler(model)
    return lambda hidden, batch: pooler(cls(hidden, batch))


# What `--pooling_mode` names: encoder → pooling of its hidden states.
POOLING: dict[str, Callable[[Any], Pooling]] = {"linear": linear, "cls": lambda _: cls, "mean": lambda _: mean}
