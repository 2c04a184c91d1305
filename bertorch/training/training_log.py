"""The training line, and the watch over the loss."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from loguru import logger
from torch import Tensor

from bertorch import distributed, log
from bertorch.data.schedule import ScheduledStep
from bertorch.errors import UserError
from bertorch.training.memory import peak_memory


class _Done(NamedTuple):
    """A step that was taken, not looked at yet."""

    sums: Tensor  # (3,)
    tokens: int
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
        record: takes the numbers of a line beside it, see `bertorch.training.metrics_file`.
    """

    def __init__(
        self,
        logging_steps: int,
        *,
        with_accuracy: bool,
        saved_dir: str,
        record: Callable[[ScheduledStep, Mapping[str, float]], None],
    ) -> None:
        self._logging_steps = logging_steps
        self._with_accuracy = with_accuracy
        self._saved_dir = saved_dir
        self._record = record
        self._pending: list[_Done] = []
        self._steps = self._tokens = 0  # since the last line
        self._overflows = 0
        self.speedometer = log.Speedometer()

    def step(
        self,
        sums: Tensor,
        step: ScheduledStep,
        *,
        labels: int,
        tokens: int,
        rates: Mapping[str, float],
        overflows: int,
    ) -> None:
        """Count a step.

        Args:
            sums: (3,) this process's part of the loss, the count of right predictions, the gradient's norm.
            step: which one it was.
            labels: of the step over all processes.
            tokens: of this process's batches.
            rates: its learning rate, `rate`, and others by name.
            overflows: steps so far that were left out because fp16 overflowed.

        Raises:
            UserError: as `check`.
        """
        self.speedometer.step()
        self._steps += 1
        self._pending.append(_Done(sums, tokens, step, rates["rate"]))
        if step.number % self._logging_steps == 0:
            loss, correct = self.check()
            accuracy = correct / labels if self._with_accuracy else None
            self._tell(step, loss, accuracy, rates)
            if overflows > self._overflows:
                logger.warning("fp16 overflowed: steps left out so far: {}", overflows)
                self._overflows = overflows

    def _tell(self, step: ScheduledStep, loss: float, accuracy: float | None, rates: Mapping[str, float]) -> None:
        """Write the line, and its numbers."""
        speed = self.speedometer.read()
        line = log.training_line(
            global_step=step.number,
            epoch=step.epoch,
            batch=step.last_batch,
            loss=loss,
            accuracy=accuracy,
            speed=speed,
        )
        logger.info(line)
        numbers = {"loss": loss} | ({} if accuracy is None else {"accuracy": accuracy}) | dict(rates)
        numbers |= {"speed": speed, "tokens_per_second": speed * self._tokens / self._steps}
        self._record(step, numbers | {"memory": peak_memory(distributed.device())})
        self._steps = self._tokens = 0

    def check(self) -> tuple[float, float]:
        """Look at the steps since the last look; returns loss and count of right predictions of the last step.

        Raises:
            UserError: a loss or a gradient was not finite; on every process.
        """
        if not self._pending:
            return math.nan, math.nan
        sums = torch.stack([done.sums for done in self._pending])  # (steps, 3)
        counts = sums.new_tensor([[done.tokens] for done in self._pending])  # (steps, 1)
        numbers = distributed.all_reduce_sum(torch.cat([sums, counts], dim=1)).tolist()
        for done, (loss, _, norm, _) in zip(self._pending, numbers, strict=True):
            if not math.isfinite(loss + norm):
                raise UserError(
                    f"step {done.step.number} (epoch {done.step.epoch}, batch {done.step.last_batch}), learning rate "
                    f"{done.rate:g}: expected a finite loss and gradient, got loss {loss} and a gradient of norm "
                    f"{norm}. The last save in {self._saved_dir} is from before it; lower --learning_rate, raise "
                    "--warmup_proportion, or with --precision fp16 take bf16 or fp32"
                )
        self._pending.clear()
        self._tokens += int(sum(tokens for *_, tokens in numbers))
        return numbers[-1][0], numbers[-1][1]
