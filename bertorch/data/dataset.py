"""Tokenised examples, from which packed batches are gathered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bertorch.data.batch import PackedBatch
from bertorch.data.schedule import epoch_order
from bertorch.data.tokens import TokenStore, tokenize
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

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """Gather the examples with these indices, in this order, into a packed batch on the CPU."""
        ...


@dataclass(frozen=True)
class TextRows:
    """Examples of S sentences each, which have no labels: what they are follows from which texts stand together.

    Attributes:
        store: the tokens of the distinct sentences.
        sentences: (N, S) int64, the indices of each example's sentences in the store; equal texts have equal ones.
    """

    store: TokenStore
    sentences: np.ndarray

    @classmethod
    def tokenized(
        cls, tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], *, max_length: int
    ) -> "TextRows":
        """Rows of S texts from S lists of N texts; see `tokenize_distinct`."""
        return cls(*tokenize_distinct(tokenizer, columns, max_length))

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens of the longest sentence of each example."""
        return self.store.lengths_of(self.sentences).max(axis=1)

    def label_count(self, indices: np.ndarray) -> int:
        """One an example."""
        return len(indices)

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """See `Examples.batch`; the S sentences of an example follow each other, and it has `text_ids`."""
        rows = self.sentences[indices]  # (examples, S)
        labels = torch.zeros(len(rows), 0)
        return PackedBatch.of(self.store, rows.ravel(), labels=labels, text_ids=torch.from_numpy(rows))


@dataclass(frozen=True)
class Dataset(TextRows):
    """Examples of S sentences each with a label.

    Attributes:
        labels: (N,), classes in int64 or scores in float64.
    """

    labels: np.ndarray

    @classmethod
    def of_sequences(
        cls, tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], labels: np.ndarray, *, max_length: int
    ) -> "Dataset":
        """Examples whose texts are encoded together: one sentence an example, also for a pair.

        Args:
            tokenizer: the model's.
            columns: one list of N texts, or two for pairs.
            labels: (N,).
            max_length: tokens kept of an example.
        """
        store = tokenize(tokenizer, columns, max_length)
        return cls(store, np.arange(len(store))[:, None], labels)

    @classmethod
    def of_sentences(
        cls, tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], labels: np.ndarray, *, max_length: int
    ) -> "Dataset":
        """Examples whose texts are encoded apart, a sentence each; see `tokenize_distinct`."""
        return cls(*tokenize_distinct(tokenizer, columns, max_length), labels)

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """See `Examples.batch`; the S sentences of an example follow each other."""
        labels = torch.from_numpy(self.labels[indices])
        return PackedBatch.of(self.store, self.sentences[indices].ravel(), labels=labels)


def tokenize_distinct(
    tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int
) -> tuple[TokenStore, np.ndarray]:
    """Tokenise S lists of N texts, each distinct text once.

    Returns:
        The store, and (N, S) int64, the index of each text in it.
    """
    indices: dict[str, int] = {}
    sentences = [[indices.setdefault(text, len(indices)) for text in column] for column in columns]
    return tokenize(tokenizer, [list(indices)], max_length), np.array(sentences, dtype=np.int64).T


@dataclass(frozen=True)
class Subset:
    """Some examples of a dataset, without a copy of their tokens.

    Attributes:
        whole: the dataset.
        chosen: (N,) int64, their indices in it.
    """

    whole: Examples
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def lengths(self) -> np.ndarray:
        """See `Examples.lengths`."""
        return self.whole.lengths[self.chosen]

    def label_count(self, indices: np.ndarray) -> int:
        """See `Examples.label_count`."""
        return self.whole.label_count(self.chosen[indices])

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """See `Examples.batch`."""
        return self.whole.batch(self.chosen[indices])


def split_off(examples: Examples, ratio: float, *, seed: int) -> tuple[Subset, Subset]:
    """Split a dataset in two at random: the same two parts wherever size, ratio and seed are the same.

    Args:
        examples: N of them.
        ratio: the share of the second part, which has at least one example.
        seed: of the draw, which differs from those that order the epochs.

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
