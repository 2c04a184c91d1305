"""An exponential moving average of the weights, `--ema_decay`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from typing_extensions import override

from bertorch.training.hooks import Hook
from bertorch.training.state import State


class AverageWeights(Hook):
    """Averages the weights over the steps; evaluated, chosen by the dev metric and saved for use is the average.

    θ̄ ← d·θ̄ + (1−d)·θ after the t-th update, with d = min(decay, (1+t)/(10+t)), so that the weights at the start, where
    θ̄ begins, are soon forgotten. A step that fp16 leaves out is no update. Averaged are the parameters that are
    trained. Buffers are as they are in the model: those of these encoders are constants, such as position ids.

    References:
        Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992. The decay that grows is that
        of `tf.train.ExponentialMovingAverage` with `num_updates`.

    Args:
        model: whose parameters that take gradients are averaged, from their values now.
        decay: between 0 and 1.
    """

    capturable = True

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._averages = {name: parameter.detach().clone() for name, parameter in self._named.items()}
        self._decay = decay
        # t, () fp64: on the device, so that a replay of a CUDA graph counts too.
        self._updates = torch.zeros((), dtype=torch.float64, device=next(iter(self._named.values())).device)

    @override
    @torch.no_grad()
    def after_update(self) -> None:
        self._updates += 1
        weight = 1 - ((1 + self._updates) / (10 + self._updates)).clamp(max=self._decay)  # (), 1 − d
        for name, average in self._averages.items():
            average.lerp_(self._named[name], weight.to(average.dtype))

    @override
    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @override
    def state(self) -> State:
        return State({"updates": self._updates, **{f"average.{name}": each for name, each in self._averages.items()}})

    @override
    def restore(self, state: State) -> None:
        self._updates.copy_(state.tensors["updates"])
        for name, average in self._averages.items():
            average.copy_(state.tensors[f"average.{name}"])

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange weights and averages in place, with no more memory than that of the largest parameter."""
        for name, average in self._averages.items():
            parameter = self._named[name]
            before = parameter.clone()
            parameter.copy_(average)
            average.copy_(before)
