"""A run whose cores other programs hold, and what it would gain from fewer threads.

The threads of an operation wait for each other at its end. So where another program holds half of one core, all of
them go at half the speed, and those that spin while they wait hold their cores for nothing.
"""

import resource
import time
from typing import NamedTuple

import torch
from loguru import logger

from bertorch import distributed
from bertorch.training.background import wrote_since

INTERVAL = 5.0  # seconds, at least, between two looks
# Others hold the cores if the threads got less than this share of them, and were interrupted more often a second.
_SHARE, _SWITCHES = 0.75, 50
_TRIAL_SECONDS = 0.3
_WORTH = 1.2  # times as fast


class Usage(NamedTuple):
    """What a process has used so far."""

    wall: float  # seconds
    cores: float  # seconds on all cores together
    switches: int  # involuntary: another thread got the core

    @classmethod
    def now(cls) -> "Usage":
        """Of this process."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_nivcsw)

    def since(self, before: "Usage") -> "Usage":
        """What was used in between."""
        return Usage(self.wall - before.wall, self.cores - before.cores, self.switches - before.switches)

    def is_crowded(self, threads: int) -> bool:
        """Whether others held the cores of this many threads meanwhile."""
        return self.cores < _SHARE * threads * self.wall and self.switches > _SWITCHES * self.wall


def threads_in_use() -> int:
    """Threads of this process that compute on the CPU; 1 where a GPU does."""
    return torch.get_num_threads() if distributed.device().type == "cpu" else 1


class CoreWatch:
    """Says once, in the log of the first process, that others hold the cores, and what to set."""

    def __init__(self) -> None:
        self._threads = threads_in_use()
        self._is_watching = self._threads > 1 and distributed.is_main()
        self._before = Usage.now()

    def look(self) -> None:
        """To be called now and then."""
        used = Usage.now().since(self._before)
        if not self._is_watching or used.wall < INTERVAL:
            return
        began, self._before = self._before.wall, Usage.now()
        if used.is_crowded(self._threads) and not wrote_since(began):  # our own save takes a core too
            self._is_watching = False
            logger.warning(
                "other programs hold the cores: {} threads, which wait for each other, got {:.1f} cores. {}",
                *(self._threads, used.cores / used.wall, _advice(self._threads)),
            )


def _advice(threads: int) -> str:
    """By a trial of fewer threads, which takes about a second and leaves everything as it was."""
    fewer = [threads >> halvings for halvings in range(1, threads.bit_length())]
    try:
        speeds = {number: trial_speed(number) for number in (threads, *fewer)}
    finally:
        torch.set_num_threads(threads)
    best = max(fewer, key=speeds.__getitem__)
    if speeds[best] < _WORTH * speeds[threads]:
        return "In a trial just now fewer threads were not faster"
    return (
        f"In a trial just now --threads {best} was {speeds[best] / speeds[threads]:.1f} x as fast: stop this run by "
        "Ctrl-C, and let the same command go on with it. The number of threads changes the last bits of the result"
    )


def trial_speed(threads: int) -> float:
    """Linear layers a second, of the size of a small encoder's, on this many threads."""
    torch.set_num_threads(threads)
    inputs, weight = torch.ones(512, 256), torch.ones(256, 512)
    began, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < _TRIAL_SECONDS:
        torch.nn.functional.gelu(inputs @ weight)
        done += 1
    return done / seconds
