"""Sentence embeddings: an encoder, pooling, and further layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.padded import PaddedEmbedder
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
        self.size = output_emb_size or features  # E
        self.emb_reduce_linear = None if output_emb_size is None else nn.Linear(features, output_emb_size)
        self.layers = nn.Sequential()  # filled by `from_modules`
        self.truncate_dim: int | None = None

    @classmethod
    def from_pretrained(
        cls, name: str, pooling_mode: str, output_emb_size: int | None = None, **settings: Any
    ) -> "SentenceEncoder":
        """With the encoder of a hub model or local folder; `settings` and errors are those of `load_pretrained`."""
        return cls(load_pretrained(AutoModel, name, **settings), pooling_mode, output_emb_size)

    @classmethod
    def from_modules(cls, model: PreTrainedModel, modules: SentenceModules) -> "SentenceEncoder":
        """An encoder whose embeddings are those of `SentenceTransformer(folder).encode`.

        Raises:
            UserError: the layers do not fit on top of each other.
        """
        embedder = cls(model, modules.pooling_modes)
        embedder.layers, embedder.truncate_dim = modules.layers, modules.truncate_dim
        try:
            embedder.size = modules.layers(torch.zeros(1, embedder.size))[:, : modules.truncate_dim].shape[1]
        except RuntimeError as error:
            raise UserError(
                f"{modules.transformer_folder}: expected Dense modules that take the {embedder.size} features of "
                f"pooling, one after the other, got {reason(error)}"
            ) from error
        return embedder

    @property
    def output_emb_size(self) -> int | None:
        """Of the linear layer after pooling; None without one."""
        return None if self.emb_reduce_linear is None else self.emb_reduce_linear.out_features

    @override
    def padded(self) -> PaddedEmbedder:
        modes = [self.pooling_mode] if isinstance(self.pooling_mode, str) else self.pooling_mode
        reduced = [] if self.emb_reduce_linear is None else [self.emb_reduce_linear]
        return PaddedEmbedder(self.encoder, modes, nn.Sequential(*reduced, self.layers), self.truncate_dim)

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self.encoder.model.config

    @property
    @override
    def weights(self) -> nn.ModuleDict:
        weights = nn.ModuleDict({self.encoder_prefix: self.encoder.model})  # as `AutoModel` loads it
        if self.emb_reduce_linear is not None:
            weights["emb_reduce_linear"] = self.emb_reduce_linear
        return weights

    @override
    def is_head(self, name: str) -> bool:
        return False  # the layer after pooling is part of what was learned

    def forward(self, batch: PackedBatch) -> Tensor:
        """Embeddings (N, E), at least in fp32."""
        if not batch.size:  # a process without examples still takes part in the exchange of embeddings
            like = self.encoder.model
            return torch.zeros(0, self.size, device=like.device, dtype=like.dtype, requires_grad=True)
        hidden = self.encoder(batch)  # (T, H)
        pooled = [pool(hidden, batch) for pool in self._pools]  # (N, H) each
        embeddings = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)  # (N, H · modes)
        if self.emb_reduce_linear is not None:
            embeddings = self.emb_reduce_linear(embeddings)  # (N, E)
        return at_least_fp32(self.layers(embeddings)[:, : self.truncate_dim])  # (N, E)
