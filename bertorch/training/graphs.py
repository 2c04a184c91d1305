"""Whole optimisation steps as CUDA graphs.

A step at the usual batch sizes is bound by Python and by the launches of a thousand small kernels. A CUDA graph holds
them all, from the embeddings to AdamW, and one call replays them on static memory.

References:
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from torch.optim import Optimizer

from bertorch.data.batching import PackedBatch

MULTIPLE = 128  # tokens of a batch are filled up to a multiple of it, so that a run has some ten shapes
MOST_GRAPHS = 64

Work = Callable[[], Tensor]
Compute = Callable[[PackedBatch, Tensor], Tensor]


class CudaCapture:
    """Captures work in the current stream; all graphs share one pool of memory, as they never run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """Capture the work, which does not run; the function returned replays it."""
        graph = torch.cuda.CUDAGraph()
        # The prefetching thread goes on meanwhile, and allocates page-locked memory.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            output = work()

        def replay() -> Tensor:
            graph.replay()
            return output.clone()  # the next replay overwrites it

        return replay


class _Captured:
    """The graph of one shape of batch, with the memory that it reads."""

    def __init__(
        self, batch: PackedBatch, work: Callable[[PackedBatch], Tensor], capture: Callable[[Work], Work]
    ) -> None:
        self._batch = batch
        self._replay = capture(lambda: work(batch))

    def __call__(self, batch: PackedBatch) -> Tensor:
        for name, value in vars(self._batch).items():
            if isinstance(value, Tensor):
                value.copy_(getattr(batch, name), non_blocking=True)
        return self._replay()


class StepGraphs:
    """Does the device's work of a step by a graph for each shape of batch.

    The first batch of a shape is worked on eagerly, so that whatever sets itself up at first use has done so; the
    second is captured. If that fails, it and all later ones run eagerly, and the log says so once.

    Args:
        compute: from a batch on the device and the count of labels, a tensor, to the sums of the step; it changes
            weights and optimiser, and leaves no gradients.
        optimizer: its learning rates are read anew in each replay.
        device: of all tensors.
        capture: as `CudaCapture`.
    """

    def __init__(
        self, compute: Compute, optimizer: Optimizer, device: torch.device, capture: Callable[[Work], Work]
    ) -> None:
        self._compute = compute
        self._optimizer = optimizer
        self._device = device
        self._capture = capture
        self._labels = torch.zeros((), device=device)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._of_shape: dict[tuple[Any, ...], _Captured | None] = {}
        self.failed = False

    def __call__(self, batch: PackedBatch, labels: int) -> Tensor:
        """Do the work of a step.

        Args:
            batch: of `PackedBatch.filled`, in page-locked memory.
            labels: how many the step has.

        Returns:
            The sums of the step, to be kept.
        """
        self._labels.fill_(labels)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        shape = _shape_of(batch)
        captured = self._of_shape.get(shape)
        if captured is None and shape in self._of_shape and not self.failed and self._number() < MOST_GRAPHS:
            captured = self._of_shape[shape] = self._captured(batch)
        if captured is not None:
            return captured(batch)
        self._of_shape.setdefault(shape, None)
        return self._compute(batch.to(self._device), self._labels)

    def _number(self) -> int:
        return sum(captured is not None for captured in self._of_shape.values())

    def _captured(self, batch: PackedBatch) -> _Captured | None:
        groups = self._optimizer.param_groups
        own = [{"lr": group["lr"], "capturable": group.get("capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            return _Captured(batch.to(self._device), lambda static: self._compute(static, self._labels), self._capture)
        except Exception as error:  # noqa: BLE001 - whatever cannot be captured runs eagerly
            reason = (str(error).splitlines() or [""])[0]
            logger.info("CUDA graphs: off, capture failed: {}: {}", type(error).__name__, reason)
            self.failed = True
            self._optimizer.zero_grad(set_to_none=True)
            return None
        finally:
            for group, values in zip(groups, own, strict=True):
                group.update(values)


def _shape_of(batch: PackedBatch) -> tuple[Any, ...]:
    """All that a graph has fixed: the shapes of the tensors, and the numbers."""
    return tuple(tuple(value.shape) if isinstance(value, Tensor) else value for value in vars(batch).values())
