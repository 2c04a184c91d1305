import json
import math

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from bertorch.config import SCHEDULERS
from bertorch.training.optimization import SchedulerState, build_optimizer, build_scheduler
from bertorch.training.state import State
from tests.architectures import small_classifier

TOTAL, WARMUP, PEAK = 10, 3, 0.1


def factor(name: str, step: int) -> float:
    """The published schedules, written out; the factor on the peak rate in optimisation step `step` from 0."""
    if name == "constant":
        return 1.0
    if step < WARMUP:
        return step / WARMUP
    done = (step - WARMUP) / (TOTAL - WARMUP)
    return {
        "constant_with_warmup": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "cosine_with_restarts": 0.5 * (1 + math.cos(math.pi * done)),  # one cycle
        "polynomial": (PEAK - 1e-7) / PEAK * (1 - done) + 1e-7 / PEAK,  # power 1, down to 1e-7
    }[name]


def rates_of(optimizer, scheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rate_of_every_step(name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = build_scheduler(name, optimizer, warmup_proportion=0.25, total_steps=TOTAL)  # 2.5 steps: 3
    rates = rates_of(optimizer, scheduler, TOTAL)
    assert rates == pytest.approx([PEAK * factor(name, step) for step in range(TOTAL)])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_warm_up_that_changes_nothing_is_told(name, log_lines):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    build_scheduler(name, optimizer, warmup_proportion=0.0, total_steps=TOTAL)
    assert not log_lines
    build_scheduler(name, optimizer, warmup_proportion=0.25, total_steps=TOTAL)
    assert [line.split(":")[0] for line in log_lines] == (
        ["--scheduler constant has no warm-up"] if name == "constant" else []
    )


@pytest.mark.parametrize("proportion", [0.0, 0.1, 0.3, 0.95])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rates_are_those_of_transformers_bit_for_bit(name, proportion):
    ours, theirs = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-5) for _ in range(2))
    scheduler = build_scheduler(name, ours, warmup_proportion=proportion, total_steps=37)
    expected = get_scheduler(name, theirs, num_warmup_steps=math.ceil(37 * proportion), num_training_steps=37)
    assert rates_of(ours, scheduler, 37) == rates_of(theirs, expected, 37)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("peak", [0.0, 1e-8, 1e-7, 1.0])
@pytest.mark.parametrize("proportion", [0.0, 1.0])
def test_no_rate_is_above_the_peak_or_not_a_number(name, peak, proportion):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = build_scheduler(name, optimizer, warmup_proportion=proportion, total_steps=5)
    rates = rates_of(optimizer, scheduler, 6)
    assert all(0 <= rate <= peak for rate in rates)
    if proportion == 1 and name != "constant":
        assert rates[:5] == pytest.approx([peak * step / 5 for step in range(5)])


def test_a_checkpoint_goes_on_with_the_warm_up_of_its_record():
    """The earlier rounding, down, left no trace in the state of the scheduler; ours names the steps."""

    def built():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
        return optimizer, build_scheduler("linear", optimizer, warmup_proportion=0.25, total_steps=TOTAL)

    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    earlier = get_scheduler("linear", reference, num_warmup_steps=2, num_training_steps=TOTAL)
    rates_of(reference, earlier, 1)
    for scheduler, its_optimizer, warmup in ((earlier, reference, 2), (built()[1], None, 3)):
        saved = json.loads(json.dumps(scheduler.state_dict()))
        optimizer, ours = built()
        SchedulerState(ours).restore(State({}, saved))
        assert [schedule.warmup_steps for schedule in ours.lr_lambdas] == [warmup]
        if its_optimizer is not None:
            optimizer.param_groups[0]["lr"] = its_optimizer.param_groups[0]["lr"]  # another part of the checkpoint
            assert rates_of(optimizer, ours, 9) == rates_of(its_optimizer, scheduler, 9)


def test_biases_and_layer_norm_do_not_decay():
    model = small_classifier("bert")
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.01)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        exempt = name.endswith("bias") or "LayerNorm" in name
        assert decays[id(parameter)] == (0.0 if exempt else 0.01), name


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = build_optimizer(model, learning_rate=1e-3, weight_decay=0.0).param_groups
    assert [group["params"] for group in groups] == [[model.weight]]


def test_steps_are_those_of_adamw_by_hand():
    """Loshchilov and Hutter, 2019, algorithm 2, with bias correction; betas 0.9 and 0.999, eps 1e-6."""
    rate, decay = 0.01, 0.1
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    model.weight.data.fill_(0.5)
    optimizer = build_optimizer(model, learning_rate=rate, weight_decay=decay)
    weight, first, second = 0.5, 0.0, 0.0
    for step, gradient in enumerate([0.3, -1.2, 0.01], start=1):
        model.weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        update = (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-6)
        weight = weight * (1 - rate * decay) - rate * update
        assert model.weight.item() == pytest.approx(weight, rel=1e-12)
