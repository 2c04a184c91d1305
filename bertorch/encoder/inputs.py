"""The tensors that a model of transformers takes for a packed batch: token types, positions, padding."""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from bertorch.data.batch import PackedBatch
from bertorch.encoder.layouts import BlockLayout


@dataclass(frozen=True)
class ModelInputs:
    """How a model takes its inputs.

    Attributes:
        num_token_types: how many token types it has embeddings for, 0 if it takes none.
        padding_id: the token that fills a padded row.
        padding_position: RoBERTa's family counts positions from this one + 1; None counts from 0.
        max_length: how many tokens a sentence may have, None without limit.
    """

    num_token_types: int
    padding_id: int
    padding_position: int | None
    max_length: int | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ModelInputs":
        """Those of an encoder, without a head on top."""
        config = model.config
        takes_token_types = "token_type_ids" in inspect.signature(model.forward).parameters
        padding_position, rows = _position_table(model)
        limits = [rows, getattr(config, "max_position_embeddings", None), _full_attention_limit(config)]
        return cls(
            # XLM and GPT-2 take token types, but have no embeddings for them: they look them up among the words.
            num_token_types=(getattr(config, "type_vocab_size", None) or 0) if takes_token_types else 0,
            padding_id=getattr(config, "pad_token_id", None) or 0,
            padding_position=padding_position,
            max_length=min((limit for limit in limits if limit and limit > 0), default=None),
        )

    def packed(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Keyword arguments of `forward` for the batch as one row of T tokens, each (1, T)."""
        return {
            "input_ids": batch.input_ids[None],  # (1, T)
            **{name: types[None] for name, types in self._token_types(batch).items()},  # (1, T)
            "position_ids": self._position_ids(batch)[None],  # (1, T)
        }

    def padded(self, batch: PackedBatch) -> tuple[dict[str, Tensor], BlockLayout]:
        """Keyword arguments of `forward` for the batch as N rows, each (N, L), and where its tokens are in them."""
        layout = BlockLayout.of(batch)
        return {
            "input_ids": layout.pad(batch.input_ids, self.padding_id),  # (N, L)
            **{name: layout.pad(types) for name, types in self._token_types(batch).items()},  # (N, L)
            "attention_mask": layout.mask.long(),  # (N, L)
        }, layout

    def _token_types(self, batch: PackedBatch) -> dict[str, Tensor]:
        if not self.num_token_types:
            return {}
        return {"token_type_ids": batch.token_type_ids.clamp(max=self.num_token_types - 1)}  # (T,)

    def _position_ids(self, batch: PackedBatch) -> Tensor:
        if self.padding_position is None:
            return batch.position_ids  # (T,)
        # As `create_position_ids_from_input_ids` does, a <pad> is not counted, also not one that stands in a text.
        counted = (batch.input_ids != self.padding_id).long()  # (T,)
        before = counted.cumsum(0) - counted  # (T,), in the whole row
        first_tokens = torch.arange(len(counted), device=counted.device) - batch.position_ids  # (T,), of its sentence
        return (before - before[first_tokens] + 1) * counted + self.padding_position  # (T,)


def _position_table(model: PreTrainedModel) -> tuple[int | None, int | None]:
    """The padding index of the table of positions, and for how many tokens it has rows; None for what there is not."""
    for name, module in model.named_modules():
        # I-BERT's quantised table is no `nn.Embedding`, but has its attributes.
        if name.split(".")[-1] == "position_embeddings" and isinstance(getattr(module, "weight", None), Tensor):
            padding = getattr(module, "padding_idx", None)
            return padding, len(module.weight) - (0 if padding is None else padding + 1)
    return None, None


def _full_attention_limit(config: PretrainedConfig) -> int | None:
    """How many tokens BigBird attends to in full: the blocks of its sparse attention depend on the padding."""
    if getattr(config, "attention_type", None) != "block_sparse":
        return None
    return (5 + 2 * config.num_random_blocks) * config.block_size
