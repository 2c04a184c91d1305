"""Classification of texts and text pairs: transformers' own classification model on packed batches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from bertorch.data.batch import PackedBatch
from bertorch.encoder import pooling
from bertorch.encoder.encoder import Encoder, label_settings, load_pretrained
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.heads import head_of
from bertorch.encoder.layouts import BlockLayout
from bertorch.encoder.trials import attempt, evaluating, gives, one_by_one, trial_batch
from bertorch.errors import UserError


class SequenceClassifier(EncoderModel):
    """A `…ForSequenceClassification` of transformers that takes packed batches.

    The encoder runs packed; then the architecture's own head runs on what the encoder gave. So the weights keep
    transformers' layout and names, and the logits are those that `AutoModelForSequenceClassification` gives.

    Most heads read the first token of a sentence only and get just that, (N, 1, H); a head that reads more (ModernBERT
    with `classifier_pooling: mean`) gets the padded block (N, L, H). Which of the two is found out at construction, by
    comparing with the model's own logits.

    Args:
        model: the model with its classification head.

    Raises:
        UserError: an architecture whose head cannot be run apart from its encoder.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        if not self._runs_apart():
            raise UserError(
                f"expected an encoder with a classification head over its hidden states, got {type(model).__name__}, "
                "whose logits cannot be had from them; choose another --pretrained_model_name_or_path"
            )

    @classmethod
    def from_pretrained(cls, name: str, labels: Sequence[str]) -> "SequenceClassifier":
        """Load a hub model or local folder with a head for these labels.

        Args:
            name: hub name or local folder.
            labels: the labels in the order of their ids; they go into the config as `id2label`.

        Raises:
            UserError: it cannot be loaded, or is no encoder with a classification head.
        """
        model = load_pretrained(
            AutoModelForSequenceClassification,
            name,
            problem_type="single_label_classification",
            **label_settings(labels),
        )
        model.config.architectures = [type(model).__name__]
        return cls(model)

    @property
    def weights(self) -> nn.Module:
        """What is saved and warm-started: the whole model, under transformers' names."""
        return self.model

    @property
    def config(self) -> PretrainedConfig:
        """Of the whole model."""
        return self.model.config

    @property
    def encoder_prefix(self) -> str:
        """The encoder's name within `weights`, such as `bert`."""
        return self.model.base_model_prefix

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits (N, C) of a packed batch."""
        hidden = self.encoder(batch)  # (T, H)
        if self.reads_first_token_only:
            return self.head(inputs_embeds=pooling.cls(hidden, batch)[:, None]).logits
        layout = BlockLayout.of(batch)
        block, mask = layout.pad(hidden)[: batch.size], layout.mask[: batch.size].long()  # filler is no sentence
        return self.head(inputs_embeds=block, attention_mask=mask).logits

    def _runs_apart(self) -> bool:
        """Part the encoder from its head; whether, and on what, the head then gives the model's own logits."""
        batch = trial_batch(self.model.config)
        with evaluating(self.model):  # before the encoder is set to packed attention
            expected = attempt(lambda: torch.cat([self.model(input_ids=ids).logits for ids in one_by_one(batch)]))
        if expected is None:
            return False
        self.encoder = Encoder(self.model.base_model)
        self.head = head_of(self.model)
        for self.reads_first_token_only in (True, False):
            with evaluating(self):
                if gives(expected, lambda: self(batch)):
                    return True
        return False
