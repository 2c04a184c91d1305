import math

import numpy as np
import pytest
import torch

from bertorch import log
from bertorch.data.schedule import ScheduledStep
from bertorch.errors import UserError
from bertorch.training.hooks import StopIfNotFinite
from bertorch.training.training_log import TrainingLog


def scheduled(number: int) -> ScheduledStep:
    return ScheduledStep(number, epoch=2, last_batch=number - 10, batches=[np.arange(4)])


def training_log(logging_steps: int, *, with_accuracy: bool = False, records: list | None = None) -> TrainingLog:
    def record(step, numbers) -> None:
        if records is not None:
            records.append((step.number, numbers))

    parts = ("loss", "accuracy") if with_accuracy else ("loss",)
    hooks, reports = [StopIfNotFinite("the/folder")], (*parts, "gradient_norm")
    return TrainingLog(logging_steps, loss_parts=parts, reports=reports, hooks=hooks, record=record)


def take(log: TrainingLog, number: int, loss: float = 0.5, norm: float = 1.0, *, overflows: int = 0, tokens=30) -> None:
    parts = [loss, 0.75] if len(log._reports) == 3 else [loss]
    rates = {"rate": 5e-5, "head_rate": number / 1000}
    reported = torch.tensor([*parts, norm], dtype=torch.float64)
    log.step(reported, scheduled(number), tokens=tokens, rates=rates, overflows=overflows)


def test_a_line_every_so_many_steps_with_the_numbers_of_that_step(log_lines):
    log = training_log(2, with_accuracy=True)
    for number, loss in ((11, 0.1), (12, 0.2), (13, 0.3), (14, 0.4)):
        take(log, number, loss)
    assert [line.split(", speed")[0] for line in log_lines] == [
        "global step: 12, epoch: 2, batch: 2, loss: 0.20000, accuracy: 0.75000",
        "global step: 14, epoch: 2, batch: 4, loss: 0.40000, accuracy: 0.75000",
    ]


def test_each_line_is_recorded_with_rates_speed_and_memory(monkeypatch):
    """Also where a look at the steps came between two lines, as before a save."""
    monkeypatch.setattr(log.Speedometer, "read", lambda self: 2.5)
    records: list = []
    training = training_log(3, with_accuracy=True, records=records)
    for number, tokens in ((13, 10), (14, 20), (15, 60), (16, 8), (17, 4), (18, 3)):
        take(training, number, number / 10, tokens=tokens)
        if number in (13, 16, 17):
            training.check()
    assert [number for number, _ in records] == [15, 18]
    memory = [numbers.pop("memory") for _, numbers in records]
    assert 2**20 < memory[0] <= memory[1]
    assert [numbers for _, numbers in records] == [
        {"loss": 1.5, "accuracy": 0.75, "rate": 5e-5, "head_rate": 0.015, "speed": 2.5, "tokens_per_second": 2.5 * 30},
        {"loss": 1.8, "accuracy": 0.75, "rate": 5e-5, "head_rate": 0.018, "speed": 2.5, "tokens_per_second": 2.5 * 5},
    ]


def test_numbers_stay_on_the_device_until_a_line_is_due(monkeypatch):
    reads = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(self.shape) or [[0.0] * 3] * len(self))
    records: list = []
    training = training_log(4, records=records)
    for number in range(11, 20):
        take(training, number)
    assert reads == [(2, 3), (4, 3)]  # after steps 12 and 16
    assert [number for number, _ in records] == [12, 16]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.5, math.nan), (0.5, math.inf)])
def test_the_first_step_that_is_not_finite_is_named(loss, norm):
    log = training_log(100)
    take(log, 11)
    take(log, 12, loss, norm)
    take(log, 13, math.nan, math.nan)
    expected = (
        rf"step 12 \(epoch 2, batch 2\), learning rate 5e-05: expected a finite loss and gradient, got loss {loss} and "
        rf"a gradient of norm {norm}. The last save in the/folder is from before it"
    )
    with pytest.raises(UserError, match=expected):
        log.check()


def test_a_check_without_steps_since_the_last():
    log = training_log(2)
    take(log, 11)
    assert log.check() == {"loss": 0.5, "gradient_norm": 1.0}
    log.check()


def test_overflows_of_fp16_are_told_when_there_are_more(log_lines):
    log = training_log(1)
    for number, overflows in ((11, 0), (12, 2), (13, 2), (14, 3)):
        take(log, number, overflows=overflows)
    told = [line for line in log_lines if "overflow" in line]
    assert told == [f"fp16 overflowed: steps skipped so far: {count}" for count in (2, 3)]
