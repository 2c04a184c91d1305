"""Logging: loguru on standard error from the first process, the training line, the progress bar."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import transformers
from loguru import logger
from tqdm import tqdm

from bertorch import distributed


def setup() -> None:
    """Send log lines to standard error in loguru's default format; processes other than the first log only errors."""
    transformers.logging.set_verbosity_error()  # bertorch.encoder reports what loading finds
    transformers.logging.disable_progress_bar()
    logger.remove()
    if not distributed.is_main():
        logger.add(sys.stderr, level="ERROR")
    elif sys.stderr.isatty():
        logger.add(lambda line: tqdm.write(line, file=sys.stderr, end=""), level="INFO", colorize=True)
    else:
        logger.add(sys.stderr, level="INFO")


def progress_bar(total: int | None, done: int, unit: str = "step", **settings: float) -> tqdm:
    """A progress bar, shown by the first process and on a terminal only; `settings` are those of tqdm."""
    hidden = not (sys.stderr.isatty() and distributed.is_main())
    return tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, disable=hidden, **settings)


def input_bar(done: int = 0) -> tqdm:
    """A progress bar over inputs of unknown number."""
    return progress_bar(None, done, unit="input")


def tokenizing_bar(total: int | None) -> tqdm:
    """A progress bar over examples that are tokenised, shown if that takes more than a second, and then removed."""
    return progress_bar(total, 0, unit="example", delay=1, leave=False)


def training_line(global_step: int, epoch: int, batch: int, losses: Mapping[str, float], speed: float) -> str:
    """The message of a training log line, with the parts of the loss in order."""
    parts = ", ".join(f"{name}: {value:.5f}" for name, value in losses.items())
    return f"global step: {global_step}, epoch: {epoch}, batch: {batch}, {parts}, speed: {speed:.2f} step/s"


class Speedometer:
    """Measures steps per second, without the time spent in `paused()`."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._steps = 0

    def step(self) -> None:
        """Count one step."""
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block: an evaluation, a save."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> float:
        """Steps per second since the last reading."""
        now = time.perf_counter()
        speed = self._steps / max(now - self._since, 1e-9)
        self._since, self._steps = now, 0
        return speed
