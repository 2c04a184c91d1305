"""Tokenised examples, from which packed batches are gathered."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.numbering import numbered
from bertorch.data.prompts import Prompts
from bertorch.data.schedule import epoch_order
from bertorch.data.texts import Columns, Interleaved
from bertorch.data.tokens import TokenStore, joined_hashes, tokenize
from bertorch.errors import UserError


class Examples(Protocol):
    """N tokenised examples, as the train and evaluation loops see them."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, a length of each example by which batches are sorted."""
        ...

    def label_count(self, indices: np.ndarray) -> int:
        """Labels of these examples: the loss of a step is the mean over its labels."""
        ...

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """The labels of these examples, end to end: (examples, …), or (words,) tags; (examples, 0) without labels."""
        ...

    def cut(self, indices: np.ndarray) -> np.ndarray:
        """(examples,) bool, whether text of an example was cut off."""
        ...

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        """(examples, 2) uint64, equal for examples of the same tokens; see `TokenStore.hashes`."""
        ...

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """Gather the examples with these indices, in this order, into a packed batch on the CPU."""
        ...


@dataclass(frozen=True)
class TextRows(Examples):
    """Examples of S sentences each, which have no labels: what they are follows from which texts stand together."""

    store: TokenStore  # of the distinct sentences
    sentences: np.ndarray  # (N, S) int64, the indices of each example's sentences in the store, equal for equal texts

    @staticmethod
    def tokenized(tokenizer: PreTrainedTokenizerBase, columns: Columns, *, max_length: int) -> "TextRows":
        """Rows of S texts from S columns of N texts; each distinct text is tokenised once."""
        texts, sentences = numbered(columns)
        return TextRows(tokenize(tokenizer, [texts], max_length, total=int(sentences.max(initial=-1)) + 1), sentences)

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    @override
    def lengths(self) -> np.ndarray:
        parts = np.array_split(self.sentences, len(self) // 2**20 + 1)  # few intermediate results at once
        return np.concatenate([self.store.lengths_of(part).max(axis=1) for part in parts])  # of the longest sentence

    @override
    def label_count(self, indices: np.ndarray) -> int:
        return len(indices)

    @override
    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return np.zeros((len(indices), 0))

    @override
    def cut(self, indices: np.ndarray) -> np.ndarray:
        return self.store.cut[self.sentences[indices]].any(axis=1)

    @override
    def hashes(self, indices: np.ndarray) -> np.ndarray:
        rows = self.sentences[indices]  # (examples, S)
        return joined_hashes(self.store.hashes(rows.ravel()), np.full(len(rows), rows.shape[1]))

    @override
    def batch(self, indices: np.ndarray) -> PackedBatch:
        rows = self.sentences[indices]  # (examples, S)
        labels = torch.zeros(len(rows), 0)
        return PackedBatch.of(self.store, rows.ravel(), labels=labels, text_ids=torch.from_numpy(rows))


@dataclass(frozen=True)
class PromptedRows(TextRows):
    """Rows whose texts stand after prompts: with another prompt a text is another sentence, but the same text."""

    text_numbers: np.ndarray  # (M,) int64, of each sentence in the store, equal for equal texts without their prompts

    @staticmethod
    def with_prompts(
        tokenizer: PreTrainedTokenizerBase, columns: Columns, prompts: Prompts, *, max_length: int
    ) -> "PromptedRows":
        """As `TextRows.tokenized`, of queries and any number of columns of passages."""
        rows = TextRows.tokenized(tokenizer, prompts.of_pairs(columns), max_length=max_length)
        text_numbers = np.zeros(len(rows.store), np.int64)
        text_numbers[rows.sentences] = numbered(columns)[1]
        return PromptedRows(rows.store, rows.sentences, text_numbers)

    @override
    def batch(self, indices: np.ndarray) -> PackedBatch:
        texts = self.text_numbers[self.sentences[indices]]  # (examples, S)
        return replace(super().batch(indices), text_ids=torch.from_numpy(texts))


@dataclass(frozen=True)
class Dataset(TextRows):
    """Examples of S sentences each with a label."""

    labels: np.ndarray  # (N, …), such as classes (N,) in int64 or scores (N,) in float64

    @classmethod
    def of_sequences(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        columns: Columns,
        labels: np.ndarray,
        *,
        max_length: int,
    ) -> "Dataset":
        """Examples of one or two texts, which are encoded together, as one sentence of at most `max_length` tokens.

        More than two columns are groups: the first text is encoded with each of the others, S sentences in all.
        """
        columns = paired(columns)
        store = tokenize(tokenizer, columns, max_length, total=len(columns[0]))
        return cls(store, np.arange(len(store)).reshape(len(labels), -1), labels)

    @classmethod
    def of_sentences(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        columns: Columns,
        labels: np.ndarray,
        *,
        max_length: int,
    ) -> "Dataset":
        """Examples whose texts are encoded apart, a sentence each; see `TextRows.tokenized`."""
        rows = cls.tokenized(tokenizer, columns, max_length=max_length)
        return cls(rows.store, rows.sentences, labels)

    @override
    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self.labels[indices]

    @override
    def batch(self, indices: np.ndarray) -> PackedBatch:
        labels = torch.from_numpy(self.labels[indices])
        return PackedBatch.of(self.store, self.sentences[indices].ravel(), labels=labels)


def paired(columns: Columns) -> Columns:
    """One or two columns as they are; of more, the first text of each row with each of its others, as two columns."""
    if len(columns) <= 2:
        return columns
    return [Interleaved([columns[0]] * (len(columns) - 1)), Interleaved(columns[1:])]


@dataclass(frozen=True)
class Decorated(Examples):
    """Other examples, which a subclass adds something to or leaves some out of."""

    whole: Examples

    def _in_whole(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def __len__(self) -> int:
        return len(self.whole)

    @property
    @override
    def lengths(self) -> np.ndarray:
        return self.whole.lengths

    @override
    def label_count(self, indices: np.ndarray) -> int:
        return self.whole.label_count(self._in_whole(indices))

    @override
    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self.whole.labels_of(self._in_whole(indices))

    @override
    def cut(self, indices: np.ndarray) -> np.ndarray:
        return self.whole.cut(self._in_whole(indices))

    @override
    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return self.whole.hashes(self._in_whole(indices))

    @override
    def batch(self, indices: np.ndarray) -> PackedBatch:
        return self.whole.batch(self._in_whole(indices))


@dataclass(frozen=True)
class Subset(Decorated):
    """Some examples of a dataset, without a copy of their tokens."""

    chosen: np.ndarray  # (N,) int64, their indices in the whole

    @override
    def _in_whole(self, indices: np.ndarray) -> np.ndarray:
        return self.chosen[indices]

    @override
    def __len__(self) -> int:
        return len(self.chosen)

    @property
    @override
    def lengths(self) -> np.ndarray:
        return self.whole.lengths[self.chosen]


def labels_each(examples: Examples, indices: np.ndarray) -> np.ndarray:
    """How many labels each of these examples has, (examples,) int64."""
    if examples.label_count(indices) == len(indices):  # none has none
        return np.ones(len(indices), np.int64)
    return np.array([examples.label_count(indices[at : at + 1]) for at in range(len(indices))], np.int64)


def split_off(examples: Examples, ratio: float, *, seed: int) -> tuple[Subset, Subset]:
    """Split a dataset in two at random; the second part has a share of `ratio`, at least one example.

    Raises:
        UserError: one part would be empty.
    """
    size = max(1, round(len(examples) * ratio))
    if size >= len(examples):
        raise UserError(
            f"--dev_ratio {ratio:g}: expected more training examples than it takes, got {len(examples)}, of which it "
            f"takes {size}; lower it, or name a dev file with --dev_data_file"
        )
    drawn = epoch_order(len(examples), seed=seed, epoch=0)  # epochs count from 1
    return Subset(examples, np.sort(drawn[size:])), Subset(examples, np.sort(drawn[:size]))
