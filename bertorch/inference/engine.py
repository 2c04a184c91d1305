"""Inputs → results, in order: packed batches of like length within a window, prepared ahead, on all processes.

Memory does not grow with the number of inputs: a window of them is tokenised while the one before is on the device.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.data.prefetch import prefetched
from bertorch.data.schedule import evaluation_batches, share
from bertorch.precision import Precision
from bertorch.tasks.base import Inference
from bertorch.training.eval_loop import GPU_TOKENS
from bertorch.training.memory import IN_EVALUATION, explain_out_of_memory

# Inputs of a window on each process: enough for batches of like length, few enough to hold in memory; and their
# characters, where inputs are long.
WINDOW = 4096
WINDOW_CHARACTERS = 2**21
# Windows prepared ahead.
AHEAD = 2

Input = TypeVar("Input")


class _Window(NamedTuple, Generic[Input]):
    """Inputs of all processes, and the batches of this one's share of them.

    Attributes:
        inputs: of all processes.
        first: the index of this process's first input.
        batches: on the CPU.
        indices: of each batch, the indices of its inputs among this process's, int64.
    """

    inputs: list[Input]
    first: int
    batches: list[PackedBatch]
    indices: list[np.ndarray]


class Engine:
    """Runs inferences.

    Args:
        device: that the model is on.
        precision: of the forward pass.
        batch_size: inputs of a batch; more of them on a GPU.
        shared: whether the processes that a launcher started share each window out; then all of them must run the same
            inferences on the same inputs, and all get all results.

    Attributes:
        device, precision: as given.
    """

    def __init__(self, device: torch.device, precision: Precision, *, batch_size: int, shared: bool) -> None:
        self.device = device
        self.precision = precision
        self._batch_size = batch_size
        self._rank, self._world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)

    def run(self, inference: Inference[Input], inputs: Iterable[Input]) -> Iterator[tuple[list[Input], Any]]:
        """The inputs, window by window in their order, with the result of each.

        Yields:
            Inputs, and rows (inputs, …), or for a set of rows an array (rows of the input, …) for each input.

        Raises:
            UserError: the memory is not enough for a batch.
        """
        launched: tuple[list[Input], Tensor] | None = None
        windows = _windows(inputs, inference.size_of, WINDOW * self._world_size, WINDOW_CHARACTERS * self._world_size)
        with closing(prefetched(lambda window: self._prepared(inference, window), windows, AHEAD)) as prepared:
            for window in prepared:
                rows = self._launch(inference, window)
                if launched is not None:  # the device works on the next window while this one is fetched and used
                    yield launched[0], _results(inference, *launched)
                launched = window.inputs, rows
        if launched is not None:
            yield launched[0], _results(inference, *launched)

    def _prepared(self, inference: Inference[Input], inputs: list[Input]) -> _Window[Input]:
        mine = share(np.arange(len(inputs)), self._rank, self._world_size)
        if not len(mine):
            return _Window(inputs, 0, [], [])
        examples = inference.examples_of([inputs[index] for index in mine])
        tokens = GPU_TOKENS if self.device.type == "cuda" else 0
        shares = list(evaluation_batches(examples.lengths, self._batch_size, 0, 1, tokens=tokens))
        batches = [examples.batch(indices).ready_for(self.device) for indices in shares]
        return _Window(inputs, int(mine[0]), batches, shares)

    def _launch(self, inference: Inference[Input], window: _Window[Input]) -> Tensor:
        """The rows of all processes on the device: in the order of the inputs, or with their indices in front."""
        parts = [torch.zeros(0, *inference.shape, dtype=inference.dtype, device=self.device)]
        indices = [torch.from_numpy(each).to(self.device) for each in window.indices]  # (inputs of the batch,) each
        with torch.inference_mode(), self.precision.autocast():
            for batch, of_batch in zip(window.batches, indices, strict=True):
                with explain_out_of_memory(str(self.device), IN_EVALUATION, len(batch.input_ids)):
                    rows = inference.rows_of(batch.to(self.device))
                if inference.is_set:
                    rows[:, 0] = of_batch[rows[:, 0].long()] + window.first
                parts.append(rows)
        rows = torch.cat(parts)
        if indices and not inference.is_set:
            rows = rows.index_select(0, torch.cat(indices).argsort())
        return rows if self._world_size == 1 else distributed.gather_rows(rows)[0]


def _results(inference: Inference[Input], inputs: list[Input], rows: Tensor) -> np.ndarray | list[np.ndarray]:
    """The result of each input, on the host."""
    found = rows.cpu().numpy()
    if not inference.is_set:
        return found
    indices = found[:, 0].astype(np.int64)  # (rows,)
    order = indices.argsort(kind="stable")
    bounds = np.searchsorted(indices[order], np.arange(1, len(inputs)))  # (inputs-1,)
    return np.split(found[order, 1:], bounds)


def _windows(
    inputs: Iterable[Input], size_of: Callable[[Input], int], most: int, characters: int
) -> Iterator[list[Input]]:
    """Windows bounded by items and characters; one input alone may have more characters."""
    window: list[Input] = []
    size = 0
    for each in inputs:
        length = size_of(each)
        if len(window) == most or (window and size + length > characters):
            yield window
            window, size = [], 0
        window.append(each)
        size += length
    if window:
        yield window
