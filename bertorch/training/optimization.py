"""AdamW with its parameter groups, and the learning-rate schedules of transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from typing_extensions import override

from bertorch.training.state import State, Stateful

BETAS = (0.9, 0.999)
EPSILON = 1e-6


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    head_parameters: Sequence[nn.Parameter] = (),
    head_learning_rate: float | None = None,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) with decoupled decay on matrices only.

    Vectors, which in these models are the biases and the weights of normalisation layers, do not decay.

    Args:
        model: its parameters that take gradients are optimised.
        learning_rate: peak rate, reached after the warm-up.
        weight_decay: decay per step, times the rate.
        head_parameters: those of the model with the peak rate `head_learning_rate`, None for `learning_rate`.
    """
    head = set(head_parameters)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = []
    for in_head, rate in ((False, learning_rate), (True, head_learning_rate)):
        for is_matrix, decay in ((True, weight_decay), (False, 0.0)):
            parameters = [p for p in trained if (p in head) == in_head and (p.ndim >= 2) == is_matrix]
            groups.append({"params": parameters, "weight_decay": decay, "lr": learning_rate if rate is None else rate})
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, betas=BETAS, eps=EPSILON, fused=True
    )


def build_scheduler(name: str, optimizer: Optimizer, *, warmup_proportion: float, total_steps: int) -> LRScheduler:
    """The schedule `name` of `bertorch.config.SCHEDULERS`; the rates in the optimizer are the peak rates.

    The warm-up is linear from 0; its share of `total_steps` is rounded down to whole steps.
    """
    warmup_steps = int(warmup_proportion * total_steps)
    return get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)


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
