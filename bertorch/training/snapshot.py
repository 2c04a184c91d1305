"""Copies of tensors in host memory, from which they are saved while training goes on."""

from collections.abc import Mapping

import torch
from torch import Tensor

_Key = tuple[int, tuple[int, ...], torch.dtype, str, int]


class HostMemory:
    """Host memory for the tensors of a save, page-locked for those of a GPU, used again for the next save.

    A tensor that is copied under several names, as weights for use and in a checkpoint, is copied once. Copies from a
    GPU are made in the order of its stream, before the next step changes the tensors; `wait` for them before reading.
    """

    def __init__(self) -> None:
        self._buffers: dict[_Key, Tensor] = {}
        self._copied: dict[_Key, Tensor] = {}  # since `begin`
        self._done: torch.cuda.Event | None = None

    def begin(self) -> None:
        """Begin a new save: what was copied before is overwritten."""
        self._buffers = self._copied or self._buffers  # those of tensors that are gone are given back
        self._copied = {}

    def copies(self, tensors: Mapping[str, Tensor], *, variant: str = "") -> dict[str, Tensor]:
        """Contiguous copies that share no memory with one another, by name.

        The same tensors hold other values in another `variant`, such as averaged weights for the time of a save.
        """
        copies: dict[str, Tensor] = {}
        taken: set[_Key] = set()
        for name, tensor in tensors.items():
            key = self._key(tensor, variant, taken)
            taken.add(key)
            if key not in self._copied:
                self._copied[key] = self._buffer(key, tensor).copy_(tensor.detach(), non_blocking=True)
            copies[name] = self._copied[key]
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._done = torch.cuda.Event(blocking=True)
            self._done.record()
        return copies

    def wait(self) -> None:
        """Wait until the copies are there; any thread may call it."""
        if self._done is not None:
            self._done.synchronize()

    @staticmethod
    def _key(tensor: Tensor, variant: str, taken: set[_Key]) -> _Key:
        """The tensor's memory, the variant, and how many tensors of one mapping share it so far."""
        number = 0
        while (key := (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, variant, number)) in taken:
            number += 1
        return key

    def _buffer(self, key: _Key, tensor: Tensor) -> Tensor:
        if key in self._buffers:
            return self._buffers[key]
        if not tensor.is_cuda:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        try:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError:  # the system limits how much may be locked
            return torch.empty(tensor.shape, dtype=tensor.dtype)
