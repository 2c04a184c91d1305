"""The training line, and the watch over the loss."""

import math
from typing import NamedTuple

import torch
from loguru import logger
from torch import Tensor

from bertorch import distributed, log
from bertorch.data.batching import ScheduledStep
from bertorch.errors import UserError


class _Done(NamedTuple):
    """A step that was taken, not looked at yet."""

    sums: Tensor  # (3,)
    labels: int
    step: ScheduledStep
    rate: float


class TrainingLog:
    """Writes the training line every so many steps, and stops a run whose loss or gradient is not finite.

    The numbers of a step stay on the device until a line is due or `check` is called, so that other steps wait for
    nothing.

    Args:
        logging_steps: a line every so many steps.
        with_accuracy: whether the line has an accuracy.
        saved_dir: for the error.
    """

    def __init__(self, logging_steps: int, *, with_accuracy: bool, saved_dir: str) -> None:
        self._logging_steps = logging_steps
        self._with_accuracy = with_accuracy
        self._saved_dir = saved_dir
        self._pending: list[_Done] = []
        self._overflows = 0
        self.speedometer = log.Speedometer()

    def step(self, sums: Tensor, labels: int, step: ScheduledStep, *, rate: float, overflows: int) -> None:
        """Count a step.

        Args:
            sums: (3,) this process's part of the loss, the count of right predictions, the gradient's norm.
            labels: labels of the step over all processes.
            step: which one it was.
            rate: its learning rate.
            overflows: steps so far that were left out because fp16 overflowed.

        Raises:
            UserError: as `check`.
        """
        self.speedometer.step()
        self._pending.append(_Done(sums, labels, step, rate))
        if step.number % self._logging_steps == 0:
            loss, correct = self.check()
            line = log.training_line(
                global_step=step.number,
                epoch=step.epoch,
                batch=step.last_batch,
                loss=loss,
                accuracy=correct / labels if self._with_accuracy else None,
                speed=self.speedometer.read(),
            )
            logger.info(line)
            if overflows > self._overflows:
                logger.warning("fp16 overflowed: steps left out so far: {}", overflows)
                self._overflows = overflows

    def check(self) -> tuple[float, float]:
        """Look at the steps since the last look; returns loss and count of right predictions of the last step.

        Raises:
            UserError: a loss or a gradient was not finite; on every process.
        """
        if not self._pending:
            return math.nan, math.nan
        sums = distributed.all_reduce_sum(torch.stack([done.sums for done in self._pending])).tolist()  # (steps, 3)
        for done, (loss, _, norm) in zip(self._pending, sums, strict=True):
            if not math.isfinite(loss + norm):
                raise UserError(
                    f"step {done.step.number} (epoch {done.step.epoch}, batch {done.step.last_batch}), learning rate "
                    f"{done.rate:g}: expected a finite loss and gradient, got loss {loss} and a gradient of norm "
                    f"{norm}. The last save in {self._saved_dir} is from before it; lower --learning_rate, raise "
                    "--warmup_proportion, or with --precision fp16 take bf16 or fp32"
                )
        self._pending.clear()
        return sums[-1][0], sums[-1][1]
