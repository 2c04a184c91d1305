"""Micro F1 of entities: strict, as seqeval counts in its strict mode, and lenient."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch import distributed
from bertorch.data.batch import on_device
from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.resampling import ExampleTable, Measure
from bertorch.tasks.metrics import USUAL_CAUSES, Metric, f1_scores
from bertorch.tasks.tag_heads import SpanModel

Extent: TypeAlias = tuple[int, int, int, int]  # example, first word, end (exclusive), type
_ALL = "micro average"


class SpanMetric(Metric[TaggedBatch]):
    """Mean loss of a word or sentence, and precision, recall and F1 of entities by type.

    The outputs are those of a `SpanModel`. After `reduce`, `gold` and `predicted` are the entities.
    """

    name = "F1"

    def __init__(self, model: SpanModel, device: torch.device) -> None:
        self._model = model
        self.types: list[str] = model.tags.types  # of entities, by their ids
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, labels, right tags, examples
        self._tags_words = not model.reads_spans  # whether every word has a tag
        self._rows = [torch.zeros(0, 5, dtype=torch.int64, device=device)]  # extents, and whether they are gold

    @override
    def update(self, outputs: Tensor, batch: TaggedBatch, indices: np.ndarray, /) -> None:
        decoded = self._model.decode(outputs, batch)
        self._sums[0] += self._model.loss(outputs, batch)
        self._sums[1] += len(batch.labels)
        self._sums[3] += len(indices)
        if decoded.tags is not None:
            self._sums[2] += (decoded.tags == batch.labels).sum()
        example_ids = on_device(indices, outputs.device)  # (examples,)
        for is_gold, extents in enumerate([decoded.spans.extents, self._model.gold_extents(batch)]):
            rows = F.pad(extents, (0, 1), value=is_gold)  # (M, 5)
            rows[:, 0] = example_ids[rows[:, 0]]  # from the index in the batch
            self._rows.append(rows)

    @override
    def reduce(self) -> None:
        del self._model  # the metrics of many models may be kept
        distributed.all_reduce_sum(self._sums)
        rows, _ = distributed.gather_rows(torch.cat(self._rows))  # (spans of all processes, 5)
        found: tuple[set[Extent], set[Extent]] = (set(), set())
        for *extent, is_gold in rows.tolist():
            found[is_gold].add(tuple(extent))
        self.predicted, self.gold = found

    @override
    def merge(self, parts: Sequence[Self], indices: Sequence[np.ndarray]) -> None:
        self._sums = torch.stack([part._sums for part in parts]).sum(dim=0)

        def together(sets: Iterable[set[Extent]]) -> set[Extent]:
            numbered = zip(sets, indices, strict=True)
            return {(int(of[i]), start, end, type_) for found, of in numbered for i, start, end, type_ in found}

        self.predicted, self.gold = (together(getattr(p, name) for p in parts) for name in ("predicted", "gold"))

    @property
    @override
    def value(self) -> float:
        return self._strict()[_ALL]["f1"]  # micro F1 in [0, 1]

    @property
    def loss(self) -> float:
        """Mean loss of a word, or of a sentence by a head that gives words no tags."""
        return (self._sums[0] / self._sums[1]).item()

    @override
    def numbers(self) -> Mapping[str, float]:
        scores = self._strict()[_ALL]
        return {"F1": scores["f1"], "precision": scores["precision"], "recall": scores["recall"], "loss": self.loss}

    @override
    def line(self) -> str:
        return f"eval loss: {self.loss:.5f}, F1: {self.value:.5f}"

    @override
    def summary(self) -> Sequence[str]:
        """A table of precision, recall, F1 and support by type, and over all."""
        width = max(map(len, [*self.types, _ALL]))
        lines = [f"{'':{width}}  precision  recall      F1  support"]
        for name, row in self._strict().items():
            precision, recall, f1, support = row.values()
            lines.append(f"{name:{width}}  {precision:9.5f} {recall:7.5f} {f1:7.5f}  {support:7d}")
        return lines

    @override
    def warnings(self) -> Sequence[str]:
        if self.predicted or not self.gold:
            return ()
        tags, head = ("all tags are O: ", "a CRF") if self._tags_words else ("", "the head")
        none = f"{tags}no entity is predicted, and there are {len(self.gold)}"
        of_head = f"(that of {head} is --crf_learning_rate, such as 1e-3)"
        return (f"{none}; {USUAL_CAUSES} {of_head}, or few entities in the training data",)

    @override
    def report(self) -> dict[str, Any]:
        """Strict and lenient scores by type and over all.

        Strict: type, beginning and end are the same. Lenient: an entity is right where one of the same type on the
        other side shares a token with it. The lenient recall is the share of gold entities that are right so, the
        precision that of the predicted ones, and F1 their harmonic mean.
        """
        report: dict[str, Any] = {"examples": int(self._sums[3])}
        if self._tags_words:
            report["token_accuracy"] = (self._sums[2] / self._sums[1]).item()
        return {**report, "strict": self._strict(), "lenient": self._lenient()}

    @override
    def example_table(self) -> ExampleTable:
        """Entities as [type, first word, end] by sentence, and their numbers, from which the strict F1 comes."""
        sentences = range(int(self._sums[3]))
        right, predicted, gold = map(self.of_examples, (self.gold & self.predicted, self.predicted, self.gold))

        def listed(found: dict[int, list[Extent]]) -> list[list[list[Any]]]:
            return [[[self.types[t], start, end] for _, start, end, t in found.get(index, [])] for index in sentences]

        def counts(found: dict[int, list[Extent]]) -> list[int]:
            return [len(found.get(index, [])) for index in sentences]

        columns: dict[str, Sequence[Any]] = {
            "gold": listed(gold),
            "predicted": listed(predicted),
            "right": counts(right),
            "entities_predicted": counts(predicted),
            "entities": counts(gold),
        }
        return ExampleTable(columns, {"f1": Measure("f1", ("right", "entities_predicted", "entities"))})

    def of_examples(self, extents: Iterable[Extent]) -> dict[int, list[Extent]]:
        """Entities by example, in the order of the text."""
        found: dict[int, list[Extent]] = {}
        for extent in sorted(extents):
            found.setdefault(extent[0], []).append(extent)
        return found

    def _strict(self) -> dict[str, dict[str, float]]:
        counts = map(self._by_type, (self.gold & self.predicted, self.predicted, self.gold))
        return {name: f1_scores(*each) for name, *each in zip([*self.types, _ALL], *counts, strict=True)}

    def _lenient(self) -> dict[str, dict[str, float]]:
        right, found = _overlapping(self.predicted, self.gold), _overlapping(self.gold, self.predicted)
        counts = map(self._by_type, (right, self.predicted, found, self.gold))
        scores = {}
        for name, precise, predicted, recalled, support in zip([*self.types, _ALL], *counts, strict=True):
            precision, recall = precise / max(predicted, 1), recalled / max(support, 1)
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            scores[name] = {"precision": precision, "recall": recall, "f1": f1, "support": support}
        return scores

    def _by_type(self, extents: set[Extent]) -> list[int]:
        """How many entities each type has, and all together."""
        counts = np.bincount([type_ for *_, type_ in extents], minlength=len(self.types))
        return [*counts.tolist(), len(extents)]


def _overlapping(extents: set[Extent], others: set[Extent]) -> set[Extent]:
    """Those that share a token with one of the others of the same type."""
    tokens = {(example, type_, token) for example, start, end, type_ in others for token in range(start, end)}
    return {
        extent
        for extent in extents
        if any((extent[0], extent[3], token) in tokens for token in range(extent[1], extent[2]))
    }
