"""Sentence embeddings: an encoder, pooling, and a linear layer on demand."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from bertorch.data.batch import PackedBatch
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.pooling import POOLING
from bertorch.encoder.pretrained import load_pretrained
from bertorch.errors import UserError
from bertorch.precision import at_least_fp32


class SentenceEncoder(EncoderModel):
    """Maps a packed batch to one embedding a sentence, (N, E).

    Args:
        model: an encoder such as `AutoModel` gives.
        pooling_mode: a name of `bertorch.encoder.pooling.POOLING`.
        output_emb_size: E, by a linear layer after pooling; None keeps the encoder's H.

    Raises:
        UserError: `linear` pooling, and the encoder came without a pooler.
    """

    pipeline_tag = "sentence-similarity"

    def __init__(self, model: PreTrainedModel, pooling_mode: str, output_emb_size: int | None = None) -> None:
        super().__init__()
        self.encoder = Encoder(model)
        self.pooling_mode = pooling_mode
        try:
            self._pool = POOLING[pooling_mode](model)
        except ValueError as error:
            raise UserError(f"--pooling_mode {pooling_mode}: {error}; choose cls or mean") from error
        hidden_size = model.config.hidden_size
        self.size = output_emb_size or hidden_size
        self.emb_reduce_linear = None if output_emb_size is None else nn.Linear(hidden_size, output_emb_size)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        pooling_mode: str,
        output_emb_size: int | None = None,
        *,
        dropout: float | None = None,
        **settings: Any,
    ) -> "SentenceEncoder":
        """Load a hub model or local folder.

        Args:
            name: hub name or local folder.
            pooling_mode: a name of `bertorch.encoder.pooling.POOLING`.
            output_emb_size: E; None keeps the encoder's H.
            dropout: hidden and attention dropout of the encoder; None keeps those of its config.
            settings: fields of the model's config to set, such as `id2label`.

        Raises:
            UserError: it cannot be loaded, has no such pooling, or no dropout to set.
        """
        model = load_pretrained(AutoModel, name, dropout=dropout, **settings)
        model.config.architectures = [type(model).__name__]
        return cls(model, pooling_mode, output_emb_size)

    @property
    def config(self) -> PretrainedConfig:
        """The encoder's config."""
        return self.encoder.model.config

    @property
    def encoder_prefix(self) -> str:
        """The encoder's name within `weights`, such as `bert`."""
        return self.encoder.model.base_model_prefix

    @property
    def weights(self) -> nn.ModuleDict:
        """What is saved and warm-started: `bert.…`, which `AutoModel` loads, and `emb_reduce_linear.…`, if any."""
        modules: dict[str, nn.Module] = {self.encoder_prefix: self.encoder.model}
        if self.emb_reduce_linear is not None:
            modules["emb_reduce_linear"] = self.emb_reduce_linear
        return nn.ModuleDict(modules)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Embed the N sentences of a packed batch, (N, E), at least in fp32."""
        if not batch.size:  # a process without examples still takes part in the exchange of embeddings
            like = self.encoder.model
            return torch.zeros(0, self.size, device=like.device, dtype=like.dtype, requires_grad=True)
        pooled = self._pool(self.encoder(batch), batch)  # (N, H)
        return at_least_fp32(pooled if self.emb_reduce_linear is None else self.emb_reduce_linear(pooled))
