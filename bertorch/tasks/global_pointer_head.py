"""The head `global_pointer`: a score for each span of a sentence and type, so that entities may lie inside each other.

References:
    Su et al., Global Pointer: Novel Efficient Span-based Approach for Named Entity Recognition, 2022.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from loguru import logger
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from typing_extensions import override

from bertorch.config import DECODINGS
from bertorch.data.dataset import Examples
from bertorch.data.span_dataset import EntityBatch, is_nested
from bertorch.data.spans import SpanBatch
from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.data.tags import SCHEMES, TagSet
from bertorch.encoder.classifier import word_states
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.encoder.padded import PaddedModel, PaddedTokens
from bertorch.encoder.pretrained import empty_model, label_settings, load_pretrained, saved_label_names
from bertorch.errors import UserError
from bertorch.global_pointer import GlobalPointer
from bertorch.tasks.base import LoadedFolder
from bertorch.tasks.tag_heads import Decoded, SpanModel
from bertorch.weights import load_into

FLAT, NESTED = DECODINGS
_HEAD = "global_pointer"


class GlobalPointerTagger(SpanModel):
    """An encoder under an efficient global pointer, with the multi-label loss of the spans of a sentence.

    Args:
        model: an encoder such as `AutoModel` gives, or a graph of what the head makes of each token.
        tags: whose C types are found.
        decoding: `nested` takes all spans with a score above 0, `flat` the best of those that overlap.
        head_size: d, of queries and keys.
    """

    reads_spans = True
    architecture = ""  # its folder has that of the encoder

    def __init__(self, model: PreTrainedModel | OnnxModel, tags: TagSet, *, decoding: str, head_size: int = 64) -> None:
        super().__init__()
        self.encoder = model if isinstance(model, OnnxModel) else Encoder(model)
        self.tags = tags
        self.decoding, self.head_size = decoding, head_size
        self.is_flat = decoding == FLAT
        self.global_pointer = GlobalPointer(model.config.hidden_size, len(tags.types), head_size)

    @classmethod
    @override
    def from_pretrained(cls, name: str, tags: TagSet, **options: Any) -> Self:
        model = load_pretrained(AutoModel, name, **label_settings(tags.types))
        model.config.tag_scheme = tags.scheme_name
        return cls(model, tags, **options)

    @classmethod
    @override
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        """Build the model of a saved folder; a `UserError` if config or weights are not of one."""
        folder, metadata = loaded.folder, loaded.metadata
        scheme, head_size = getattr(loaded.config, "tag_scheme", None), metadata.size("head_size", folder)
        names = metadata.settings.get("tags")
        if head_size is not None and head_size % 2:
            raise UserError(f"{folder}/config.json: head_size: expected an even number, got {head_size}")
        if scheme not in SCHEMES or head_size is None or not isinstance(names, list):
            raise UserError(
                f"{folder}: expected a folder saved by run_ner.py, got a config.json without tag_scheme, or without "
                "head_size or tags of its head"
            )
        tags, types = TagSet(list(map(str, names)), scheme, folder), saved_label_names(loaded.config, folder)
        if tags.types != types:
            raise UserError(
                f"{folder}/config.json: id2label: expected the types of its tags, {tags.types}, got {types}"
            )
        decoding = metadata.setting("decoding", DECODINGS, folder)
        encoder = loaded.graph or empty_model(AutoModel, loaded.config, folder)
        model = cls(encoder, tags, decoding=decoding, head_size=head_size)
        load_into(model.weights, loaded.weights, model.encoder_prefix, folder)
        return model

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self.encoder.config if isinstance(self.encoder, OnnxModel) else self.encoder.model.config

    @property
    @override
    def weights(self) -> nn.Module:
        """The encoder as `AutoModel` loads it, and `global_pointer.…`."""
        if isinstance(self.encoder, OnnxModel):
            return self.encoder.weights
        return nn.ModuleDict({self.encoder_prefix: self.encoder.model, _HEAD: self.global_pointer})

    @override
    def padded(self) -> PaddedModel:
        assert isinstance(self.encoder, Encoder)
        return PaddedTokens(self.encoder, self.global_pointer, "span_features")

    @property
    @override
    def label_names(self) -> Sequence[str]:
        """The types."""
        return self.tags.types

    @override
    def settings(self) -> Mapping[str, Any]:
        # Tags, to read files that have them; the types are in id2label.
        return {"head_size": self.head_size, "decoding": self.decoding, "tags": self.tags.tags}

    @override
    def usage_elsewhere(self, text: str) -> str:
        overlaps = "do not overlap" if self.is_flat else "may lie inside each other"
        return (
            "from transformers import AutoModel\n\n"
            f"# The encoder alone. The head is a global pointer ({_HEAD}, {self.head_size} dimensions) with\n"
            f"# {self.decoding} decoding: entities {overlaps}. transformers does not know it.\n"
            "print(AutoModel.from_pretrained({folder}))"
        )

    def forward(self, batch: TaggedBatch) -> Tensor:
        """What `GlobalPointer` makes of the words, (K, 2d+2C), at least in fp32."""
        states = word_states(self.encoder, batch)
        return states if isinstance(self.encoder, OnnxModel) else self.global_pointer(states)

    @override
    def loss(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:
        assert isinstance(batch, EntityBatch)
        return self.global_pointer.loss(outputs, batch.spans, batch.cu_words, batch.word_bounds, batch.max_words)

    @override
    def decode(self, outputs: Tensor, batch: TaggedBatch, *, with_scores: bool = False) -> Decoded:
        nested = not self.is_flat
        extents, scores = self.global_pointer.decode(outputs, batch.cu_words, batch.max_words, nested=nested)
        return Decoded(SpanBatch(extents, scores if with_scores else torch.ones_like(scores)), tags=None)

    @override
    def gold_extents(self, batch: TaggedBatch) -> Tensor:
        assert isinstance(batch, EntityBatch)
        examples = len(batch.cu_words) - 1
        return batch.spans[batch.spans[:, 0] < examples]  # without filler

    @override
    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.global_pointer.parameters())


def choose_decoding(wanted: str, examples: Examples) -> str:
    """One of `DECODINGS`: the one `wanted`, or for `auto` flat if no entities of the training examples overlap.

    The log says which, and warns of overlapping entities that flat decoding will not find.
    """
    if wanted == NESTED:
        return wanted
    overlaps = is_nested(examples)
    if wanted == FLAT:
        if overlaps:
            logger.warning(
                "--decoding flat: entities of the training data overlap, and flat decoding finds one of them"
            )
        return wanted
    decoding = NESTED if overlaps else FLAT
    logger.info("decoding: {}: {} entities of the training data overlap", decoding, "some" if overlaps else "no")
    return decoding
