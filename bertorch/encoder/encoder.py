"""Run an encoder of transformers on packed batches: its inputs, its attention, and whether they separate sentences."""

import inspect
from dataclasses import dataclass

import torch
from loguru import logger
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder.attention import ATTENTION, BlockLayout, FlashLayout, Layout, runs_flash
from bertorch.encoder.cpu import use_fast_dropout
from bertorch.encoder.cpu_attention import CPULayout
from bertorch.encoder.pretrained import config_positions, require_positions
from bertorch.encoder.trials import LONG, SHORT, eval_mode, matches, supported, trial_batch, unsupported
from bertorch.errors import UserError

_EXPECTED = "an encoder that gives each token of a sentence its hidden state"


@dataclass(frozen=True)
class ModelInputs:
    """How a model takes its inputs."""

    num_token_types: int  # rows of its embeddings of token types, 0 if it takes none
    padding_id: int  # the token that fills a padded row
    padding_position: int | None  # RoBERTa's family counts positions from this one + 1; None counts from 0
    max_length: int | None  # tokens of a sentence, None without limit

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ModelInputs":
        """Those of an encoder, without a head on top."""
        config = model.config
        takes_token_types = "token_type_ids" in inspect.signature(model.forward).parameters
        padding_position, rows = _position_table(model)
        limits = [rows, config_positions(config)]
        return cls(
            # XLM and GPT-2 take token types, but have no embeddings for them: they look them up among the words.
            num_token_types=(getattr(config, "type_vocab_size", None) or 0) if takes_token_types else 0,
            padding_id=getattr(config, "pad_token_id", None) or 0,
            padding_position=padding_position,
            max_length=min((limit for limit in limits if limit and limit > 0), default=None),
        )

    def packed(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Keyword arguments of `forward` for the batch as one row of T tokens, each (1, T)."""
        inputs = {"input_ids": batch.input_ids, **self._token_types(batch), "position_ids": self._position_ids(batch)}
        return {name: tensor[None] for name, tensor in inputs.items()}  # (1, T)

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


def layout_of(batch: PackedBatch, dtype: torch.dtype, head_size: int, *, compiled: bool = False) -> Layout:
    """The layout of a batch for the fastest attention on its device to queries of this type and D.

    If `compiled`, for one whose operations `torch.compile` can follow, in a graph for batches of all sizes.
    """
    device = batch.input_ids.device
    if runs_flash(device, dtype, head_size):
        return FlashLayout(batch.bounds, batch.max_seqlen, dtype)
    return CPULayout.of(batch) if device.type == "cpu" and not compiled else BlockLayout.of(batch)


class LimitedLength:
    """What takes sentences of a limited length."""

    @property
    def max_length(self) -> int | None:
        """Tokens of a sentence, None without limit."""
        raise NotImplementedError

    def require_positions(self, max_seq_length: int) -> None:
        """Raise a `UserError` if there are fewer positions than this."""
        require_positions(max_seq_length, self.max_length, self._described())

    def _described(self) -> str:
        return type(self).__name__


class Encoder(nn.Module, LimitedLength):
    """A transformers encoder, without a head on top, that maps a packed batch to hidden states (T, H).

    Whether a model can run padding-free is not read from a list: at construction it encodes short sentences one by one
    and packed. If the results differ (DeBERTa-v2, MPNet, RoFormer, and any model that mixes neighbouring tokens outside
    attention), the log says so, and its batches are padded inside, provided that the padded results agree.

    Raises:
        UserError: an architecture that gives no hidden state for each token, or whose results for a sentence depend on
            the others of its batch, or weights that give results that are not finite.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        use_fast_dropout(model)
        self.packed = False
        self.compiled = False  # whether its model is
        self._own_attention = model.config._attn_implementation
        with supported(model, _EXPECTED), eval_mode(model):
            self.inputs = ModelInputs.of(model)
            if not self._runs_packed() and not self._separates(self.long_trial(), packed=False):
                raise unsupported(model, _EXPECTED, "what it gives for a sentence depends on the others of its batch")
        if not self.packed:
            logger.info("{} does not run padding-free; its batches are padded inside", type(model).__name__)

    @property
    @override
    def max_length(self) -> int | None:
        return self.inputs.max_length

    def forward(self, batch: PackedBatch) -> Tensor:
        """Hidden states (T, H)."""
        if self.packed:
            inputs = self.inputs.packed(batch)  # (1, T) each
            config = self.model.config
            head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            layout = layout_of(batch, self._dtype(), head_size, compiled=self.compiled)
            return self.model(**inputs, layout=layout).last_hidden_state.squeeze(0)  # (T, H)
        inputs, block = self.inputs.padded(batch)  # (N, L) each
        hidden = self.model(**inputs).last_hidden_state  # (N, L, H)
        if hidden.shape[:2] != block.mask.shape:
            raise ValueError(f"hidden states {tuple(hidden.shape)} for inputs {tuple(block.mask.shape)}")
        return block.unpad(hidden)  # (T, H)

    def long_trial(self) -> PackedBatch:
        """A trial batch for padded runs, as long as the model allows."""
        return trial_batch(self.model.config, min(LONG, self.max_length or LONG))

    @override
    def _described(self) -> str:
        return type(self.model).__name__

    def _dtype(self) -> torch.dtype:
        """The type that queries, keys and values will have."""
        device_type = self.model.device.type
        autocast = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if autocast else self.model.dtype

    def _runs_packed(self) -> bool:
        """Whether packed attention, which stays set, encodes each sentence as the model does alone."""
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        lengths = [SHORT, SHORT + 2 * window] if window else [SHORT]
        return all(self._separates(trial_batch(config, longest), packed=True) for longest in lengths)

    def _separates(self, batch: PackedBatch, *, packed: bool) -> bool:
        """Whether a batch, packed or padded, gives the hidden states that each of its sentences gives alone."""
        self._set_packed(packed=False)
        expected = torch.cat([self(sentence) for sentence in batch.split(1)])  # (T, H)
        if not expected.isfinite().all():
            raise UserError(
                f"expected finite hidden states of {type(self.model).__name__}, got NaN or infinity in a trial; are "
                "its weights damaged, or of a run that diverged?"
            )

        def together() -> Tensor:
            self._set_packed(packed=packed)
            return self(batch)  # (T, H)

        return matches(expected, together)

    def _set_packed(self, *, packed: bool) -> None:
        attention = ATTENTION if packed else self._own_attention
        if self.model.config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)
        self.packed = packed


def _position_table(model: PreTrainedModel) -> tuple[int | None, int | None]:
    """The padding index of the position embeddings and the number of tokens they have rows for, None if missing."""
    for name, module in model.named_modules():
        # I-BERT's quantised table is no `nn.Embedding`, but has its attributes.
        if name.split(".")[-1] == "position_embeddings" and isinstance(getattr(module, "weight", None), Tensor):
            padding = getattr(module, "padding_idx", None)
            return padding, len(module.weight) - (0 if padding is None else padding + 1)
    return None, None
