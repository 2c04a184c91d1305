"""Sequence labelling, such as named entities: `run_ner.py`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, Self, Unpack

import numpy as np
import torch
from loguru import logger
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.config import SPLITS
from bertorch.data.dataset import Examples
from bertorch.data.span_dataset import SpanDataset, tokenize_sentences
from bertorch.data.spans import Span
from bertorch.data.tagged_dataset import TaggedBatch, TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences, read_tagged_sentences, stream_untagged
from bertorch.data.tags import TagSet
from bertorch.errors import UserError
from bertorch.files import to_json
from bertorch.precision import require_finite
from bertorch.tasks.agreement import Agreement, same_entities
from bertorch.tasks.base import Errors, Inference, InputSettings, LoadedFolder, Losses, Task
from bertorch.tasks.global_pointer_head import GlobalPointerTagger
from bertorch.tasks.label_counts import LabelCounts, blocks_of
from bertorch.tasks.span_metric import Extent, SpanMetric
from bertorch.tasks.tag_heads import CrfTagger, LinearTagger, SpanModel
from bertorch.tasks.text_tokens import TaggedText, TextTokens, joined

# The heads by the names that config.json has for them.
HEADS: dict[str, type[SpanModel]] = {
    "linear": LinearTagger,
    "crf": CrfTagger,
    "global_pointer": GlobalPointerTagger,
}


def tagged_sentences(
    path: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    tags: TagSet,
    strict: bool,
    on_bad_line: str,
    split: str,
    as_spans: bool,
) -> TaggedDataset | SpanDataset:
    """Sentences with a tag for each token, or with spans. See `read_tagged_sentences`."""
    sentences = read_tagged_sentences(
        path, tags, strict=strict, on_bad_line=on_bad_line, split=split, as_spans=as_spans
    )
    return tokenize_sentences(tokenizer, sentences, max_length=max_length)


class TaggingTask(Task[TaggedBatch]):
    """The loss of a head, by words or sentences; the dev metric is entity F1.

    Args:
        model: with its head.
        head: its name in `HEADS`.
        head_learning_rate: rate of the head's own parameters, if it has any.
        split: how the texts of its data were cut into tokens, a name of `SPLITS`.
        inputs: see `Task`.
    """

    name = "tagging"
    scripts = "run_ner.py"
    pipeline_tag = "token-classification"
    architecture = "ForTokenClassification"

    def __init__(
        self,
        model: SpanModel,
        head: str,
        *,
        head_learning_rate: float | None = None,
        split: str = SPLITS[0],
        **inputs: Unpack[InputSettings],
    ) -> None:
        super().__init__(model, **inputs)
        self.span_model = model
        self.head = head
        self.label_names = model.label_names
        self.head_learning_rate = head_learning_rate if model.head_parameters() else None
        self.split = split
        # Of the lines of `bertorch.predict`.
        self._min_score: float | None = None
        self._line_split = split

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        tags: TagSet,
        *,
        head: str,
        head_learning_rate: float,
        max_seq_length: int,
        split: str = SPLITS[0],
        **head_options: Any,
    ) -> Self:
        """Load a hub model or local folder with a fresh head for these tags; `head_options` are those of the head.

        Raises:
            UserError: it cannot be loaded, cannot have such a head, or has fewer positions than `max_seq_length`.
        """
        model = HEADS[head].from_pretrained(name, tags, **head_options)
        for encoder in model.encoders:
            encoder.require_positions(max_seq_length)
        inputs: InputSettings = {"tokenizer": tokenizer, "max_seq_length": max_seq_length}
        return cls(model, head, head_learning_rate=head_learning_rate, split=split, **inputs)

    @classmethod
    @override
    def from_folder(cls, loaded: LoadedFolder) -> Self:
        head = loaded.metadata.head
        if head not in HEADS:
            raise UserError(f"{loaded.folder}/config.json: expected a head of {', '.join(HEADS)}, got {head!r}")
        model = HEADS[head].from_folder(loaded)
        split = loaded.metadata.setting("split", (None, *SPLITS), loaded.folder)  # older folders have none
        return cls(model, head, split=split or SPLITS[0], **loaded.inputs)

    @classmethod
    @override
    def architecture_of(cls, head: str) -> str:
        return HEADS[head].architecture if head in HEADS else cls.architecture

    @override
    def settings(self) -> Mapping[str, Any]:
        split = {} if self.split == SPLITS[0] else {"split": self.split}
        return {**self.span_model.settings(), **split}

    @override
    def losses_of(self, outputs: Tensor, batch: TaggedBatch) -> Losses:
        return {"loss": self.span_model.loss(outputs, batch)}

    @override
    def label_counts(self, examples: Examples) -> LabelCounts:
        counts, without = np.zeros(len(self.span_model.tags.types), np.int64), 0
        device = next(self.model.parameters()).device
        for indices in blocks_of(examples, 2**12):
            batch: Any = examples.batch(indices).to(device)
            extents = self.span_model.gold_extents(batch).numpy(force=True)  # (M, 4)
            counts += np.bincount(extents[:, 3], minlength=len(counts))
            without += len(indices) - len(np.unique(extents[:, 0]))
        return LabelCounts("entities", self.span_model.tags.types, counts, without)

    @override
    def log_probabilities(self, outputs: Tensor) -> Tensor:
        return self.span_model.log_probabilities(outputs)  # (K, C)

    @override
    def label_probabilities(self, outputs: Tensor, batch: TaggedBatch) -> Tensor:
        return self.span_model.marginals(outputs, batch)  # (K, C)

    @override
    def metric(self, device: torch.device) -> SpanMetric:
        return SpanMetric(self.span_model, device)

    @override
    def head_parameters(self) -> Sequence[nn.Parameter]:
        return self.span_model.head_parameters()

    @override
    def convert_legacy_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the earlier bertorch without the label [PAD], which its taggers had as the last."""
        names = {name: name.removeprefix("module.") for name in weights}
        if not any(name.startswith("encoder.embeddings.") for name in names.values()):
            return dict(weights)
        expected = {name: tensor.shape for name, tensor in self.model.weights.state_dict().items()}
        converted = {
            name: _without_last_label(tensor, expected.get(names[name], tensor.shape), len(self.label_names))
            for name, tensor in weights.items()
        }
        if changed := [name for name in weights if converted[name].shape != weights[name].shape]:
            logger.info("skipped the last label of the earlier bertorch, [PAD], in {}", ", ".join(changed))
        return converted

    @override
    def span_finder(self, *, with_scores: bool = True) -> Inference[TextTokens]:
        def characters(text: TextTokens) -> int:
            return sum(map(len, text.tokens))

        spans = partial(self._spans, with_scores=with_scores)
        return Inference(characters, self._examples, spans, (5,), torch.float64, is_set=True)

    def _examples(self, texts: Sequence[TextTokens]) -> TaggedDataset:
        tokens = [text.tokens for text in texts]
        untagged = TaggedSentences.untagged(tokens, split=self.split)
        return TaggedDataset.of(self.tokenizer, untagged, max_length=self.max_seq_length)

    def _spans(self, batch: TaggedBatch, *, with_scores: bool) -> Tensor:
        emissions = self.outputs(batch)  # (T, C)
        require_finite(emissions, "the tokens of a batch")  # else any tags would be found, and no scores with them
        extents, scores = self.span_model.decode(emissions, batch, with_scores=with_scores).spans
        return torch.cat([extents.double(), scores.double()[:, None]], dim=1)  # (M, 5)

    def tagged(self, text: TextTokens, rows: np.ndarray) -> TaggedText:
        """A text with its entities, from rows (entities, 4) of `span_finder`."""
        types = self.span_model.tags.types
        rows = rows[np.lexsort(rows.T[[2, 1, 0]])]  # by start, then end, then type
        spans = [Span(types[int(type_)], int(start), int(end), score) for start, end, type_, score in rows.tolist()]
        overlap = any(span.end > after.start for span, after in pairwise(spans))
        extents = ((span.start, span.end, span.type) for span in spans)
        tags = [] if overlap else self.span_model.tags.encode(extents, len(text))
        return TaggedText(text.tokens, tags, [text.entity(span) for span in spans])

    @override
    def set_line_options(self, *, tags: bool, min_score: float | None, split: str | None) -> None:
        if tags and not self.span_model.is_flat:
            raise UserError(
                "--tags: expected a model whose entities never overlap, got one with nested decoding, whose entities "
                "no tags can spell; leave it out"
            )
        self._min_score = min_score
        self._line_split = split or self.split

    @override
    def stream_inputs(self, path: str) -> Iterator[TextTokens]:
        return (replace(TextTokens.of(text, self._line_split), more=more) for text, more in stream_untagged(path))

    @override
    def agreement(self) -> Agreement:
        return Agreement(
            self.predictor(),
            lambda texts: [TextTokens.of(text, self.split) for text in texts],
            self.stream_inputs,
            same_entities,
        )

    @override
    def predictor(self) -> Inference[TextTokens]:
        return self.span_finder(with_scores=self._min_score is not None)

    @override
    def prediction_header(self) -> str | None:
        return None

    @override
    def prediction_line(self, source: TextTokens, row: np.ndarray, *, tags: bool) -> str:
        with_score = self._min_score is not None
        tagged = self.tagged(source, row[row[:, 3] >= self._min_score] if with_score else row)
        columns = ("type", "start", "end", "text")
        entities = [{name: getattr(entity, name) for name in columns} for entity in tagged.entities]
        if with_score:
            entities = [
                each | {"score": round(of.score, 6)} for each, of in zip(entities, tagged.entities, strict=True)
            ]
        more = {"tokens": tagged.tokens, "tags": tagged.tags} if tags else {}
        return to_json({"text": source.source, "entities": entities, **more, **source.more})

    @override
    def read_labelled(self, path: str, on_bad_line: str) -> tuple[TaggedSentences, TaggedDataset | SpanDataset]:
        model = self.span_model
        read = read_tagged_sentences(
            path, model.tags, on_bad_line=on_bad_line, split=self.split, as_spans=model.reads_spans
        )
        return read, tokenize_sentences(self.tokenizer, read, max_length=self.max_seq_length)

    @override
    def label_texts(self, source: TaggedSentences) -> Mapping[str, Sequence[str]]:
        return {"token": [token for tokens in source.tokens for token in tokens]}

    @override
    def errors(self, metric: SpanMetric, source: TaggedSentences) -> Errors:
        """The sentences whose entities are not all right."""
        gold, predicted = metric.of_examples(metric.gold), metric.of_examples(metric.predicted)

        def describe(extents: list[Extent], tokens: Sequence[str]) -> str:
            parts = (f"{metric.types[t]} {start}:{end} {joined(tokens[start:end])}" for _, start, end, t in extents)
            return "; ".join(parts)

        rows = [
            [str(index + 1), *(describe(found.get(index, []), tokens) for found in (gold, predicted)), joined(tokens)]
            for index, tokens in enumerate(source.tokens)
            if gold.get(index) != predicted.get(index)
        ]
        return Errors(["number", "entities", "predicted", "text"], rows)

    @override
    def usage(self) -> tuple[str, str]:
        text = "房间干净，早餐也丰富。"
        return f"tag([{text!r}])[0]", self.span_model.usage_elsewhere(text)


def _without_last_label(tensor: Tensor, expected: torch.Size, num_labels: int) -> Tensor:
    """The tensor in the shape expected, if it has one label more there; else as it is."""
    with_one_more = [num_labels + 1 if size == num_labels else size for size in expected]
    return tensor[tuple(map(slice, expected))] if list(tensor.shape) == with_one_more else tensor
