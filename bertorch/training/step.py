"""One optimisation step: forward and backward of its batches, sum over the processes, hooks, AdamW, schedule."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.precision import Precision
from bertorch.tasks.base import Losses
from bertorch.training.graphs import MULTIPLE, StepGraphs, Work
from bertorch.training.hooks import Hook, UsedParameters, using
from bertorch.training.optimization import OptimizerState, SchedulerState
from bertorch.training.state import State, Stateful, ValuesState


class OptimizationStep(Stateful):
    """One optimisation step.

    Args:
        model, optimizer, scheduler: to train.
        losses_of: from a batch to a task's losses, and with hooks that mix them also from `Task.losses`' mixers.
        precision: of forward and backward.
        loss_parts: the names that `losses_of` returns, `loss` among them.
        hooks: in the order in which they act; around a pass the first is the innermost.
        capture: replay steps of one batch as CUDA graphs, see `bertorch.training.graphs`; None runs all eagerly.
    """

    def __init__(
        self,
        model: nn.Module,
        losses_of: Callable[..., Losses],
        optimizer: Optimizer,
        scheduler: LambdaLR,
        precision: Precision,
        *,
        loss_parts: Sequence[str] = ("loss",),
        hooks: Sequence[Hook] = (),
        capture: Callable[[Work], Work] | None = None,
    ) -> None:
        self._named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._device = next(iter(self._named.values())).device
        self._losses_of = losses_of
        self._optimizer, self._scheduler = optimizer, scheduler
        self.precision = precision
        self._scaler = precision.scaler()
        # It makes its tensors at its first scaling, which a process without an example in a step does not come to.
        self._scaler.scale(torch.zeros((), device=self._device))
        self._scale = self._scaler.get_scale()
        self._loss_parts = tuple(loss_parts)
        self._used = UsedParameters(self._named)
        self.hooks = [*hooks, self._used]
        self._prepared = using(hooks, "prepared")
        self._around_loss, self._around_backward, self._around_gradients = (
            using(hooks, f"around_{name}") for name in ("loss", "backward", "gradients")
        )
        self._mixing = using(hooks, "mixed")
        self._before_update, self._after_update = (using(self.hooks, f"{name}_update") for name in ("before", "after"))
        # The names of the numbers that a step returns.
        self.reports = self._loss_parts + tuple(name for hook in self.hooks for name in hook.reports)
        stateful = [type(hook).__name__ for hook in using(self.hooks, "state")]
        if len(set(stateful)) < len(stateful) or len(set(self.reports)) < len(self.reports):
            raise ValueError(f"expected hooks with different names and reports, got {stateful}, {self.reports}")
        self._overflowed = False
        self.overflows = 0  # steps skipped so far because fp16 overflowed
        self._graphs = None
        if capture is not None:
            self._graphs = StepGraphs(
                lambda batch, label_count, loss_weight: self._compute([batch], label_count, loss_weight),
                optimizer,
                self._device,
                capture,
            )

    @property
    def rates(self) -> list[float]:
        """The learning rate of each parameter group in the next step, before the factor that the group may have.

        A group whose factor is so small that it is 0 has none.
        """
        factors = [(group, group.get("rate_factor", 1.0)) for group in self._optimizer.param_groups]
        return [group["lr"] / factor for group, factor in factors if factor]

    def prepared(self, batch: PackedBatch) -> PackedBatch:
        """The batch in the form that the step takes, and takes fastest; any thread may call it."""
        for hook in self._prepared:
            batch = hook.prepared(batch)
        return (batch if self._graphs is None else batch.filled(MULTIPLE)).ready_for(self._device)

    def __call__(self, batches: Sequence[PackedBatch], label_count: int, loss_weight: float | None = None) -> Tensor:
        """Take the step.

        Args:
            batches: this process's share of the step's batches, `prepared`.
            label_count: labels of the step over all its batches and processes; what is reported is the mean over
                them.
            loss_weight: what the loss alone is divided by, where the labels weigh differently; None: `label_count`.

        Returns:
            (reports,) fp64: this process's part of each, to be summed over the processes.
        """
        loss_weight = label_count if loss_weight is None else loss_weight
        if self._graphs is not None and len(batches) == 1:
            reported = self._graphs(batches[0], label_count, loss_weight)
        else:
            reported = self._compute([batch.to(self._device) for batch in batches], label_count, loss_weight)
        if self._overflowed:
            self.overflows += 1
        else:
            self._scheduler.step()
        return reported

    def _compute(
        self, batches: Sequence[PackedBatch], label_count: int | Tensor, loss_weight: float | Tensor
    ) -> Tensor:
        """What the device does, and a CUDA graph holds: gradients of all batches, then the update."""
        forward = self._losses_of
        if self._mixing:
            mixers = [partial(hook.mixed, weight=loss_weight / label_count) for hook in self._mixing]
            forward = partial(forward, mixers=mixers)
        compute: Callable[[], Tensor] = partial(self._gradients, forward, batches, loss_weight)
        for hook in self._around_gradients:
            compute = partial(hook.around_gradients, compute, batches)
        sums = compute()  # (loss_parts,)
        reported = self._update()
        totals = [loss_weight if name == "loss" else label_count for name in self._loss_parts]
        means = [total / count for total, count in zip(sums, totals, strict=True)]
        return torch.cat([torch.stack(means), reported / distributed.world_size()])

    def _gradients(
        self, forward: Callable[[PackedBatch], Losses], batches: Sequence[PackedBatch], loss_weight: float | Tensor
    ) -> Tensor:
        """Add the gradients of these batches to those of the parameters; returns the sums of the losses."""
        sums = torch.zeros(len(self._loss_parts), dtype=torch.float64, device=self._device)  # (loss_parts,)
        for batch in batches:
            compute = partial(self._forward_backward, forward, batch, loss_weight)
            for hook in self._around_backward:
                compute = partial(hook.around_backward, compute, batch)
            losses = compute()
            sums += torch.stack([losses[name].detach().double() for name in self._loss_parts])
        return sums

    def _forward_backward(
        self, forward: Callable[[PackedBatch], Losses], batch: PackedBatch, loss_weight: float | Tensor
    ) -> Losses:
        compute: Callable[[], Losses] = partial(forward, batch)
        for hook in self._around_loss:
            compute = partial(hook.around_loss, compute, batch)
        with self.precision.autocast(keep_cast_weights=False):
            losses = compute()
        self._scaler.scale(losses["loss"] / loss_weight).backward()
        return losses

    def _update(self) -> Tensor:
        """Sum the gradients over the processes, let the hooks act, update.

        Returns:
            (reports of the hooks,) fp64, zeros where fp16 overflowed.
        """
        parameters = self._used.select()
        distributed.sum_gradients(parameters)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])  # scalar
        reports: dict[str, Tensor] = {}
        for hook in self._before_update:
            reports |= hook.before_update(parameters, norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        scale = self._scaler.get_scale()
        self._overflowed = scale < self._scale  # fp16: the step was skipped
        self._scale = scale
        self._optimizer.zero_grad(set_to_none=True)
        names = self.reports[len(self._loss_parts) :]
        if self._overflowed:
            return torch.zeros(len(names), dtype=torch.float64, device=self._device)
        for hook in self._after_update:
            hook.after_update()
        return torch.stack([reports[name].double().to(self._device) for name in names])

    def parts(self) -> dict[str, Stateful]:
        """What the next step depends on, beside the model: the parts of a checkpoint, by name."""
        return {
            "optimizer": OptimizerState(self._optimizer, self._named),
            "scheduler": SchedulerState(self._scheduler),
            "scaler": ValuesState(self._scaler),
            "step": self,
            **{type(hook).__name__: hook for hook in using(self.hooks, "state")},
        }

    @override
    def state(self) -> State:
        return State({}, {"overflows": self.overflows})

    @override
    def restore(self, state: State) -> None:
        self.overflows = state.values["overflows"]
        self._scale = self._scaler.get_scale()  # restored before
