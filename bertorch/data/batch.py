"""A packed batch: the tokens of several sentences end to end in one row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertorch.data.tokens import TokenStore, end_to_end


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """T tokens of N sentences, end to end in one row: no padding, no attention mask."""

    input_ids: Tensor  # (T,) int64
    token_type_ids: Tensor  # (T,) int64
    position_ids: Tensor  # (T,) int64, from 0 in each sentence
    cu_seqlens: Tensor  # (N+1,) int32: sentence i is tokens `cu_seqlens[i] : cu_seqlens[i+1]`
    max_seqlen: int  # a bound on the longest sentence
    labels: Tensor  # a row an example: classes (examples,) int64, or scores (examples,) float64
    text_ids: Tensor | None = None  # (examples, S) int64, equal for equal texts, where the loss must know them
    # (examples, R, K) fp32, what a teacher gives for each example: K logits (R is 1), or a vector for each of R texts
    teacher: Tensor | None = None
    # (inputs,) int64, consecutive sentences that are the windows of one input; None: each sentence is one
    window_counts: Tensor | None = None
    has_filler: bool = False  # whether tokens that belong to no sentence follow the last one, see `filled`
    offsets: tuple[int, ...] | None = None  # `cu_seqlens` on the host, if known: asking a GPU for them waits for it
    is_twice: bool = False  # whether the second half of the examples is the first once more, see `twice`

    @property
    def size(self) -> int:
        """N, the number of sentences."""
        return len(self.cu_seqlens) - 1

    @property
    def tokens(self) -> int:
        """Real tokens; synchronises on a GPU."""
        return int(self.cu_seqlens[-1])

    @property
    def bounds(self) -> Tensor:
        """`cu_seqlens`, to which filler adds T, as if it were one more sentence; int32."""
        return F.pad(self.cu_seqlens, (0, 1), value=len(self.input_ids)) if self.has_filler else self.cu_seqlens

    @property
    def sentence_ids(self) -> Tensor:
        """(T,) int64, the index of the sentence that each token belongs to, N for filler."""
        lengths = self.bounds.diff()
        sentences = torch.arange(len(lengths), device=lengths.device)
        return torch.repeat_interleave(sentences, lengths, output_size=len(self.input_ids))

    def filled(self, multiple: int) -> Self:
        """The batch in one of few shapes, as CUDA graphs need them, with the same sentences and results.

        At least one token of filler brings T to the next multiple, and `max_seqlen` is rounded up to one.
        """
        filler = multiple - len(self.input_ids) % multiple
        return replace(
            self,
            input_ids=F.pad(self.input_ids, (0, filler)),
            token_type_ids=F.pad(self.token_type_ids, (0, filler)),
            position_ids=F.pad(self.position_ids, (0, filler)),
            max_seqlen=round_up(self.max_seqlen, multiple),
            has_filler=True,
        )

    def twice(self) -> Self:
        """All examples, then all of them once more: 2N sentences of 2T tokens; before `filled`."""
        if self.has_filler or self.is_twice:
            raise ValueError("expected a batch without filler, with each example once")
        return replace(
            self,
            input_ids=self.input_ids.repeat(2),
            token_type_ids=self.token_type_ids.repeat(2),
            position_ids=self.position_ids.repeat(2),
            cu_seqlens=offsets_twice(self.cu_seqlens),
            labels=torch.cat([self.labels, self.labels]),
            text_ids=None if self.text_ids is None else torch.cat([self.text_ids, self.text_ids]),
            teacher=None if self.teacher is None else torch.cat([self.teacher, self.teacher]),
            window_counts=None if self.window_counts is None else self.window_counts.repeat(2),
            offsets=self.offsets and (*self.offsets, *(self.offsets[-1] + end for end in self.offsets[1:])),
            is_twice=True,
        )

    @property
    def twins(self) -> Tensor:
        """Of each label of a batch made by `twice`, the index of the same one in the other half; int64."""
        return torch.arange(len(self.labels), device=self.labels.device).roll(len(self.labels) // 2)

    def ready_for(self, device: torch.device) -> Self:
        """The batch in memory from which it can be copied without waiting: page-locked for a GPU."""
        if device.type != "cuda":
            return self
        with torch.cuda.device(device):  # a new thread starts on the first GPU
            return self._mapped(Tensor.pin_memory)

    def split(self, sentences: int) -> "Iterator[PackedBatch]":
        """Cut the batch into batches of at most this many sentences, in order, without labels or windows."""
        offsets = self.cu_seqlens.tolist() if self.offsets is None else self.offsets
        for start in range(0, self.size, sentences):
            bounds = offsets[start : start + sentences + 1]
            tokens = slice(bounds[0], bounds[-1])
            yield PackedBatch(
                input_ids=self.input_ids[tokens],
                token_type_ids=self.token_type_ids[tokens],
                position_ids=self.position_ids[tokens],
                cu_seqlens=self.cu_seqlens[start : start + sentences + 1] - bounds[0],
                max_seqlen=max(end - begin for begin, end in pairwise(bounds)),
                labels=self.labels[:0],
            )

    def to(self, device: torch.device) -> Self:
        """The batch on another device; to the host once it is all there."""
        non_blocking = device.type != "cpu"  # a host would read what has not come yet
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: function(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)

    @classmethod
    def of(cls, store: TokenStore, sentences: np.ndarray, **others: Any) -> Self:
        """Gather the sentences with these indices, (N,) int64, in this order on the CPU; `others` are attributes."""
        input_ids, token_type_ids, lengths = store.tokens_of(sentences)  # (T,), (T,), (N,)
        cu_seqlens = np.concatenate([[0], lengths]).cumsum().astype(np.int32)  # (N+1,)
        return cls(
            input_ids=torch.from_numpy(input_ids.astype(np.int64)),
            token_type_ids=torch.from_numpy(token_type_ids.astype(np.int64)),
            position_ids=torch.from_numpy(end_to_end(np.zeros_like(lengths), lengths)),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            offsets=tuple(cu_seqlens.tolist()),
            max_seqlen=int(lengths.max(initial=0)),
            **others,
        )


def offsets_twice(offsets: Tensor) -> Tensor:
    """The offsets (N+1,) of N pieces, of these pieces and as many of the same sizes after them, (2N+1,)."""
    return torch.cat([offsets, offsets[1:] + offsets[-1]])


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on a device, to which it is copied without waiting for the work before it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not below the size."""
    return -(-size // multiple) * multiple
