"""Where techniques enter a training step: around the forward pass, before and after the update, around an evaluation.

A technique is a subclass of `Hook` in a file of its own. A point that no hook uses costs nothing. Clipping and the
checks for gradients that are not finite, or that come late, are hooks themselves.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from typing_extensions import override

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.data.schedule import ScheduledStep
from bertorch.errors import UserError
from bertorch.tasks.base import Losses
from bertorch.training.state import State


class Hook:
    """A technique that does nothing yet."""

    # Whether its work may be part of a CUDA graph. It then does the same at every step on static memory: it changes
    # parameters in place, never waits for the device, and takes no decision on the host.
    capturable = False
    # Names of the scalars that `before_update` returns, for `inspect`.
    reports: tuple[str, ...] = ()

    def prepared(self, batch: PackedBatch) -> PackedBatch:
        """Another batch in the place of a training batch, such as with each example twice; any thread may call it.

        It must have the same label count and weight of the loss, see `OptimizationStep`.
        """
        return batch

    def mixed(self, losses: Losses, outputs: Tensor, batch: PackedBatch, weight: float | Tensor) -> Losses:
        """Other parts of the loss of a batch in the place of those that the task gives, such as with one more term.

        Args:
            losses: see `Losses`.
            outputs: of the task, to compute a term from.
            batch: on the device.
            weight: what a label of the step weighs in the mean of `loss`, on average: a sum over labels is multiplied
                by it before it is added, so that its mean is one over all labels of the step.
        """
        return losses

    def around_loss(self, compute: Callable[[], Losses], batch: PackedBatch) -> Losses:
        """Around the forward pass of a batch, such as to run it twice and compare; `compute` returns its losses."""
        return compute()

    def around_backward(self, compute: Callable[[], Losses], batch: PackedBatch) -> Losses:
        """Around forward and backward of a batch, such as to run both again on changed weights.

        `compute` returns the losses of a forward pass, and adds their gradients to those of the parameters.
        """
        return compute()

    def around_gradients(self, compute: Callable[[], Tensor], batches: Sequence[PackedBatch]) -> Tensor:
        """Around forward and backward of all the step's batches, such as to run them again on changed weights.

        `compute` adds this process's gradients, in fp16 scaled, to those of the parameters, and returns the sums of
        the losses, (loss_parts,). The gradients are summed over the processes afterwards; a hook that needs such a
        sum before takes it itself, on every process, also on one without a batch.
        """
        return compute()

    def before_update(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> Mapping[str, Tensor]:
        """Between the reduced gradient and the update.

        Args:
            parameters: those that the update changes, with the gradients of the whole step, not scaled.
            norm: scalar, the global norm of these gradients.

        Returns:
            A scalar for each name of `reports`; `inspect` gets its mean over the processes.
        """
        return {}

    def after_update(self) -> None:
        """After the optimiser's step, unless fp16 overflowed."""

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Around an evaluation and a save of the weights for use, such as to put averaged weights into the model."""
        return nullcontext()

    def inspect(self, step: ScheduledStep, numbers: Mapping[str, float], rate: float) -> None:
        """Look at a step's losses and reports on every process, once they are on the host: perhaps some steps later.

        Args:
            step: the one that was taken.
            numbers: by name, the losses as means over all labels of the step, and the reports.
            rate: the step's learning rate.
        """

    def state(self) -> State:
        """What a checkpoint holds of it, see `bertorch.training.state`; a hook without one does not override this."""
        return State({})

    def restore(self, state: State) -> None:
        """Go back to a saved state."""


def using(hooks: Sequence[Hook], point: str) -> list[Hook]:
    """The hooks that override `point`, a method of `Hook`."""
    return [hook for hook in hooks if getattr(type(hook), point) is not getattr(Hook, point)]


class ClipGradients(Hook):
    """Scales the gradient to a global norm of at most `max_norm`."""

    capturable = True

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    @override
    def before_update(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> Mapping[str, Tensor]:
        nn.utils.clip_grads_with_norm_(parameters, self._max_norm, norm)
        return {}


class StopIfNotFinite(Hook):
    """Ends the run with a `UserError` if loss or gradient is not finite, before the step is saved."""

    capturable = True
    reports = ("gradient_norm",)

    def __init__(self, saved_dir: str) -> None:
        self._saved_dir = saved_dir

    @override
    def before_update(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> Mapping[str, Tensor]:
        return {"gradient_norm": norm}

    @override
    def inspect(self, step: ScheduledStep, numbers: Mapping[str, float], rate: float) -> None:
        loss, norm = numbers["loss"], numbers["gradient_norm"]
        if not math.isfinite(loss + norm):
            got = f"learning rate {rate:g}: expected a finite loss and gradient, got loss {loss} and a gradient of norm"
            raise diverged(step, f"{got} {norm}", self._saved_dir)


def require_finite_weights(weights: Iterable[Tensor], step: ScheduledStep, saved_dir: str) -> None:
    """Raise a `UserError` before weights are saved that are not finite, or whose squares are not.

    With the latter, products in the model overflow: a single step of AdamW at a rate of 1e30 makes weights of 1e30.
    """
    largest = nn.utils.get_total_norm((tensor.detach() for tensor in weights), norm_type=math.inf).item()
    if not largest < torch.finfo(torch.float32).max ** 0.5:
        raise diverged(step, f"expected finite weights, and finite squares of them, got up to {largest:g}", saved_dir)


def diverged(step: ScheduledStep, message: str, saved_dir: str) -> UserError:
    """The error of a run whose numbers are no longer finite."""
    return UserError(
        f"step {step.number} (epoch {step.epoch}, batch {step.last_batch}), {message}. The last save in {saved_dir} is "
        "from before it; lower --learning_rate, raise --warmup_proportion, or with --precision fp16 take bf16 or fp32"
    )


class UsedParameters(Hook):
    """Which parameters the loss depends on, the same on every process: only these are reduced and updated.

    A process without an example in a step has no gradients at all. So the processes agree in the first step. A
    parameter that gets its first gradient later joins on a single process; several end the run with a `UserError`.
    """

    capturable = True
    reports = ("late_gradients",)

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self._named = named
        self._used: list[nn.Parameter] | None = None
        self._unused: dict[str, nn.Parameter] = {}
        self._late: dict[str, nn.Parameter] = {}

    def select(self) -> list[nn.Parameter]:
        """The parameters in use; every process must call it after the backward pass of each step."""
        if self._used is None:
            self._use(self._agree())
        assert self._used is not None
        late = {name: parameter for name, parameter in self._unused.items() if parameter.grad is not None}
        if late and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            # The step then runs eagerly.
            raise RuntimeError(f"the first gradient of {', '.join(late)} came in a capture")
        if late and distributed.world_size() == 1:
            self._use([name for name in self._named if name not in self._unused or name in late])
        elif late:  # the others don't know yet: they must not differ until `inspect` ends the run
            self._late |= late
            for parameter in late.values():
                parameter.grad = None
        return self._used

    @override
    def before_update(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> Mapping[str, Tensor]:
        return {"late_gradients": torch.full_like(norm, len(self._late))}

    @override
    def inspect(self, step: ScheduledStep, numbers: Mapping[str, float], rate: float) -> None:
        if not numbers["late_gradients"]:
            return
        late = [name for name, flag in self._reduced(name in self._late for name in self._named).items() if flag]
        raise UserError(
            f"step {step.number}: expected every parameter to get a gradient in the first step or in none, since "
            f"several processes agree on them there, got the first gradient later for {', '.join(late)}; train on one "
            "process, or freeze these parameters"
        )

    @override
    def state(self) -> State:
        used = None if self._used is None else [name for name in self._named if name not in self._unused]
        return State({}, {"used": used})

    @override
    def restore(self, state: State) -> None:
        if state.values["used"] is not None:
            self._use(state.values["used"])

    def _use(self, names: Sequence[str]) -> None:
        self._used = [self._named[name] for name in names]
        self._unused = {name: parameter for name, parameter in self._named.items() if name not in set(names)}

    def _agree(self) -> list[str]:
        """The names of the parameters that have a gradient on any process."""
        uses = self._reduced(parameter.grad is not None for parameter in self._named.values())
        return [name for name in self._named if uses[name]]

    def _reduced(self, flags: Iterable[bool]) -> dict[str, int]:
        """Of a flag for each parameter, the number of processes on which it is set."""
        device = next(iter(self._named.values())).device
        counts = torch.tensor(list(flags), dtype=torch.int32, device=device)  # (parameters,)
        return dict(zip(self._named, distributed.all_reduce_sum(counts).tolist(), strict=True))
