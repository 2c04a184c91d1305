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

from bertorch.data.batch import PackedBatch

MULTIPLE = 128  # tokens of a batch are filled up to a multiple of it, so that a run has some ten shapes
MOST_GRAPHS = 64
EAGER_STEPS = 2  # at the start of a run: libraries, optimiser state and memory are set up then

Work = Callable[[], Tensor]
Compute = Callable[[PackedBatch, Tensor], Tensor]


class CudaCapture:
    """Captures work in the current stream; all graphs share one pool of memory, as they never run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """Capture the work, which does not run; the function returned replays it."""
        graph = torch.cuda.CUDAGraph()
        try:
            # The prefetching thread goes on meanwhile, and allocates page-locked memory.
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


class _Captured:
    """The graph of one shape of batch, with the static memory that it reads."""

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

    After a few eager steps, the first batch of each shape is captured and replayed. If a capture fails, it and all new
    shapes run eagerly from then on, and the log says so once.

    Args:
        compute: from a batch on the device and the count of labels, a scalar tensor, to what the step reports; it
            changes weights and optimiser, and leaves no gradients.
        optimizer: its learning rates are read anew in each replay.
        device: of all tensors.
        capture: as `CudaCapture`.
        each_shape_first_eagerly: whether only the second batch of a shape is captured, as compiled code needs it, which
            is tuned when it first meets a shape.
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
        self._compute = compute
        self._optimizer = optimizer
        self._device = device
        self._capture = capture
        self._label_count = torch.zeros((), device=device)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._each_shape_first_eagerly = each_shape_first_eagerly
        self._seen: set[tuple[Any, ...]] = set()
        self._of_shape: dict[tuple[Any, ...], _Captured] = {}
        self._eager_steps = 0
        self._failed = False

    def __call__(self, batch: PackedBatch, label_count: int) -> Tensor:
        """Do the work of a step.

        Args:
            batch: of `PackedBatch.filled`, in page-locked memory.
            label_count: labels of the step.

        Returns:
            What the step reports, in memory of its own.
        """
        self._label_count.fill_(label_count)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        shape = _shape_of(batch)
        if shape not in self._of_shape and self._may_capture(shape):
            self._try_to_capture(shape, batch)
        if shape in self._of_shape:
            return self._of_shape[shape](batch)
        self._seen.add(shape)
        self._eager_steps += 1
        return self._compute(batch.to(self._device), self._label_count)

    def _may_capture(self, shape: tuple[Any, ...]) -> bool:
        return (
            not self._failed
            and self._eager_steps >= EAGER_STEPS
            and len(self._of_shape) < MOST_GRAPHS
            and (shape in self._seen or not self._each_shape_first_eagerly)
        )

    def _try_to_capture(self, shape: tuple[Any, ...], batch: PackedBatch) -> None:
        groups = self._optimizer.param_groups
        own = [{"lr": group["lr"], "capturable": group.get("capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            self._of_shape[shape] = _Captured(
                batch.to(self._device), lambda static: self._compute(static, self._label_count), self._capture
            )
        except Exception as error:  # noqa: BLE001 - whatever cannot be captured runs eagerly
            reason = (str(error).splitlines() or [""])[0]
            logger.info("CUDA graphs: off, capture failed: {}: {}", type(error).__name__, reason)
            self._failed = True
            self._optimizer.zero_grad(set_to_none=True)
        finally:
            for group, values in zip(groups, own, strict=True):
                group.update(values)


def _shape_of(batch: PackedBatch) -> tuple[Any, ...]:
    """All that a graph has fixed: the shapes of the tensors, and the numbers."""
    return tuple(tuple(value.shape) if isinstance(value, Tensor) else value for value in vars(batch).values())
