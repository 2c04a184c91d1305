"""The training line and its numbers, and the hooks' inspection of each step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from loguru import logger
from torch import Tensor

from bertorch import distributed, log
from bertorch.data.schedule import ScheduledStep
from bertorch.training.cores import CoreWatch
from bertorch.training.hooks import Hook, using
from bertorch.training.memory import peak_memory


class _Pending(NamedTuple):
    """A step whose numbers are still on the device."""

    reported: Tensor  # (reports,)
    tokens: int
    step: ScheduledStep
    rate: float


class TrainingLog:
    """Writes the training line every `logging_steps`, and lets the hooks inspect each step.

    The numbers of a step stay on the device until a line is due or `check` is called: other steps do not synchronise.

    Args:
        logging_steps, loss_parts, hooks: of the run; a line has the loss parts in order.
        reports: the names of what a step reports, `loss_parts` first.
        record: takes the numbers of a line, see `bertorch.training.metrics_file`.
    """

    def __init__(
        self,
        logging_steps: int,
        *,
        loss_parts: Sequence[str],
        reports: Sequence[str],
        hooks: Sequence[Hook],
        record: Callable[[ScheduledStep, Mapping[str, float]], None],
    ) -> None:
        self._logging_steps = logging_steps
        self._loss_parts, self._reports = loss_parts, reports
        self._inspecting = using(hooks, "inspect")
        self._record = record
        self._pending: list[_Pending] = []
        self._steps = self._tokens = 0  # since the last line
        self._overflows = 0
        self._cores = CoreWatch()
        self.speedometer = log.Speedometer()

    def step(
        self, reported: Tensor, step: ScheduledStep, *, tokens: int, rates: Mapping[str, float], overflows: int
    ) -> None:
        """Count a step; at each `logging_steps`, `check` and write a line.

        Args:
            reported: (reports,) this process's part of each.
            step: the one that was taken.
            tokens: of this process's batches.
            rates: learning rates of the step by name, that of the model first.
            overflows: steps skipped so far because fp16 overflowed.
        """
        self.speedometer.step()
        self._steps += 1
        self._pending.append(_Pending(reported, tokens, step, next(iter(rates.values()))))
        if step.number % self._logging_steps == 0:
            self._write(step, self.check(), rates)
            if overflows > self._overflows:
                logger.warning("fp16 overflowed: steps skipped so far: {}", overflows)
                self._overflows = overflows

    def _write(self, step: ScheduledStep, numbers: Mapping[str, float], rates: Mapping[str, float]) -> None:
        speed = self.speedometer.read()
        losses = {name: numbers[name] for name in self._loss_parts}
        logger.info(log.training_line(step.number, step.epoch, step.last_batch, losses, speed))
        speeds = {"speed": speed, "tokens_per_second": speed * self._tokens / self._steps}
        self._record(step, {**losses, **rates, **speeds, "memory": peak_memory(distributed.device())})
        self._steps = self._tokens = 0
        self._cores.look()

    def check(self) -> Mapping[str, float]:
        """Let the hooks inspect the steps since the last check; returns the numbers of the last step, NaN without one.

        Raises:
            UserError: a hook ends the run, on every process.
        """
        numbers: dict[str, float] = dict.fromkeys(self._reports, math.nan)
        if not self._pending:
            return numbers
        reported = torch.stack([done.reported for done in self._pending])  # (steps, reports)
        tokens = torch.tensor([[done.tokens] for done in self._pending], dtype=torch.float64)  # (steps, 1)
        rows = distributed.all_reduce_sum(torch.cat([reported, tokens.to(reported.device)], dim=1)).tolist()
        for done, row in zip(self._pending, rows, strict=True):
            numbers = dict(zip(self._reports, row[:-1], strict=True))
            for hook in self._inspecting:
                hook.inspect(done.step, numbers, done.rate)
            self._tokens += int(row[-1])
        self._pending.clear()
        return numbers
