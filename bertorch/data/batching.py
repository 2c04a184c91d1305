"""Token store → packed batches: the order of an epoch, its cut into steps and shares, the gather."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bertorch.data.tokenization import TokenStore


@dataclass(frozen=True)
class PackedBatch:
    """T tokens of N sentences, end to end in one row: no padding, no attention mask.

    Attributes:
        input_ids: (T,) int64.
        token_type_ids: (T,) int64.
        position_ids: (T,) int64, from 0 in each sentence.
        cu_seqlens: (N+1,) int32: sentence i is tokens `cu_seqlens[i] : cu_seqlens[i+1]`.
        max_seqlen: a bound on the longest sentence.
        labels: (N,) int64, a class a sentence.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    labels: Tensor

    @property
    def size(self) -> int:
        """N, the number of sentences."""
        return len(self.cu_seqlens) - 1

    @property
    def sentence_ids(self) -> Tensor:
        """(T,) int64, the number of the sentence that each token belongs to."""
        lengths = self.cu_seqlens.diff()  # (N,)
        sentences = torch.arange(self.size, device=lengths.device)  # (N,)
        return torch.repeat_interleave(sentences, lengths, output_size=len(self.input_ids))

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch on another device."""
        return PackedBatch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            token_type_ids=self.token_type_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            max_seqlen=self.max_seqlen,
            labels=self.labels.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Dataset:
    """Tokenised examples with their labels.

    Attributes:
        store: the tokens of N sentences.
        labels: (N,) int64, a class a sentence.
    """

    store: TokenStore
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, examples: np.ndarray) -> PackedBatch:
        """Gather the examples with these numbers, in this order, into a packed batch on the CPU."""
        starts = self.store.offsets[examples]  # (N,)
        lengths = self.store.offsets[examples + 1] - starts  # (N,)
        cu_seqlens = np.concatenate([[0], lengths]).cumsum()  # (N+1,)
        position_ids = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)  # (T,)
        tokens = np.repeat(starts, lengths) + position_ids  # (T,)
        return PackedBatch(
            input_ids=torch.from_numpy(self.store.input_ids[tokens].astype(np.int64)),
            token_type_ids=torch.from_numpy(self.store.token_type_ids[tokens].astype(np.int64)),
            position_ids=torch.from_numpy(position_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            max_seqlen=int(lengths.max(initial=0)),
            labels=torch.from_numpy(self.labels[examples]),
        )


def epoch_order(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation of `size` examples that all processes follow in an epoch; (size,) int64."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def share(examples: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This process's slice of the examples: W slices whose sizes differ by at most one, some empty if need be."""
    return np.array_split(examples, world_size)[rank]


@dataclass(frozen=True)
class TrainingSchedule:
    """Which examples make up each optimisation step of an epoch, the same on every process.

    Attributes:
        size: the number of training examples.
        batch_size: examples of a batch over all processes, W·B.
        accumulation: batches of one optimisation step.
        seed: of the order.
    """

    size: int
    batch_size: int
    accumulation: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps of an epoch; the last one may have fewer examples."""
        return -(-self.size // (self.batch_size * self.accumulation))

    def steps(self, epoch: int) -> Iterator[list[np.ndarray]]:
        """For each optimisation step of the epoch its batches: arrays of at most `batch_size` example numbers."""
        order = epoch_order(self.size, seed=self.seed, epoch=epoch)
        batches = np.split(order, range(self.batch_size, self.size, self.batch_size))
        for start in range(0, len(batches), self.accumulation):
            yield batches[start : start + self.accumulation]


def evaluation_batches(lengths: np.ndarray, batch_size: int, rank: int, world_size: int) -> Iterator[np.ndarray]:
    """This process's batches of an evaluation, each example on one process only.

    Examples of like length go together, which keeps the attention's blocks small, and the processes take turns, so
    that each has the same work.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples of a batch on one process.
        rank, world_size: this process and how many there are.
    """
    mine = np.argsort(lengths, kind="stable")[rank::world_size]
    yield from (mine[start : start + batch_size] for start in range(0, len(mine), batch_size))
