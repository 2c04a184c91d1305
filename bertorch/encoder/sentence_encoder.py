"""Sentence embeddings: an encoder, pooling, and layers on demand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.pooling import POOLING
from bertorch.encoder.pretrained import load_pretrained
from bertorch.encoder.sentence_modules import SentenceModules
from bertorch.errors import UserError
from bertorch.files import reason
from bertorch.precision import at_least_fp32


class SentenceEncoder(EncoderModel):
    """Maps a packed batch to one embedding a sentence, (N, E).

    Args:
        model: an encoder such as `AutoModel` gives.
        pooling_mode: a name of `bertorch.encoder.pooling.POOLING`; several are concatenated.
        output_emb_size: E, by a linear layer after pooling; None keeps what pooling gives.

    Attributes:
        size: E.

    Raises:
        UserError: `linear` pooling, and the encoder came without a pooler.
    """

    def __init__(
        self, model: PreTrainedModel, pooling_mode: str | Sequence[str], output_emb_size: int | None = None
    ) -> None:
        super().__init__()
        self.encoder = Encoder(model)
        self.pooling_mode = pooling_mode
        modes = [pooling_mode] if isinstance(pooling_mode, str) else pooling_mode
        try:
            self._pools = [POOLING[mode](model) for mode in modes]
        except ValueError as error:
            raise UserError(f"--pooling_mode {pooling_mode}: {error}; choose cls or mean") from error
        features = model.config.hidden_size * len(modes)
        self.size = output_emb_size or features
        self.emb_reduce_linear = None if output_emb_size is None else nn.Linear(features, output_emb_size)
        self.layers = nn.Sequential()

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
        """Load the encoder from a hub model or local folder; `dropout` and `settings` are those of `load_pretrained`.

        Raises:
            UserError: it cannot be loaded, has no such pooling, or no dropout to set.
        """
        model = load_pretrained(AutoModel, name, dropout=dropout, **settings)
        model.config.architectures = [type(model).__name__]
        return cls(model, pooling_mode, output_emb_size)

    @classmethod
    def from_modules(cls, model: PreTrainedModel, modules: SentenceModules) -> "SentenceEncoder":
        """An encoder whose embeddings are those of `SentenceTransformer(folder).encode`.

        Args:
            model: the encoder of `modules.transformer_folder`.
            modules: what the folder says of itself.

        Raises:
            UserError: its layers do not fit on top of each other.
        """
        embedder = cls(model, modules.pooling_modes)
        embedder.layers = modules.layers
        try:
            embedder.size = modules.layers(torch.zeros(1, embedder.size)).shape[1]
        except RuntimeError as error:
            raise UserError(
                f"{modules.transformer_folder}: expected Dense modules that take the {embedder.size} features of "
                f"pooling, one after the other, got {reason(error)}"
            ) from error
        return embedder

    @property
    def config(self) -> PretrainedConfig:
        """The encoder's config."""
        return self.encoder.model.config

    @property
    @override
    def encoder_prefix(self) -> str:
        return self.encoder.model.base_model_prefix

    @property
    @override
    def weights(self) -> nn.ModuleDict:
        modules: dict[str, nn.Module] = {self.encoder_prefix: self.encoder.model}  # as `AutoModel` loads it
        if self.emb_reduce_linear is not None:
            modules["emb_reduce_linear"] = self.emb_reduce_linear
        return nn.ModuleDict(modules)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        """Embed the N sentences of a packed batch, (N, E), at least in fp32."""
        if not batch.size:  # a process without examples still takes part in the exchange of embeddings
            like = self.encoder.model
            return torch.zeros(0, self.size, device=like.device, dtype=like.dtype, requires_grad=True)
        hidden = self.encoder(batch)  # (T, H)
        pooled = [pool(hidden, batch) for pool in self._pools]  # (N, H) each
        embeddings = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)
        if self.emb_reduce_linear is not None:
            embeddings = self.emb_reduce_linear(embeddings)  # (N, E)
        return at_least_fp32(self.layers(embeddings))  # (N, E)
