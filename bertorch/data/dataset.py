"""Tokenised examples, and how a packed batch is gathered from them."""

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
    """What the train and evaluation loops know of tokenised examples."""

    def __len__(self) -> int:
        """N, the number of examples."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, a length of each example, so that like ones can go together."""
        ...

    def labels_of(self, examples: np.ndarray) -> int:
        """How many labels these examples have; the loss is the mean over the labels of a step."""
        ...

    def batch(self, examples: np.ndarray) -> PackedBatch:
        """Gather the examples with these numbers, in this order, into a packed batch on the CPU."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Tokenised examples of S sentences each, with their labels.

    Attributes:
        store: the tokens of the sentences.
        sentences: (N, S) int64, the numbers of each example's sentences in the store.
        labels: (N,) or (N, S), see `PackedBatch`.
    """

    store: TokenStore
    sentences: np.ndarray
    labels: np.ndarray

    @classmethod
    def of_sequences(
        cls, tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], labels: np.ndarray, *, max_length: int
    ) -> "Dataset":
        """Examples whose texts are encoded together: one sentence an example, also for a pair.

        Args:
            tokenizer: the model's.
            columns: one list of N texts, or two for pairs.
            labels: (N,) int64, a class an example.
            max_length: tokens kept of an example.
        """
        store = tokenize(tokenizer, columns, max_length)
        return cls(store, np.arange(len(store))[:, None], labels)

    @classmethod
    def of_sentences(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[list[str]],
        labels: np.ndarray | None = None,
        *,
        max_length: int,
    ) -> "Dataset":
        """Examples whose texts are encoded apart: a sentence for each text.

        A text that occurs several times is tokenised and stored once, so that equal texts have equal numbers.

        Args:
            tokenizer: the model's.
            columns: S lists of N texts.
            labels: (N,), a class or score an example; None takes the numbers of the texts, (N, S), as labels.
            max_length: tokens kept of a text.
        """
        numbers: dict[str, int] = {}
        sentences = np.array(
            [[numbers.setdefault(text, len(numbers)) for text in column] for column in columns], dtype=np.int64
        ).T  # (N, S)
        store = tokenize(tokenizer, [list(numbers)], max_length)
        return cls(store, sentences, sentences if labels is None else labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens of the longest sentence of each example."""
        return self.store.lengths_of(self.sentences).max(axis=1)

    def labels_of(self, examples: np.ndarray) -> int:
        """One for each example."""
        return len(examples)

    def batch(self, examples: np.ndarray) -> PackedBatch:
        """Gather the examples with these numbers, in this order, into a packed batch on the CPU.

        The S sentences of an example follow each other.
        """
        return PackedBatch.of(
            self.store, self.sentences[examples].ravel(), labels=torch.from_numpy(self.labels[examples])
        )


@dataclass(frozen=True)
class Subset:
    """Some examples of a dataset, without a copy of their tokens.

    Attributes:
        whole: the dataset.
        numbers: (N,) int64, which examples of it.
    """

    whole: Examples
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, a length of each example."""
        return self.whole.lengths[self.numbers]

    def labels_of(self, examples: np.ndarray) -> int:
        """How many labels these examples have."""
        return self.whole.labels_of(self.numbers[examples])

    def batch(self, examples: np.ndarray) -> PackedBatch:
        """Gather the examples with these numbers, in this order, into a packed batch on the CPU."""
        return self.whole.batch(self.numbers[examples])


def split_off(examples: Examples, ratio: float, *, seed: int) -> tuple[Subset, Subset]:
    """Split a dataset in two by chance: the same two parts wherever size, ratio and seed are the same.

    Args:
        examples: N of them.
        ratio: the share of the second part, which has at least one example.
        seed: of the draw, which is none of those that order the epochs.

    Returns:
        Two parts, each in the order of the dataset.

    Raises:
        UserError: one of them would be empty.
    """
    size = max(1, round(len(examples) * ratio))
    if size >= len(examples):
        raise UserError(
            f"--dev_ratio {ratio:g}: expected more training examples than it takes, got {len(examples)}, of which it "
            f"takes {size}; lower it, or name a dev file with --dev_data_file"
        )
    drawn = epoch_order(len(examples), seed=seed, epoch=0)  # epochs count from 1
    return Subset(examples, np.sort(drawn[size:])), Subset(examples, np.sort(drawn[:size]))
