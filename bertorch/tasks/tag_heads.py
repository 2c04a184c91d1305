"""Heads of sequence labelling that give every word a tag: a linear layer, alone or under a CRF.

Another kind of head is another `SpanModel` in a file of its own, and an entry in `HEADS` of
`bertorch.tasks.tagging`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, PreTrainedModel
from typing_extensions import override

from bertorch.crf import CRF, Constraints
from bertorch.data.spans import SpanBatch, SpanFinder
from bertorch.data.tagged_dataset import FILLER_TAG, TaggedBatch
from bertorch.data.tags import SCHEMES, TagSet
from bertorch.encoder.classifier import TokenClassifier
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.encoder.pretrained import empty_model, saved_label_names
from bertorch.errors import UserError
from bertorch.tasks.base import LoadedFolder
from bertorch.weights import load_into

CONSTRAINED = "constrained"  # setting of a saved folder: only tags that the scheme allows have a probability


class Decoded(NamedTuple):
    """The entities that a head finds in a batch."""

    spans: SpanBatch
    tags: Tensor | None  # (K,) int64 tags that spell the spans; None of a head without tags


class SpanModel(EncoderModel):
    """An encoder with a head that finds the entities of packed batches."""

    reads_spans: ClassVar[bool] = False  # whether its batches are `EntityBatch`es, whose entities may overlap
    is_flat = True  # whether no two of the entities that it finds overlap
    architecture: ClassVar[str] = "ForTokenClassification"  # see `Task.architecture`
    tags: TagSet  # of the data, with their scheme; the types of entities are theirs

    @property
    def label_names(self) -> Sequence[str]:
        """The classes of the head by their ids."""
        return self.tags.tags

    def settings(self) -> Mapping[str, Any]:
        """What config.json keeps of the head, see `Task.settings`."""
        return {}

    @abstractmethod
    def usage_elsewhere(self, text: str) -> str:
        """For the model card: Python without bertorch on a text, `{folder}` left open."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, name: str, tags: TagSet, **options: Any) -> Self:
        """Load a hub model or local folder with a fresh head; `options` are those of the head."""

    @classmethod
    @abstractmethod
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        """Build the model of a saved folder."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:
        """The loss of a batch, from what the model gives for it: summed over its words, or over its sentences.

        Which of them it is, `labels` says: one a word, or one a sentence.
        """

    @abstractmethod
    def decode(self, outputs: Tensor, batch: TaggedBatch, *, with_scores: bool = False) -> Decoded:
        """The entities; without `with_scores` the scores are all 1 and cost nothing."""

    @abstractmethod
    def gold_extents(self, batch: TaggedBatch) -> Tensor:
        """The entities in the labels of a batch, see `SpanBatch.extents`."""

    def log_probabilities(self, outputs: Tensor) -> Tensor:  # noqa: ARG002 - of heads that have one
        """The distribution over the tags of each word, (K, C); a `UserError` of a head without."""
        raise UserError(f"--r_drop compares probabilities of tags, which {type(self).__name__} does not have")

    def marginals(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:  # noqa: ARG002 - of heads that have one
        """The probability of each tag of a word, whatever the other tags are, (K, C); a `UserError` of a head without.

        It is not differentiable.
        """
        raise UserError(f"--folds writes probabilities of tags, which {type(self).__name__} does not have")

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters with the head's own learning rate; none where it has that of the encoder."""
        return []


