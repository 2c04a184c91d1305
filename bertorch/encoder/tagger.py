"""Sequence labelling: transformers' own token classification model on packed batches, alone or under a CRF."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.heads import head_of
from bertorch.encoder.trials import attempt, evaluating, gives, one_by_one, trial_batch
from bertorch.errors import UserError
from bertorch.precision import at_least_fp32

# An evaluation encodes a sentence with all its windows; so many are encoded at once, however long the sentence is.
WINDOWS_AT_ONCE = 256


class TokenClassifier(EncoderModel):
    """A `…ForTokenClassification` of transformers that gives emissions for the words of packed batches.

    The head sees the first word piece of each word only. The weights keep transformers' layout and names, and the
    emissions are the logits that `AutoModelForTokenClassification` gives at those pieces.

    Args:
        model: the model with its token classification head.

    Raises:
        UserError: an architecture whose head cannot be run apart from its encoder.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        batch = trial_batch(model.config)
        with evaluating(model):  # before the encoder is set to packed attention
            expected = attempt(lambda: torch.cat([model(input_ids=ids).logits[0] for ids in one_by_one(batch)]))
        self.encoder = Encoder(model.base_model)
        self.head = head_of(model)
        with evaluating(self):
            runs_apart = expected is not None and gives(expected, lambda: self._logits(self.encoder(batch)))
        if not runs_apart:
            raise UserError(
                f"expected an encoder with a token classification head over its hidden states, got "
                f"{type(model).__name__}, whose logits cannot be had from them; choose another "
                "--pretrained_model_name_or_path"
            )

    @property
    def config(self) -> PretrainedConfig:
        """Of the whole model."""
        return self.model.config

    @property
    def weights(self) -> nn.Module:
        """The whole model under transformers' names."""
        return self.model

    @property
    def encoder_prefix(self) -> str:
        """The encoder's name within `weights`, such as `bert`."""
        return self.model.base_model_prefix

    def forward(self, batch: TaggedBatch) -> Tensor:
        """Emissions (K, C), in at least fp32."""
        if self.training or batch.size <= WINDOWS_AT_ONCE:
            hidden = self.encoder(batch)  # (T, H)
        else:
            hidden = torch.cat([self.encoder(part) for part in batch.split(WINDOWS_AT_ONCE)])  # (T, H)
        return at_least_fp32(self._logits(hidden.index_select(0, batch.word_starts)))

    def _logits(self, hidden: Tensor) -> Tensor:
        """(K, H) → (K, C), as if all words were one sentence: the head looks at each by itself."""
        return self.head(inputs_embeds=hidden[None]).logits.squeeze(0)
