"""One optimisation step: forward and backward over its batches, sum over the processes, clip, update."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.errors import UserError
from bertorch.training.graphs import MULTIPLE, StepGraphs, Work

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The arithmetic of forward and backward; weights and optimiser state are always fp32.

    Attributes:
        name: `fp32`, `bf16` or `fp16`.
        device_type: `cpu` or `cuda`.
    """

    name: str
    device_type: str

    @classmethod
    def resolve(cls, name: str, device: torch.device) -> "Precision":
        """Resolve a value of `--precision`; `auto` is bf16 where CUDA supports it, else fp32.

        Raises:
            UserError: fp16 without a GPU, or bf16 on a GPU that has none.
        """
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "auto":
            name = "bf16" if device.type == "cuda" and has_bf16 else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise UserError(f"--precision fp16 needs a CUDA GPU, got {device.type}; use auto, fp32 or bf16")
        if name == "bf16" and not has_bf16:
            raise UserError("--precision bf16: this GPU has no bf16 arithmetic; use auto, fp32 or fp16")
        return cls(name, device.type)

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return _DTYPES[self.name]

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        # Weights that were cast while a CUDA graph was captured must not be taken up outside of it.
        capturing = self.device_type == "cuda" and torch.cuda.is_current_stream_capturing()
        return torch.autocast(
            self.device_type, dtype=self.dtype, enabled=self.name != "fp32", cache_enabled=not capturing
        )

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler, which does nothing except in fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


@dataclass(frozen=True)
class BatchOutput:
    """What a task returns of a training batch, as sums over its labels.

    Attributes:
        loss: scalar, with gradient.
        correct: scalar count of right predictions, None where the task has no accuracy.
    """

    loss: Tensor
    correct: Tensor | None


class OptimizationStep:
    """Forward, backward, sum over the processes, clip, AdamW, schedule.

    Args:
        model: whose gradients are summed and clipped.
        output_of: the task's loss, summed over a batch's labels.
        optimizer, scheduler: of `bertorch.training.optimization`.
        precision: of forward and backward.
        max_grad_norm: clip the gradient to this global norm; 0 does not clip.
        capture: replay steps of one batch as CUDA graphs, see `bertorch.training.graphs`; None runs all eagerly.
        compiled: whether the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        output_of: Callable[[Any], BatchOutput],
        optimizer: Optimizer,
        scheduler: LRScheduler,
        precision: Precision,
        *,
        max_grad_norm: float,
        capture: Callable[[Work], Work] | None = None,
        compiled: bool = False,
    ) -> None:
        self._named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._parameters = list(self._named.values())
        self._device = self._parameters[0].device
        self._output_of = output_of
        self._used: list[nn.Parameter] | None = None
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.precision = precision
        self._scaler = precision.scaler()
        self._max_grad_norm = max_grad_norm
        self._overflowed = False
        self.overflows = 0
        self._graphs = None
        if capture is not None:
            self._graphs = StepGraphs(
                lambda batch, labels: self._compute([batch], labels),
                optimizer,
                self._device,
                capture,
                each_shape_first_eagerly=compiled,
            )

    @property
    def rates(self) -> list[float]:
        """The learning rate of each parameter group in the next step."""
        return [group["lr"] for group in self._optimizer.param_groups]

    @property
    def graphs_failed(self) -> bool:
        """Whether capturing was tried in vain."""
        return self._graphs is not None and self._graphs.failed

    def prepared(self, batch: PackedBatch) -> PackedBatch:
        """The batch in the form in which the step takes it up fastest; may be called in another thread."""
        return (batch if self._graphs is None else batch.filled(MULTIPLE)).ready_for(self._device)

    def __call__(self, batches: Sequence[PackedBatch], labels: int) -> Tensor:
        """Take the step.

        Args:
            batches: this process's share of the step's batches.
            labels: how many labels the step has over all its batches and processes; the loss is their mean.

        Returns:
            (3,): this process's part of the step's mean loss, of the count of right predictions, and of the gradient's
            norm, to be summed over the processes. The norm is left out where fp16 overflowed.
        """
        if self._graphs is not None and len(batches) == 1:
            sums = self._graphs(batches[0], labels)
        else:
            sums = self._compute([batch.to(self._device) for batch in batches], labels)
        if self._overflowed:
            self.overflows += 1
        else:
            self._scheduler.step()
        return sums

    def _compute(self, batches: Sequence[PackedBatch], labels: int | Tensor) -> Tensor:
        """All that the device does."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        for batch in batches:
            with self.precision.autocast():
                output = self._output_of(batch)
            loss = output.loss / labels
            self._scaler.scale(loss).backward()
            sums[0] += loss.detach()
            if output.correct is not None:
                sums[1] += output.correct
        sums[2] = self._update() / distributed.world_size()
        return sums

    def _update(self) -> Tensor | float:
        if self._used is None:
            self._used = self._used_by_any_process()
        distributed.sum_gradients(self._used)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self._used if parameter.grad is not None])
        if self._max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(self._used, self._max_grad_norm, norm)
        self._scaler.step(self._optimizer)
        scale = self._scaler.get_scale()
        self._scaler.update()
        self._overflowed = self._scaler.get_scale() < scale  # fp16: the step was left out
        self._optimizer.zero_grad(set_to_none=True)
        return 0.0 if self._overflowed else norm

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's tensors, named after the parameters."""
        return {
            f"{name}.{key}": tensor
            for name, parameter in self._named.items()
            for key, tensor in self._optimizer.state[parameter].items()
        }

    def values(self) -> dict[str, Any]:
        """Everything else that the next step depends on, as JSON has it."""
        return {
            "tensors": sorted(self.tensors()),
            "rates": self.rates,
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
            "overflows": self.overflows,
        }

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None) -> None:
        """Go back to a saved state.

        Args:
            values: of `values()`, on every process.
            tensors: of `tensors()`; None on all processes but the first, which sends them.
        """
        for name in values["tensors"]:
            parameter_name, _, key = name.rpartition(".")
            parameter = self._named[parameter_name]
            tensor = torch.zeros_like(parameter) if key != "step" else torch.zeros((), device=parameter.device)
            if tensors is not None:
                tensor.copy_(tensors[name])
            self._optimizer.state[parameter][key] = distributed.broadcast(tensor)
        for group, rate in zip(self._optimizer.param_groups, values["rates"], strict=True):
            group["lr"] = rate
        self._scheduler.load_state_dict(dict(values["scheduler"]))
        self._scaler.load_state_dict(dict(values["scaler"]))
        self.overflows = values["overflows"]

    def _used_by_any_process(self) -> list[nn.Parameter]:
        """The parameters that the loss depends on.

        A process without an example in the step has no gradients at all; the others still agree with it on which
        parameters get one, so that an unused parameter stays as it is on any number of processes.
        """
        used = torch.tensor([parameter.grad is not None for parameter in self._parameters], dtype=torch.int32)
        used = distributed.all_reduce_sum(used.to(self._parameters[0].device))
        return [parameter for parameter, uses in zip(self._parameters, used.tolist(), strict=True) if uses]
