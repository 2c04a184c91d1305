"""Sequence labelling: transformers' own token classification model on packed batches, alone or under a CRF."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, PreTrainedModel

from bertorch.crf import CRF, Constraints
from bertorch.data.tagged_dataset import FILLER_TAG, TaggedBatch
from bertorch.data.tags import TagSet
from bertorch.encoder.encoder import Encoder, label_settings, load_pretrained
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.heads import head_of
from bertorch.encoder.trials import attempt, evaluating, gives, one_by_one, trial_batch
from bertorch.errors import UserError
from bertorch.precision import at_least_fp32

# An evaluation encodes a sentence with all its windows; so many are encoded at once, however long the sentence is.
WINDOWS_AT_ONCE = 256


class Tagger(EncoderModel):
    """A `…ForTokenClassification` of transformers that gives emissions for the words of packed batches.

    The head sees the first word piece of each word only. The weights keep transformers' layout and names, and the
    emissions are the logits that `AutoModelForTokenClassification` gives at those pieces.

    Args:
        model: the model with its token classification head.
        crf: over the emissions. One that is not learned leaves the loss a cross-entropy of each word by itself and
            only decodes. None is such a one, which allows everything.

    Raises:
        UserError: an architecture whose head cannot be run apart from its encoder.
    """

    pipeline_tag = "token-classification"

    def __init__(self, model: PreTrainedModel, crf: CRF | None = None) -> None:
        super().__init__()
        self.model = model
        self.crf = crf if crf is not None else CRF(model.config.num_labels, learned=False)
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
        model = load_pretrained(AutoModelForTokenClassification, name, **label_settings(tags.tags))
        model.config.architectures = [type(model).__name__]
        model.config.tag_scheme = tags.scheme_name
        return cls(model, cls.crf_over(tags, learned=use_crf, constrain_training=constrain_crf))

    @staticmethod
    def crf_over(tags: TagSet, *, learned: bool, constrain_training: bool = False) -> CRF:
        """A CRF that decodes only what the scheme of the tags allows."""
        allowed = Constraints(*map(torch.from_numpy, (tags.may_begin, tags.may_end, tags.may_follow)))
        return CRF(len(tags), allowed, constrain_training=constrain_training, learned=learned)

    @property
    def weights(self) -> nn.Module:
        """The whole model under transformers' names, and `crf.…` if it is learned."""
        if not self.crf.learned:
            return self.model
        return nn.ModuleDict({**dict(self.model.named_children()), "crf": self.crf})

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

    def _logits(self, hidden: Tensor) -> Tensor:
        """(K, H) → (K, C), as if all words were one sentence: the head looks at each by itself."""
        return self.head(inputs_embeds=hidden[None]).logits.squeeze(0)
