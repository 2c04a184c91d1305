"""Entity F1 as seqeval counts it in its strict mode, on packed tags."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertorch import distributed
from bertorch.data.tagged_dataset import TaggedBatch
from bertorch.data.tags import BEGIN, END, INSIDE, SINGLE, TagSet
from bertorch.encoder.tagger import Tagger
from bertorch.training.metrics import precision_recall_f1


class EntityFinder:
    """Finds the entities in packed tags.

    An entity begins with B- or S- and goes on as long as the scheme lets the next tag continue it with the same type.
    In bioes it also has to be closed by E- or S-. Whatever else stands there, such as I- without B-, is no entity.
    seqeval does not know bios, which is counted as bio with B- in place of S-: I- after S- goes on with it, and a B-
    that nothing goes on with is an entity.

    References:
        seqeval, `classification_report(mode="strict", scheme=IOB2 or IOBES)`.

    Args:
        tags: the tags and their scheme.
        device: where the tags to come are.
    """

    def __init__(self, tags: TagSet, device: torch.device) -> None:
        codes = torch.from_numpy(tags.codes)
        is_closed = END in tags.scheme.closing  # else an entity ends wherever nothing goes on with it
        continues = torch.from_numpy(tags.continues)  # (C, C)
        if not is_closed:
            same_type = torch.from_numpy(tags.type_ids[:, None] == tags.type_ids)
            continues |= same_type & (codes == SINGLE)[:, None] & (codes == INSIDE)
        self.types = len(tags.types)
        self._begins = ((codes == BEGIN) | (codes == SINGLE)).to(device)  # (C,)
        self._closes = ((codes == END) | (codes == SINGLE) | (not is_closed)).to(device)  # (C,)
        self._continues = continues.to(device)  # (C, C)
        self._type_ids = torch.from_numpy(tags.type_ids).to(device)  # (C,)

    def __call__(self, tags: Tensor, cu_words: Tensor) -> tuple[Tensor, Tensor]:
        """Find the entities.

        Args:
            tags: (K,) int64.
            cu_words: (N+1,) int32, where the sentences are.

        Returns:
            (K,) int64: the end of the entity that begins at each word, 0 where none begins; and (K,) int64, its type.
        """
        words = len(tags)
        goes_on = torch.zeros(words + 1, dtype=torch.bool, device=tags.device)  # whether it belongs to the word before
        goes_on[1:words] = self._continues[tags[:-1], tags[1:]]
        goes_on[cu_words[:-1].long()] = False
        places = torch.arange(words + 1, device=tags.device)
        stops = torch.where(goes_on, words, places)  # (K+1,), its place where a word goes on with nothing
        ends = stops.flip(0).cummin(0).values.flip(0)[1:]  # (K,), the first stop after each word
        is_entity = self._begins[tags] & self._closes[tags[ends - 1]]
        return torch.where(is_entity, ends, 0), self._type_ids[tags]


class EntityMetric:
    """Mean loss and micro F1 of entities; counts are kept by type and added up over the processes.

    Args:
        tagger: its loss and its decoding.
        tags: the tags and their scheme.
        device: where the batches are.
    """

    name = "F1"

    def __init__(self, tagger: Tagger, tags: TagSet, device: torch.device) -> None:
        self._tagger = tagger
        self._types = tags.types
        self._find = EntityFinder(tags, device)
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)  # loss, words
        self._counts = torch.zeros(3, len(tags.types), dtype=torch.int64, device=device)  # right, predicted, gold

    def update(self, outputs: Tensor, batch: TaggedBatch, _: np.ndarray, /) -> None:
        """Take in the emissions (K, C) of one batch."""
        loss = self._tagger.loss(outputs, batch)
        self._loss += torch.stack([loss.double(), loss.new_tensor(len(batch.labels), dtype=torch.float64)])
        predicted, types = self._find(self._tagger.decode(outputs, batch), batch.cu_words)
        gold, gold_types = self._find(batch.labels, batch.cu_words)
        right = (gold > 0) & (gold == predicted) & (gold_types == types)
        for row, (found, of_type) in enumerate([(right, gold_types), (predicted > 0, types), (gold > 0, gold_types)]):
            self._counts[row] += (F.one_hot(of_type.clamp(min=0), len(self._types)) * found[:, None]).sum(0)

    def reduce(self) -> None:
        """Add up what all processes took in."""
        distributed.all_reduce_sum(self._loss)
        distributed.all_reduce_sum(self._counts)

    @property
    def value(self) -> float:
        """Micro F1 in [0, 1]."""
        return precision_recall_f1(*self._counts.sum(1).tolist())[2]

    def numbers(self) -> Mapping[str, float]:
        """F1, precision and recall over all entities, and the mean loss of a word."""
        precision, recall, f1 = precision_recall_f1(*self._counts.sum(1).tolist())
        return {"F1": f1, "precision": precision, "recall": recall, "loss": (self._loss[0] / self._loss[1]).item()}

    def line(self) -> str:
        """The message of the log line."""
        return f"eval loss: {(self._loss[0] / self._loss[1]).item():.5f}, F1: {self.value:.5f}"

    def report(self) -> Sequence[str]:
        """A table of precision, recall, F1 and support by type, and over all."""
        width = max(map(len, [*self._types, "micro average"]))
        rows = [
            *zip(self._types, self._counts.T.tolist(), strict=True),
            ("micro average", self._counts.sum(1).tolist()),
        ]
        lines = [f"{'':{width}}  precision  recall      F1  support"]
        for name, (right, predicted, gold) in rows:
            precision, recall, f1 = precision_recall_f1(right, predicted, gold)
            lines.append(f"{name:{width}}  {precision:9.5f} {recall:7.5f} {f1:7.5f}  {gold:7d}")
        return lines
