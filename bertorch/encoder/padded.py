"""Models on padded inputs (N, L), as programs without packing run them: what is exported."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.pooling import PretrainedPooler
from bertorch.precision import at_least_fp32

LOGITS, HIDDEN, EMBEDDING = "logits", "last_hidden_state", "sentence_embedding"  # what the outputs are called


class PaddedModel(nn.Module):
    """A model on input ids, attention mask and, where the encoder has them, token types, (N, L) each.

    The mask is 1 at a token, and padding is on the right.

    Args:
        encoder: its inputs are those of the model; it must not have been given other layers for inference.
        output_names: of what `forward` gives, in its order; the last one is what stands for the packed model's result.
    """

    def __init__(self, encoder: Encoder, output_names: Sequence[str]) -> None:
        super().__init__()
        self.model_inputs = encoder.inputs
        self.output_names = tuple(output_names)
        self.training = encoder.training

    @property
    def input_names(self) -> tuple[str, ...]:
        """The arguments of `forward` in their order."""
        types = ("token_type_ids",) if self.model_inputs.num_token_types else ()
        return ("input_ids", "attention_mask", *types)

    def arguments(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        """The arguments of `forward` for a packed batch, (N, L) each."""
        inputs, _ = self.model_inputs.padded(batch)
        return tuple(inputs[name] for name in self.input_names)

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.input_names, tensors, strict=True))


class PaddedClassifier(PaddedModel):
    """A `…For…Classification` of transformers: logits (N, C) of texts, or (N, L, C) of tokens."""

    def __init__(self, encoder: Encoder, model: PreTrainedModel) -> None:
        super().__init__(encoder, (LOGITS,))
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """See the class."""
        return self.model(**self._named(inputs)).logits


class PaddedTokens(PaddedModel):
    """What a head makes of the hidden state of each token, (N, L, …); the head treats each by itself."""

    def __init__(self, encoder: Encoder, head: nn.Module, output_name: str) -> None:
        super().__init__(encoder, (output_name,))
        self.model, self.head = encoder.model, head

    def forward(self, *inputs: Tensor) -> Tensor:
        """See the class."""
        hidden = self.model(**self._named(inputs)).last_hidden_state  # (N, L, H)
        return self.head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])


class PaddedEmbedder(PaddedModel):
    """A sentence encoder: hidden states (N, L, H), and embeddings (N, E).

    Args:
        encoder: see `PaddedModel`.
        pooling_modes: names of `PADDED_POOLING`; several are concatenated.
        layers: what follows pooling.
        truncate_dim: dimensions kept of what they give; None keeps all.
    """

    def __init__(
        self, encoder: Encoder, pooling_modes: Sequence[str], layers: nn.Module, truncate_dim: int | None
    ) -> None:
        super().__init__(encoder, (HIDDEN, EMBEDDING))
        self.model = encoder.model
        self.pools = nn.ModuleList(PADDED_POOLING[mode](encoder.model) for mode in pooling_modes)
        self.layers, self.truncate_dim = layers, truncate_dim

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        named = self._named(inputs)
        hidden = self.model(**named).last_hidden_state  # (N, L, H)
        pooled = [pool(hidden, named["attention_mask"]) for pool in self.pools]  # (N, H) each
        embeddings = self.layers(torch.cat(pooled, dim=-1))  # (N, E)
        return hidden, at_least_fp32(embeddings[:, : self.truncate_dim])


class _Pool(nn.Module):
    """A pooling of hidden states (N, L, H) under a mask (N, L), (N, H)."""

    def __init__(self, pool: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._pool = pool

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self._pool(hidden, mask)


class _PretrainedPool(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pooler = PretrainedPooler(model)

    @override
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.pooler(hidden[:, 0])  # (N, H)


def _sums(hidden: Tensor, weights: Tensor) -> Tensor:
    """(N, L, H), (N, L) → (N, H)."""
    return (hidden * weights[..., None].to(hidden.dtype)).sum(dim=1)


def _lengths(mask: Tensor) -> Tensor:
    """(N, L) → (N, 1)."""
    return mask.sum(dim=1, keepdim=True)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _sums(hidden, mask) / _lengths(mask)


def _mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    return _sums(hidden, mask) / _lengths(mask).to(hidden.dtype).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.cumsum(dim=1) * mask  # (N, L)
    return _sums(hidden, weights) / weights.sum(dim=1, keepdim=True)


def _maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask[..., None] == 0, torch.finfo(hidden.dtype).min).amax(dim=1)


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    last = (_lengths(mask) - 1)[..., None].expand(-1, 1, hidden.shape[-1])  # (N, 1, H)
    return hidden.gather(1, last)[:, 0]


# As `bertorch.encoder.pooling.POOLING`: encoder → pooling of its hidden states.
PADDED_POOLING: dict[str, Callable[[Any], nn.Module]] = {
    "linear": _PretrainedPool,
    "cls": lambda _: _Pool(lambda hidden, _: hidden[:, 0]),
    "max": lambda _: _Pool(_maximum),
    "mean": lambda _: _Pool(_mean),
    "mean_sqrt_len_tokens": lambda _: _Pool(_mean_sqrt_len),
    "weightedmean": lambda _: _Pool(_weighted_mean),
    "lasttoken": lambda _: _Pool(_last),
}


@contextmanager
def eager_attention(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Run models of transformers with its eager attention, of plain operations, which every program knows."""
    own = [(model, model.config._attn_implementation) for model in models]
    try:
        for model, _ in own:
            model.set_attn_implementation("eager")
        yield
    finally:
        for model, implementation in own:
            model.set_attn_implementation(implementation)
