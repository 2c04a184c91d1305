"""Where tricks enter a training step: around the forward pass, before and after the update, around an evaluation.

A trick is a subclass of `Hook` in a file of its own. A point that no hook uses costs nothing. Clipping and the checks
for gradients that are not finite, or that come late, are hooks themselves.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.data.schedule import ScheduledStep
from bertorch.errors import UserError
from bertorch.tasks.base import Losses
from bertorch.training.state import State


class Hook:
    """A trick that does nothing yet.

    Attributes:
        capturable: whether its work may be part of a CUDA graph. It then does the same at every step on static memory:
            it changes parameters in place, never waits for the device, and takes no decision on the host.
        reports: names of scalars that `before_update` returns, for `inspect` and `metrics.jsonl`.
    """

    capturable = True
    reports: tuple[str, ...] = ()

    def around_loss(self, compute: Callable[[], Losses], batch: PackedBatch) -> Losses:
        """Around the forward pass of a batch, such as to run it twice and compare; `compute` gives its losses."""
        return compute()

    def around_backward(self, compute: Callable[[], Losses], batch: PackedBatch) -> Losses:
        """Around forward and backward of a batch, such as to run both again on changed weights.

        `compute` adds to the gradients and gives the losses that it did so with.
        """
        return compute()

    def before_update(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> Mapping[str, Tensor]:
        """Between the reduced gradient and the update.

        Args:
            parameters: those that the update changes, with the gradients of the whole step, not scaled.
            norm: scalar, the global norm of these gradients.

        Returns:
            A scalar for each name of `reports`, the same on every process.
        """
        return {}

    def after_update(self) -> None:
        """After the optimiser's step, unless fp16 overflowed."""

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Around an evaluation and a save of the weights for use: the model has the weights that these should see."""
        return nullcontext()

    def inspect(self, step: ScheduledStep, numbers: Mapping[str, float], rate: float) -> None:
        """Look at a step's losses and reports, once they are on the host, on every process; may be some steps later.

        Args:
            step: the one that was taken.
            numbers: means over the labels of the step and all processes, and reports.
            rate: its learning rate.
        """

    def state(self) -> State:
        """What a checkpoint holds of it; a hook with a state is one of the parts of `bertorch.training.state`."""
        return State({})

    def restore(self, state: State) -> None:
        """Go back to a saved state."""


def using(hooks: Sequence[Hook], point: str) -> list[Hook]:
    """The hooks that do something at a point, a method of `Hook`."""
    return [hook for hook in hooks if getattr(type(hook), point) is not getattr(Hook, point)]


class ClipGradients(Hook):
    """Scales the gradient to a global norm of at most `max_norm`."""

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    def before_update(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> Mapping[str, Tensor]:
        """Scale it."""
        nn.utils.clip_grads_with_norm_(parameters, self._max_norm, norm)
        return {}


class StopIfNotFinite(Hook):
    """Ends a run whose loss or gradient is not finite, before anything of it is saved.

    Args:
        saved_dir: for the error.
    """

    reports = ("gradient_norm",)

    def __init__(self, saved_dir: str) -> None:
        self._saved_dir = saved_dir

    def before_update(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> Mapping[str, Tensor]:
        """Report the norm."""
        return {"gradient_norm": norm}

    def inspect(self, step: ScheduledStep, numbers: Mapping[str, float], rate: float) -> None:
        """Check loss and norm.

        Raises:
            UserError: one of them is not finite; on every process.
        """
        loss, norm = numbers["loss"], numbers["gradient_norm"]
        if not math.isfinite(loss + norm):
            raise UserError(
                f"step {step.number} (epoch {step.epoch}, batch {step.last_batch}), learning rate {rate:g}: expected "
                f"a finite loss and gradient, got loss {loss} and a gradient of norm {norm}. The last save in "
                f"{self._saved_dir} is from before it; lower --learning_rate, raise --warmup_proportion, or with "
                "--precision fp16 take bf16 or fp32"
            )


class UsedParameters(Hook):
    """Which parameters the loss depends on, the same on every process: only these are reduced and updated.

    A process without an example in a step has no gradients at all. So the processes agree in the first step; a
    parameter that gets its first gradient later joins the others on a single process, and ends a run of several.

    Args:
        named: the parameters that take gradients, by name.
    """

    reports = ("late_gradients",)

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self._named = named
        self._used: list[nn.Parameter] | None = None
        self._unused: dict[str, nn.Parameter] = {}
        self._late: dict[str, nn.Parameter] = {}

    def select(self) -> list[nn.Parameter]:
        """The parameters in use, after the backward pass; every process must call it at each step."""
        if self._used is None:
            self._agree()
        assert self._used is not None
        late = {name: parameter for name, parameter in self._unused.items() if parameter.grad is not None}
        if late and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"the first gradient of {', '.join(late)} came in a capture"
            )  # the step then runs eagerly
        if late and distributed.world_size() == 1:
            self._used += late.values()
            self._unused = {name: each for name, each in self._unused.items() if name not in late}
        elif late:  # the others don't know yet: they must not differ until `inspect` ends the run
            self._late |= late
            for parameter in late.values():
                parameter.grad = None
        return self._used

    def before_update(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> Mapping[str, Tensor]:
        """Report how many gradients came late on this process."""
        return {"late_gradients": norm.new_tensor(len(self._late)) if self._late else torch.zeros_like(norm)}

    def inspect(self, step: ScheduledStep, numbers: Mapping[str, float], rate: float) -> None:
        """Check that none came late.

        Raises:
            UserError: one did; on every process, with its name.
        """
        if not numbers["late_gradients"]:
            return
        flags = torch.tensor([name in self._late for name in self._named], device=distributed.device()).int()
        late = [
            name for name, flag in zip(self._named, distributed.all_reduce_sum(flags).tolist(), strict=True) if flag
        ]
        raise UserError(
            f"step {step.number}: expected every parameter to get a gradient in the first step or in none, since "
            f"several processes agree on them there, got the first gradient later for {', '.join(late)}; train on one "
            "process, or freeze these parameters"
        )

    def _agree(self) -> None:
        flags = torch.tensor([each.grad is not None for each in self._named.values()], dtype=torch.int32)
        device = next(iter(self._named.values())).device
        uses = distributed.all_reduce_sum(flags.to(device)).tolist()
        self._used = [each for each, flag in zip(self._named.values(), uses, strict=True) if flag]
        self._unused = {name: each for (name, each), flag in zip(self._named.items(), uses, strict=True) if not flag}