class LinearTagger(TokenClassifier, SpanModel):
    """A linear layer over each word's first piece, with a cross-entropy of each word by itself.

    Decoding takes the best path that the scheme allows, so that the tags always spell whole entities.

    Args:
        model: with its token classification head.
        tags: C of them.
        constrain_training: whether a CRF keeps to the scheme in training too.
    """

    learned = False

    def __init__(self, model: PreTrainedModel | OnnxModel, tags: TagSet, *, constrain_training: bool = False) -> None:
        super().__init__(model)
        self.tags = tags
        allowed = Constraints(*map(torch.from_numpy, (tags.may_begin, tags.may_end, tags.may_follow)))
        self.crf = CRF(len(tags), allowed, constrain_training=constrain_training, learned=self.learned)
        self.find_spans = SpanFinder(tags)

    @classmethod
    @override
    def from_pretrained(cls, name: str, tags: TagSet, **options: Any) -> Self:
        model = cls.pretrained(name, tags.tags)
        model.config.tag_scheme = tags.scheme_name
        return cls(model, tags, **options)

    @classmethod
    @override
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        """Build the model of a saved folder; a `UserError` if config or weights are not of one."""
        folder, scheme = loaded.folder, getattr(loaded.config, "tag_scheme", None)
        if scheme not in SCHEMES:
            raise UserError(f"{folder}: expected a folder saved by run_ner.py, got a config.json without tag_scheme")
        tags = TagSet(saved_label_names(loaded.config, folder), scheme, folder)
        constrained = bool(loaded.metadata.setting(CONSTRAINED, (None, True), folder))
        inner = loaded.graph or empty_model(AutoModelForTokenClassification, loaded.config, folder)
        model = cls(inner, tags, constrain_training=constrained)
        load_into(model.weights, loaded.weights, model.encoder_prefix, folder)
        return model

    @override
    def settings(self) -> Mapping[str, Any]:
        return {CONSTRAINED: True} if self.crf.constrain_training else {}

    @override
    def usage_elsewhere(self, text: str) -> str:
        return (
            f'from transformers import pipeline\n\nprint(pipeline("token-classification", model={{folder}})({text!r}))'
        )

    @override
    def loss(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:
        return F.cross_entropy(outputs, batch.labels, ignore_index=FILLER_TAG, reduction="sum")

    @override
    def log_probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.log_softmax(-1)  # (K, C), of each word by itself, also under a CRF

    @override
    def marginals(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:
        return self.crf.marginals(outputs, batch.cu_words, batch.max_words)  # (K, C)

    @override
    def decode(self, outputs: Tensor, batch: TaggedBatch, *, with_scores: bool = False) -> Decoded:
        tags = self.crf.viterbi(outputs, batch.cu_words, batch.max_words)  # (K,)
        extents = self.find_spans(tags, batch.cu_words)  # (M, 4)
        scores = self._scores(outputs, tags, extents, batch) if with_scores else outputs.new_ones(len(extents))
        return Decoded(SpanBatch(extents, scores), tags)

    @override
    def gold_extents(self, batch: TaggedBatch) -> Tensor:
        return self.find_spans(batch.labels, batch.cu_words)

    def _scores(self, emissions: Tensor, tags: Tensor, extents: Tensor, batch: TaggedBatch) -> Tensor:
        """(M,) probability that the words of each entity have exactly these tags.

        P(y_i..y_j) = P(y_j) · Π P(y_t-1 | y_t) for t from i+1 to j, as the chain of tags is a Markov chain.
        """
        last, before = self.crf.path_log_probs(emissions, tags, batch.cu_words, batch.max_words)  # (K,), (K,)
        sums = before.double().cumsum(0)  # (K,)
        first_word = batch.cu_words.long()[extents[:, 0]]  # (M,)
        start, end = first_word + extents[:, 1], first_word + extents[:, 2] - 1  # (M,), (M,)
        return (last[end] + sums[end] - sums[start]).exp()


class CrfTagger(LinearTagger):
    """A linear layer under a linear-chain CRF, with the negative log-likelihood of a sentence's tags."""

    learned = True

    @property
    @override
    def weights(self) -> nn.Module:
        """The whole model under transformers' names, and `crf.…`."""
        return nn.ModuleDict({**dict(self.model.named_children()), "crf": self.crf})

    @override
    def beside_graph(self) -> dict[str, Tensor]:
        return {f"crf.{name}": tensor for name, tensor in self.crf.state_dict().items()}

    @override
    def loss(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:
        tags = batch.labels.clamp(min=0)  # (K,), those of filler may be any
        log_likelihood = self.crf.log_likelihood(outputs, tags, batch.word_bounds, batch.max_words)
        return -log_likelihood[: len(batch.cu_words) - 1].sum()

    @override
    def usage_elsewhere(self, text: str) -> str:
        return (
            f"{super().usage_elsewhere(text)}\n# transformers does not know this head: it tags by the emissions alone"
        )

    @override
    def head_parameters(self) -> list[nn.Parameter]:
        """Of the CRF and of the layers between it and the encoder."""
        encoder = set(self.encoder.parameters())
        return [parameter for parameter in self.parameters() if parameter not in encoder]
