"""Run an encoder of transformers on packed batches."""

import torch
from loguru import logger
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertorch.data.batch import PackedBatch
from bertorch.encoder.attention import ATTENTION, layout_of
from bertorch.encoder.cpu import use_fast_dropout
from bertorch.encoder.inputs import ModelInputs
from bertorch.encoder.trials import LONG, SHORT, eval_mode, matches, supported, trial_batch, unsupported
from bertorch.errors import UserError

_EXPECTED = "an encoder that gives each token of a sentence its hidden state"


class Encoder(nn.Module):
    """A transformers encoder that maps a packed batch to hidden states (T, H).

    Whether a model can run padding-free is not read from a list: at construction it encodes short sentences one by one
    and packed. If the results agree, it runs packed from then on. If they do not (DeBERTa-v2, MPNet, RoFormer, and
    any model that mixes neighbouring tokens outside attention), the log says so, and its batches are padded inside,
    provided that the padded results agree.

    Args:
        model: a model such as `AutoModel` gives, without a head on top.

    Raises:
        UserError: an architecture that gives no hidden state for each token, or whose results for a sentence depend on
            the others of its batch.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        use_fast_dropout(model)
        self.packed = False
        self._own_attention = model.config._attn_implementation
        with supported(model, _EXPECTED), eval_mode(model):
            self.inputs = ModelInputs.of(model)
            if not self._runs_packed() and not self._separates(self.long_trial(), packed=False):
                raise unsupported(model, _EXPECTED, "what it gives for a sentence depends on the others of its batch")
        if not self.packed:
            logger.info("{} does not run padding-free; its batches are padded inside", type(model).__name__)

    @property
    def max_length(self) -> int | None:
        """How many tokens a sentence may have, None without limit."""
        return self.inputs.max_length

    def forward(self, batch: PackedBatch) -> Tensor:
        """Encode a packed batch into hidden states (T, H)."""
        if self.packed:
            inputs = self.inputs.packed(batch)  # (1, T) each
            layout = layout_of(batch, self._dtype(), self._head_size())
            return self.model(**inputs, layout=layout).last_hidden_state.squeeze(0)  # (T, H)
        inputs, block = self.inputs.padded(batch)  # (N, L) each
        hidden = self.model(**inputs).last_hidden_state  # (N, L, H)
        if hidden.shape[:2] != block.mask.shape:
            raise ValueError(f"hidden states {tuple(hidden.shape)} for inputs {tuple(block.mask.shape)}")
        return block.unpad(hidden)  # (T, H)

    def long_trial(self) -> PackedBatch:
        """A trial batch for padded runs, as long as the model allows."""
        return trial_batch(self.model.config, min(LONG, self.max_length or LONG))

    def require_positions(self, max_seq_length: int) -> None:
        """Make sure that the model can take sentences of this many tokens.

        Raises:
            UserError: it has fewer positions.
        """
        if self.max_length is not None and max_seq_length > self.max_length:
            raise UserError(
                f"--max_seq_length {max_seq_length}: expected at most {self.max_length}, the positions that "
                f"{type(self.model).__name__} has for a sentence with full attention"
            )

    def _dtype(self) -> torch.dtype:
        """The type that queries, keys and values will have."""
        device_type = self.model.device.type
        autocast = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if autocast else self.model.dtype

    def _head_size(self) -> int:
        config = self.model.config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def _runs_packed(self) -> bool:
        """Whether packed attention, which then stays set, encodes each sentence as the model does alone."""
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        lengths = [SHORT, SHORT + 2 * window] if window else [SHORT]
        return all(self._separates(trial_batch(config, longest), packed=True) for longest in lengths)

    def _separates(self, batch: PackedBatch, *, packed: bool) -> bool:
        """Whether a batch, packed or padded, gives what each of its sentences gives alone."""
        self._set_packed(packed=False)
        expected = torch.cat([self(sentence) for sentence in batch.split(1)])  # (T, H)

        def together() -> Tensor:
            self._set_packed(packed=packed)
            return self(batch)  # (T, H)

        return matches(expected, together)

    def _set_packed(self, *, packed: bool) -> None:
        attention = ATTENTION if packed else self._own_attention
        if self.model.config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)
        self.packed = packed
