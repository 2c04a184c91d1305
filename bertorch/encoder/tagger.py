"""Token classification: transformers' own model on packed batches of words."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.encoder.heads import HeadedModel
from bertorch.encoder.pretrained import label_settings, load_pretrained
from bertorch.encoder.trials import matches
from bertorch.precision import at_least_fp32

# An evaluation encodes a sentence with all its windows; at most this many at once, however long the sentence is.
WINDOWS_AT_ONCE = 256


class TokenClassifier(HeadedModel):
    """A `…ForTokenClassification` of transformers that gives emissions for the words of packed batches.

    The head sees the first word piece of each word only; the emissions are the logits that
    `AutoModelForTokenClassification` gives at those pieces.
    """

    head_kind = "token classification"

    @staticmethod
    def pretrained(name: str, label_names: Sequence[str]) -> PreTrainedModel:
        """Load a hub model or local folder with a head for these labels, which go into the config as `id2label`.

        Raises:
            UserError: it cannot be loaded.
        """
        model = load_pretrained(AutoModelForTokenClassification, name, **label_settings(label_names))
        model.config.architectures = [type(model).__name__]
        return model

    def forward(self, batch: TaggedBatch) -> Tensor:
        """Emissions (K, C), in at least fp32."""
        return at_least_fp32(self.head_logits(self.word_states(batch)))

    def word_states(self, batch: TaggedBatch) -> Tensor:
        """Hidden states (K, H) of the first pieces of the words."""
        if self.training or batch.size <= WINDOWS_AT_ONCE:
            hidden = self.encoder(batch)  # (T, H)
        else:
            hidden = torch.cat([self.encoder(part) for part in batch.split(WINDOWS_AT_ONCE)])  # (T, H)
        return hidden.index_select(0, batch.word_starts)  # (K, H)

    def head_logits(self, hidden: Tensor) -> Tensor:
        """(K, H) → (K, C), as if all words were one sentence: the head looks at each by itself."""
        return self.head(inputs_embeds=hidden[None]).logits.squeeze(0)

    @override
    def _reproduces(self, expected: Tensor, batch: PackedBatch) -> bool:
        return matches(expected, lambda: self.head_logits(self.encoder(batch)))
