"""Sequence labelling: transformers' own token classification model on packed batches, alone or under a CRF."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, PreTrainedModel
from typing_extensions import override

from bertorch.crf import CRF, Constraints
from bertorch.data.batch import PackedBatch
from bertorch.data.tagged_dataset import FILLER_TAG, TaggedBatch
from bertorch.data.tags import TagSet
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

    pipeline_tag = "token-classification"
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


class Tagger(TokenClassifier):
    """A token classifier under a CRF.

    Args:
        model: the model with its token classification head.
        crf: over the emissions. One that is not learned leaves the loss a cross-entropy of each word by itself and
            only decodes. None is such a one, which allows everything.
    """

    def __init__(self, model: PreTrainedModel, crf: CRF | None = None) -> None:
        super().__init__(model)
        self.crf = crf if crf is not None else CRF(model.config.num_labels, learned=False)

    @classmethod
    def from_pretrained(
        cls, name: str, tags: TagSet, *, use_crf: bool = False, constrain_crf: bool = False
    ) -> "Tagger":
        """Load a hub model or local folder with a head for these tags.

        Args:
            name: hub name or local folder.
            tags: they go into the config as `id2label`, with their scheme as `tag_scheme`.
            use_crf: put a fresh CRF on top. With or without it, only what the scheme of the tags allows is decoded.
            constrain_crf: let the CRF keep to the scheme in training too.

        Raises:
            UserError: it cannot be loaded, or is no encoder with a token classification head.
        """
        model = cls.pretrained(name, tags.tags)
        model.config.tag_scheme = tags.scheme_name
        return cls(model, cls.crf_over(tags, learned=use_crf, constrain_training=constrain_crf))

    @staticmethod
    def crf_over(tags: TagSet, *, learned: bool, constrain_training: bool = False) -> CRF:
        """A CRF that decodes only what the scheme of the tags allows."""
        allowed = Constraints(*map(torch.from_numpy, (tags.may_begin, tags.may_end, tags.may_follow)))
        return CRF(len(tags), allowed, constrain_training=constrain_training, learned=learned)

    @property
    @override
    def weights(self) -> nn.Module:
        """The whole model under transformers' names, and `crf.…` if it is learned."""
        if not self.crf.learned:
            return self.model
        return nn.ModuleDict({**dict(self.model.named_children()), "crf": self.crf})

    def loss(self, emissions: Tensor, batch: TaggedBatch) -> Tensor:
        """Summed token cross-entropy, or the summed negative log-likelihood of the sentences' tags under the CRF."""
        if not self.crf.learned:
            return F.cross_entropy(emissions, batch.labels, ignore_index=FILLER_TAG, reduction="sum")
        tags = batch.labels.clamp(min=0)  # those of filler may be any
        log_likelihood = self.crf.log_likelihood(emissions, tags, batch.word_bounds, batch.max_words)
        return -log_likelihood[: len(batch.cu_words) - 1].sum()

    def decode(self, emissions: Tensor, batch: TaggedBatch) -> Tensor:
        """The tags of each sentence's best path under the constraints, (K,) int64."""
        return self.crf.viterbi(emissions, batch.cu_words, batch.max_words)
