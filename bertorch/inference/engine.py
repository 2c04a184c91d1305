"""Inputs → rows of results, in order: packed batches of like length within a window, prepared ahead, on all processes.

Memory does not grow with the number of inputs: a window of them is tokenised while the one before is on the device.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.prefetch import prefetched
from bertorch.data.schedule import evaluation_batches, share
from bertorch.data.tokens import end_to_end
from bertorch.errors import UserError
from bertorch.training.eval_loop import GPU_TOKENS
from bertorch.training.memory import lack_of_memory
from bertorch.training.step import Precision

# Inputs of a window on each process: enough for batches of like length, few enough to hold in memory; and their
# characters, where inputs are long.
WINDOW = 4096
WINDOW_CHARACTERS = 2**21
# Windows prepared ahead.
AHEAD = 2

Input = TypeVar("Input")


@dataclass(frozen=True)
class Job(Generic[Input]):
    """What is worked out of inputs, such as texts or pairs of texts.

    Attributes:
        size_of: characters of an input.
        examples_of: tokenises inputs, at least one.
        rows_of: the rows of a batch that is on the device, (rows, …): one an input, or one a word.
        shape: of a row.
        dtype: of the rows.
        by_word: whether a word has a row; else an input has.
    """

    size_of: Callable[[Input], int]
    examples_of: Callable[[Sequence[Input]], Examples]
    rows_of: Callable[[Any], Tensor]
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    by_word: bool = False


class _Window(NamedTuple, Generic[Input]):
    """Inputs of all processes, and the batches of this one's share of them.

    Attributes:
        inputs: of all processes.
        batches: on the CPU.
        places: (rows,) int64, which row of the batches comes first, second, …
    """

    inputs: list[Input]
    batches: list[PackedBatch]
    places: Tensor


class Engine:
    """Runs jobs.

    Args:
        device: that the model is on.
        precision: of the forward pass.
        batch_size: inputs of a batch; more of them on a GPU.
        shared: whether the processes that a launcher started share each window out; then all of them must run the same
            jobs on the same inputs, and all get all rows.

    Attributes:
        device, precision: as given.
    """

    def __init__(self, device: torch.device, precision: Precision, *, batch_size: int, shared: bool) -> None:
        self.device = device
        self.precision = precision
        self._batch_size = batch_size
        self._rank, self._world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)

    def run(self, job: Job[Input], inputs: Iterable[Input]) -> Iterator[tuple[list[Input], np.ndarray]]:
        """The inputs, window by window in their order, with their rows (rows, …).

        Raises:
            UserError: the memory is not enough for a batch.
        """
        launched: tuple[list[Input], Tensor] | None = None
        windows = _windows(inputs, job.size_of, WINDOW * self._world_size, WINDOW_CHARACTERS * self._world_size)
        with closing(prefetched(lambda window: self._prepared(job, window), windows, AHEAD)) as prepared:
            for window in prepared:
                rows = self._launch(job, window)
                if launched is not None:  # the device has the next window to work on while this one is fetched and used
                    yield launched[0], launched[1].cpu().numpy()
                launched = window.inputs, rows
        if launched is not None:
            yield launched[0], launched[1].cpu().numpy()

    def _prepared(self, job: Job[Input], inputs: list[Input]) -> _Window[Input]:
        mine = [inputs[number] for number in share(np.arange(len(inputs)), self._rank, self._world_size)]
        if not mine:
            return _Window(inputs, [], torch.zeros(0, dtype=torch.int64))
        examples = job.examples_of(mine)
        tokens = GPU_TOKENS if self.device.type == "cuda" else 0
        shares = list(evaluation_batches(examples.lengths, self._batch_size, 0, 1, tokens=tokens))
        batches = [examples.batch(numbers).ready_for(self.device) for numbers in shares]
        order = np.concatenate(shares)  # (N,)
        rows = examples.lengths if job.by_word else np.ones(len(mine), dtype=np.int64)  # (N,), of each input
        first = np.empty_like(rows)  # (N,), the first row of each
        first[order] = rows[order].cumsum() - rows[order]
        return _Window(inputs, batches, torch.from_numpy(end_to_end(first, rows)))

    def _launch(self, job: Job[Input], window: _Window[Input]) -> Tensor:
        """The rows of all processes, in the order of the inputs, on the device."""
        with torch.inference_mode():
            with self.precision.autocast():
                rows = [self._rows_of(job, batch) for batch in window.batches]
            if rows:
                ordered = torch.cat(rows).index_select(0, window.places.to(self.device))
            else:
                ordered = torch.zeros(0, *job.shape, dtype=job.dtype, device=self.device)
            return ordered if self._world_size == 1 else distributed.gather_rows(ordered)[0]

    def _rows_of(self, job: Job[Input], batch: PackedBatch) -> Tensor:
        try:
            return job.rows_of(batch.to(self.device))
        except (RuntimeError, MemoryError) as error:
            reason = lack_of_memory(error)
            if reason is None:
                raise
            raise UserError(
                f"{self.device}: expected enough memory for a batch of {len(batch.input_ids)} tokens, got too little; "
                f"lower --batch_size {self._batch_size} or --max_seq_length, or free some\n{reason}"
            ) from error


def _windows(
    inputs: Iterable[Input], size_of: Callable[[Input], int], most: int, characters: int
) -> Iterator[list[Input]]:
    """Cut inputs into windows of at most so many, of at most so many characters unless one alone has more."""
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
