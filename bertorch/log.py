"""Logging: loguru on standard error from the first process, the training line, the progress bar."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from loguru import logger
from tqdm import tqdm

from bertorch import distributed


def setup() -> None:
    """Send log lines to standard error in loguru's default format; processes other than the first tell only errors."""
    transformers.logging.set_verbosity_error()  # what it would say of loading is said by bertorch.encoder.pretrained
    transformers.logging.disable_progress_bar()
    logger.remove()
    if not distributed.is_main():
        logger.add(sys.stderr, level="ERROR")
    elif sys.stderr.isatty():
        logger.add(lambda line: tqdm.write(line, file=sys.stderr, end=""), level="INFO", colorize=True)
    else:
        logger.add(sys.stderr, level="INFO")


def progress_bar(total: int | None, done: int, unit: str = "step") -> tqdm:
    """A bar over `total` optimisation steps, shown on a terminal only and by the first process only."""
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        dynamic_ncols=True,
        disable=not (sys.stderr.isatty() and distributed.is_main()),
    )


def input_bar(done: int = 0) -> tqdm:
    """A bar over inputs, whose number is not known beforehand, shown as `progress_bar` is."""
    return progress_bar(None, done, unit="input")


def training_line(
    *, global_step: int, epoch: int, batch: int, loss: float, accuracy: float | None, speed: float
) -> str:
    """The message of a training log line; `accuracy` is left out where the task has none."""
    measured = "" if accuracy is None else f" accuracy: {accuracy:.5f},"
    return (
        f"global step: {global_step}, epoch: {epoch}, batch: {batch}, loss: {loss:.5f},{measured} "
        f"speed: {speed:.2f} step/s"
    )


class Speedometer:
    """Steps a second since the last reading, without the time spent in `paused()`."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._steps = 0

    def step(self) -> None:
        """Count one step."""
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time out: an evaluation, a save."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> float:
        """Steps a second since the last reading; starts the next interval."""
        now = time.perf_counter()
        speed = self._steps / max(now - self._since, 1e-9)
        self._since, self._steps = now, 0
        return speed
