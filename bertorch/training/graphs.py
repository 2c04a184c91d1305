"""Whole optimisation steps as CUDA graphs.

At the usual batch sizes a step is bound by Python and by the launches of a thousand small kernels. A CUDA graph holds
them all, from the embeddings to AdamW, and one call replays them on static memory, see
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from torch.optim import Optimizer

from bertorch.data.batch import PackedBatch

MULTIPLE = 128  # a batch's tokens are rounded up to a multiple, so that a run has about ten shapes
MOST_GRAPHS = 64

Work = Callable[[], Tensor]
Compute = Callable[[PackedBatch, Tensor, Tensor], Tensor]
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
            with (
                _no_garbage_collection(),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
                ),
            ):
                output = work()
        except Exception:
            device = torch.cuda.current_device()
            # A failed capture leaves the generator flagged as capturing; a cloned state clears it.
            generator = torch.cuda.default_generators[device]
            generator.graphsafe_set_state(generator.clone_state())
            # If the stream's capture was invalid, its end was never reached: the pool would never be released.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(device, self._pool)
                torch._C._cuda_releasePool(device, self._pool)
            raise

        def replay() -> Tensor:
            graph.replay()
            return output.clone()  # the next replay overwrites it

        return replay


class StepGraphs:
    """Does the device's work of a step by a graph for each shape of batch.

    The first batch of a shape runs eagerly, which sets up libraries, optimiser state and compiled code; the second one
    is captured and replayed. If a capture fails, all steps run eagerly from then on, and the log says so once: graphs
    captured before it would replay with a random state that no seed reaches any more. Eager steps and replays read the
    learning rates from the same fp32 tensors, so that a step is the same either way.

    Args:
        compute: from a batch on the device, the label count and the weight of the loss, scalar tensors, to what the
            step reports; it changes weights and optimiser, and leaves no gradients.
        optimizer, device: those of `compute`.
        capture: such as `CudaCapture`.
    """

    def __init__(
        self, compute: Compute, optimizer: Optimizer, device: torch.device, capture: Callable[[Work], Work]
    ) -> None:
        self._compute, self._capture = compute, capture
        self._optimizer, self._device = optimizer, device
        self._label_count, self._loss_weight = torch.zeros(2, device=device)  # () each
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._seen: set[Shape] = set()
        self._replays: dict[Shape, tuple[PackedBatch, Work]] = {}  # of each shape the static batch that a replay reads
        self.failure: str | None = None  # why a capture failed

    def __call__(self, batch: PackedBatch, label_count: int, loss_weight: float) -> Tensor:
        """What the step on a batch of `PackedBatch.filled` reports, in memory of its own."""
        self._label_count.fill_(label_count)
        self._loss_weight.fill_(loss_weight)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        shape = _shape_of(batch)
        if shape in self._seen and shape not in self._replays and self._may_capture():
            self._try_to_capture(shape, batch)
        if shape in self._replays:
            static, replay = self._replays[shape]
            for name, value in vars(static).items():
                if isinstance(value, Tensor):
                    value.copy_(getattr(batch, name), non_blocking=True)
            return replay()
        self._seen.add(shape)
        with self._rates_from_tensors():
            return self._compute(batch.to(self._device), self._label_count, self._loss_weight)

    def _may_capture(self) -> bool:
        return self.failure is None and len(self._replays) < MOST_GRAPHS

    def _try_to_capture(self, shape: Shape, batch: PackedBatch) -> None:
        static = batch.to(self._device)
        try:
            with self._rates_from_tensors():
                work = partial(self._compute, static, self._label_count, self._loss_weight)
                self._replays[shape] = static, self._capture(work)
        except Exception as error:  # noqa: BLE001 - whatever cannot be captured runs eagerly
            reason = (str(error).splitlines() or [""])[0]
            self.failure = f"{type(error).__name__}: {reason}"
            logger.info("CUDA graphs: off, capture failed: {}", self.failure)
            self._replays.clear()
            self._optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _rates_from_tensors(self) -> Iterator[None]:
        groups = self._optimizer.param_groups
        before = [{"lr": group["lr"], "capturable": group.get("capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection might free what belongs to another stream, which a capture forbids."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _shape_of(batch: PackedBatch) -> Shape:
    """What a graph has fixed: the shapes of the tensors, and the numbers, but no `offsets`."""
    values = (value for name, value in vars(batch).items() if name != "offsets")
    return tuple(tuple(value.shape) if isinstance(value, Tensor) else value for value in values)
