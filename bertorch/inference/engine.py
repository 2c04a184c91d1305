"""Inputs → results, in order: packed batches of similar length within a window, prepared ahead, on all processes.

Memory does not grow with the number of inputs: a window of them is tokenised while the previous one is on the device.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bertorch import distributed
from bertorch.data.batch import PackedBatch, on_device
from bertorch.data.prefetch import prefetched
from bertorch.data.schedule import evaluation_batches, share
from bertorch.inference.heap import HEAP
from bertorch.precision import Precision, require_finite
from bertorch.tasks.base import Inference
from bertorch.training.eval_loop import batch_tokens
from bertorch.training.memory import IN_EVALUATION, explain_out_of_memory

# Inputs and characters of a window on each process: enough for batches of similar length, few enough for the memory.
WINDOW = 4096
WINDOW_CHARACTERS = 2**21
AHEAD = 2  # windows prepared ahead

Input = TypeVar("Input")


class _Window(NamedTuple, Generic[Input]):
    """Inputs of all processes, and the batches of this process's share of them."""

    inputs: list[Input]  # of all processes
    first: int  # index of this process's first input
    batches: list[PackedBatch]  # on the CPU
    indices: list[np.ndarray]  # of each batch (inputs of the batch,) int64, counted from `first`


class Engine:
    """Runs inferences in batches of `batch_size` inputs, larger ones on a GPU.

    If `shared`, the processes of a launcher share the work: all of them must then run the same inferences on the same
    inputs, and all get all results.
    """

    def __init__(self, device: torch.device, precision: Precision, *, batch_size: int, shared: bool) -> None:
        self.device, self.precision = device, precision
        self._batch_size = batch_size
        self._rank, self._world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)

    def run(self, inference: Inference[Input], inputs: Iterable[Input]) -> Iterator[tuple[list[Input], Any]]:
        """Run an inference, window by window.

        Yields:
            The inputs of a window in order, and their rows (inputs, …) or, of a set, an array (rows, …) for each input.

        Raises:
            UserError: memory runs out, or a result is not finite.
        """
        launched: tuple[list[Input], Tensor] | None = None  # inputs of a window, and its rows on the device
        windows = _windows(inputs, inference.size_of, WINDOW * self._world_size, WINDOW_CHARACTERS * self._world_size)
        with closing(prefetched(lambda window: self._prepared(inference, window), windows, AHEAD)) as prepared:
            for window in prepared:
                rows = self._launch(inference, window)
                if launched is not None:  # the device works on this window while the previous one is fetched and used
                    yield launched[0], _results(inference, *launched)
                launched = window.inputs, rows
        if launched is not None:
            yield launched[0], _results(inference, *launched)

    def _prepared(self, inference: Inference[Input], inputs: list[Input]) -> _Window[Input]:
        local = share(np.arange(len(inputs)), self._rank, self._world_size)
        if not len(local):
            return _Window(inputs, 0, [], [])
        examples = inference.examples_of([inputs[index] for index in local])
        tokens = batch_tokens(self.device)
        indices = list(evaluation_batches(examples.lengths, self._batch_size, 0, 1, tokens=tokens))
        return _Window(
            inputs, int(local[0]), [examples.batch(each).ready_for(self.device) for each in indices], indices
        )

    def _launch(self, inference: Inference[Input], window: _Window[Input]) -> Tensor:
        """The rows of all processes (rows, …) on the device, in the order of the inputs or led by their indices."""
        parts = [torch.zeros(0, *inference.shape, dtype=inference.dtype, device=self.device)]
        indices = [on_device(each, self.device) for each in window.indices]  # (inputs of the batch,) each
        with torch.inference_mode(), self.precision.autocast():
            for batch, of_batch in zip(window.batches, indices, strict=True):
                with explain_out_of_memory(str(self.device), IN_EVALUATION, len(batch.input_ids)):
                    rows = inference.rows_of(batch.to(self.device))
                if inference.is_set:
                    rows[:, 0] = of_batch[rows[:, 0].long()] + window.first
                parts.append(rows)
        HEAP.trim()
        rows = torch.cat(parts)
        if indices and not inference.is_set:
            rows = rows.index_select(0, torch.cat(indices).argsort())
        return rows if self._world_size == 1 else distributed.gather_rows(rows)[0]


def _results(inference: Inference[Input], inputs: list[Input], rows: Tensor) -> np.ndarray | list[np.ndarray]:
    """The result of each input, on the host."""
    on_host = rows.cpu()
    require_finite(on_host, f"{len(inputs)} inputs, the first of them {str(inputs[0])[:60]!r}")
    found = on_host.numpy()
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
        size += size_of(each)
        if len(window) == most or (window and size > characters):
            yield window
            window, size = [], size_of(each)
        window.append(each)
    if window:
        yield window
