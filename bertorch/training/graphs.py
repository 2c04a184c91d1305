"""Whole optimisation steps as CUDA graphs.

At the usual batch sizes a step is bound by Python and by the launches of a thousand small kernels. A CUDA graph holds
them all, from the embeddings to AdamW, and one call replays them on static memory, see
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from torch.optim import Optimizer

from bertorch.data.batch import PackedBatch

MULTIPLE = 128  # a batch's tokens are rounded up to a multiple, so that a run has about ten shapes
MOST_GRAPHS = 64
EAGER_STEPS = 2  # at the start of a run, to set up libraries, optimiser state and memory

Work = Callable[[], Tensor]
Compute = Callable[[PackedBatch, Tensor], Tensor]
Shape = tuple[Any, ...]


class CudaCapture:
    """Captures work in the current stream; the graphs never run at once, so they share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """Capture the work without running it; the function returned replays it."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local, since the prefetching thread meanwhile allocates page-locked memory.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
            ):
                output = work()
        except Exception:
            # A failed capture leaves the generator flagged as capturing; a cloned state clears it.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise

        def replay() -> Tensor:
            graph.replay()
            return output.clone()  # the next replay overwrites it

        return replay


class StepGraphs:
    """Does the device's work of a step by a graph for each shape of batch.

    After a few eager steps, the first batch of each shape is captured and replayed. If a capture fails, it and all new
    shapes run eagerly from then on, and the log says so once. Each replay reads the learning rates of the optimizer.

    Args:
        compute: from a batch on the device and the label count, a scalar tensor, to what the step reports; it changes
            weights and optimiser, and leaves no gradients.
        optimizer, device: those of `compute`.
        capture: such as `CudaCapture`.
        each_shape_first_eagerly: capture only the second batch of a shape: compiled code is tuned at the first.
    """

    def __init__(
        self,
        compute: Compute,
        optimizer: Optimizer,
        device: torch.device,
        capture: Callable[[Work], Work],
        *,
        each_shape_first_eagerly: bool = False,
    ) -> None:
        self._compute, self._capture = compute, capture
        self._optimizer, self._device = optimizer, device
        self._label_count = torch.zeros((), device=device)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._each_shape_first_eagerly = each_shape_first_eagerly
        self._seen: set[Shape] = set()
        self._replays: dict[Shape, tuple[PackedBatch, Work]] = {}  # of each shape the static batch that a replay reads
        self._eager_steps = 0
        self._failed = False

    def __call__(self, batch: PackedBatch, label_count: int) -> Tensor:
        """What the step on a batch of `PackedBatch.filled` reports, in memory of its own."""
        self._label_count.fill_(label_count)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        shape = _shape_of(batch)
        if shape not in self._replays and self._may_capture(shape):
            self._try_to_capture(shape, batch)
        if shape in self._replays:
            static, replay = self._replays[shape]
            for name, value in vars(static).items():
                if isinstance(value, Tensor):
                    value.copy_(getattr(batch, name), non_blocking=True)
            return replay()
        self._seen.add(shape)
        self._eager_steps += 1
        return self._compute(batch.to(self._device), self._label_count)

    def _may_capture(self, shape: Shape) -> bool:
        return (
            not self._failed
            and self._eager_steps >= EAGER_STEPS
            and len(self._replays) < MOST_GRAPHS
            and (shape in self._seen or not self._each_shape_first_eagerly)
        )

    def _try_to_capture(self, shape: Shape, batch: PackedBatch) -> None:
        groups = self._optimizer.param_groups
        eager = [{"lr": group["lr"], "capturable": group.get("capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            static = batch.to(self._device)
            self._replays[shape] = static, self._capture(lambda: self._compute(static, self._label_count))
        except Exception as error:  # noqa: BLE001 - whatever cannot be captured runs eagerly
            reason = (str(error).splitlines() or [""])[0]
            logger.info("CUDA graphs: off, capture failed: {}: {}", type(error).__name__, reason)
            self._failed = True
            self._optimizer.zero_grad(set_to_none=True)
        finally:
            for group, values in zip(groups, eager, strict=True):
                group.update(values)


def _shape_of(batch: PackedBatch) -> Shape:
    """What a graph has fixed: the shapes of the tensors, and the numbers."""
    return tuple(tuple(value.shape) if isinstance(value, Tensor) else value for value in vars(batch).values())
