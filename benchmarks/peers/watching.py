"""What is measured of a run, and the state in which it begins."""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch._inductor.utils import fresh_cache

from benchmarks.measuring import timed


class Stopwatch:
    """Times the steps of a run, which begins when the watch is made, and its memory.

    Args:
        warmup: steps that are left out of `seconds_per_step`.
        steps: those that come after them.
        device: of the run.

    Attributes:
        first_step: seconds from the beginning until the first step was done.
        seconds_per_step: after the warm-up.
        loss: of training, its mean over the run; set by the contender.
        peak_allocated, peak_reserved: bytes on a GPU until the last step; None on the CPU.
    """

    def __init__(self, warmup: int, steps: int, device: torch.device) -> None:
        self._warmup = warmup
        self._last = warmup + steps
        self._device = device
        self._taken = 0
        self._since = time.perf_counter()
        self.first_step = self.seconds_per_step = self.loss = float("nan")
        self.peak_allocated: int | None = None
        self.peak_reserved: int | None = None

    def step(self) -> None:
        """Note that the host is done with a step; waits for the device where the time is taken."""
        self._taken += 1
        if self._taken not in (1, self._warmup, self._last):
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._taken == 1:
            self.first_step = now - self._since
        if self._taken == self._warmup:
            self._since = now
        if self._taken == self._last:
            self.seconds_per_step = (now - self._since) / (self._last - self._warmup)
            if self._device.type == "cuda":
                self.peak_allocated = torch.cuda.max_memory_allocated(self._device)
                self.peak_reserved = torch.cuda.max_memory_reserved(self._device)

    def require_all(self, contender: str) -> None:
        """Make sure that the run took as many steps as it was to take.

        Raises:
            RuntimeError: it did not.
        """
        if self._taken != self._last:
            raise RuntimeError(f"{contender}: expected {self._last} steps, saw {self._taken}")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the dev examples.

    Attributes:
        value: the dev metric, in [0, 1].
        examples_per_second: of the whole evaluation.
    """

    value: float
    examples_per_second: float

    @classmethod
    def of(cls, evaluate: Callable[[], float], examples: int, device: torch.device) -> "Evaluation":
        """Evaluate twice, the first time to warm up.

        Args:
            evaluate: gives the metric.
            examples: how many it takes in.
            device: where.
        """
        value = evaluate()
        return cls(value, examples / timed(evaluate, device))


@contextmanager
def fresh_start(device: torch.device) -> Iterator[Path]:
    """Run the block without what the runs before it left: memory, compiled code, environment variables, random state.

    Yields:
        An empty folder, which is removed afterwards.
    """
    gc.collect()
    torch.compiler.reset()
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with patch.dict(os.environ), fresh_cache(), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
