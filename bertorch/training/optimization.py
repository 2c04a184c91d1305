"""AdamW with its parameter groups, and the learning-rate schedules, which are those of transformers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from loguru import logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from bertorch.training.state import State, Stateful

BETAS = (0.9, 0.999)
EPSILON = 1e-6
_LAST_RATE = 1e-7  # of the polynomial schedule; a lower peak rate stays as it is


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    head_parameters: Sequence[nn.Parameter] = (),
    head_learning_rate: float | None = None,
    rate_factors: Mapping[nn.Parameter, float] | None = None,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) with decoupled decay on matrices only.

    Vectors, which in these models are the biases and the weights of normalisation layers, do not decay.

    Args:
        model: its parameters that take gradients are optimised.
        learning_rate: peak rate, reached after the warm-up.
        weight_decay: decay per step, times the rate.
        head_parameters: those of the model with the peak rate `head_learning_rate`, None for `learning_rate`.
        rate_factors: on the peak rate of parameters that are not of the head; others have 1. A group keeps its own as
            `rate_factor`, and the largest come first, those of the head last.
    """
    head, factors = set(head_parameters), rate_factors or {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = []
    for in_head, rate in ((False, learning_rate), (True, head_learning_rate)):
        of_part = {p: 1.0 if in_head else factors.get(p, 1.0) for p in trained if (p in head) == in_head}
        peak = learning_rate if rate is None else rate
        for factor in sorted(set(of_part.values()), reverse=True):
            for is_matrix, decay in ((True, weight_decay), (False, 0.0)):
                parameters = [p for p, own in of_part.items() if own == factor and (p.ndim >= 2) == is_matrix]
                group = {"params": parameters, "weight_decay": decay, "lr": peak * factor, "rate_factor": factor}
                groups.append(group)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, betas=BETAS, eps=EPSILON, fused=True
    )


@dataclass
class Schedule:
    """The factor on the peak rate by step, from 0: the schedule `name` of `bertorch.config.SCHEDULERS`.

    The warm-up is linear from 0; its share `warmup_proportion` of all steps is rounded up to whole steps. `LambdaLR`
    keeps the attributes in its state.
    """

    name: str
    warmup_proportion: float
    total_steps: int
    peak: float
    warmup_steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.warmup_steps = math.ceil(self.warmup_proportion * self.total_steps)

    def __call__(self, step: int) -> float:
        """The factor of the step after `step` steps."""
        if step < self.warmup_steps and self.name != "constant":
            return step / self.warmup_steps
        steps = max(1, self.total_steps - self.warmup_steps)
        done = (step - self.warmup_steps) / steps
        if self.name == "linear":
            return max(0.0, (self.total_steps - step) / steps)
        if self.name == "polynomial" and self.peak > _LAST_RATE:  # of power 1
            return ((self.peak - _LAST_RATE) * (1 - done) + _LAST_RATE) / self.peak
        if self.name.startswith("cosine"):  # restarts would begin after the first cycle, which is all steps
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0


def build_scheduler(name: str, optimizer: Optimizer, *, warmup_proportion: float, total_steps: int) -> LambdaLR:
    """The scheduler of a `Schedule`; the rates in the optimizer are the peak rates."""
    if name == "constant" and warmup_proportion:
        logger.warning(
            "--scheduler constant has no warm-up: --warmup_proportion {:g} is ignored; see constant_with_warmup",
            warmup_proportion,
        )
    return LambdaLR(optimizer, Schedule(name, warmup_proportion, total_steps, optimizer.defaults["lr"]))


@dataclass(frozen=True)
class SchedulerState(Stateful):
    """A scheduler of `build_scheduler`, a part of a checkpoint, with the number of its warm-up steps."""

    scheduler: LambdaLR

    @override
    def state(self) -> State:
        return State({}, self.scheduler.state_dict())

    @override
    def restore(self, state: State) -> None:
        self.scheduler.load_state_dict(dict(state.values))
        if not any(state.values["lr_lambdas"]):  # of a version that rounded the warm-up down, and kept no number
            for schedule in (each for each in self.scheduler.lr_lambdas if isinstance(each, Schedule)):
                schedule.warmup_steps = int(schedule.warmup_proportion * schedule.total_steps)


@dataclass(frozen=True)
class OptimizerState(Stateful):
    """The optimiser's tensors, named `parameter.key`, and the rates of its groups; a part of a checkpoint."""

    optimizer: Optimizer
    named: Mapping[str, nn.Parameter]

    @override
    def state(self) -> State:
        tensors = {
            f"{name}.{key}": tensor
            for name, parameter in self.named.items()
            for key, tensor in self.optimizer.state[parameter].items()
        }
        return State(tensors, {"rates": [group["lr"] for group in self.optimizer.param_groups]})

    @override
    def restore(self, state: State) -> None:
        for name, tensor in state.tensors.items():
            parameter_name, _, key = name.rpartition(".")
            parameter = self.named[parameter_name]
            self.optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
        for group, rate in zip(self.optimizer.param_groups, state.values["rates"], strict=True):
            group["lr"] = rate
