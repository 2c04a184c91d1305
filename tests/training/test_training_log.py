import math

import numpy as np
import pytest
import torch

from bertorch.data.batching import ScheduledStep
from bertorch.errors import UserError
from bertorch.training.training_log import TrainingLog


def scheduled(number: int) -> ScheduledStep:
    return ScheduledStep(number, epoch=2, last_batch=number - 10, batches=[np.arange(4)])


def take(log: TrainingLog, number: int, loss: float = 0.5, norm: float = 1.0, overflows: int = 0) -> None:
    sums = torch.tensor([loss, 3.0, norm], dtype=torch.float64)
    log.step(sums, 4, scheduled(number), rate=5e-5, overflows=overflows)


def test_a_line_every_so_many_steps_with_the_numbers_of_that_step(log_lines):
    log = TrainingLog(2, with_accuracy=True, saved_dir="s")
    for number, loss in ((11, 0.1), (12, 0.2), (13, 0.3), (14, 0.4)):
        take(log, number, loss)
    assert [line.split(", speed")[0] for line in log_lines] == [
        "global step: 12, epoch: 2, batch: 2, loss: 0.20000, accuracy: 0.75000",
        "global step: 14, epoch: 2, batch: 4, loss: 0.40000, accuracy: 0.75000",
    ]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.5, math.nan), (0.5, math.inf)])
def test_the_first_step_that_is_not_finite_is_named(loss, norm):
    log = TrainingLog(100, with_accuracy=False, saved_dir="the/folder")
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
    log = TrainingLog(2, with_accuracy=False, saved_dir="s")
    take(log, 11)
    assert log.check() == (0.5, 3.0)
    log.check()


def test_overflows_of_fp16_are_told_when_there_are_more(log_lines):
    log = TrainingLog(1, with_accuracy=False, saved_dir="s")
    for number, overflows in ((11, 0), (12, 2), (13, 2), (14, 3)):
        take(log, number, overflows=overflows)
    told = [line for line in log_lines if "overflow" in line]
    assert told == [f"fp16 overflowed: steps left out so far: {count}" for count in (2, 3)]
