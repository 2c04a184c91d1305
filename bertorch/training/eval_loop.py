"""The evaluation loop, for dev metrics in training and for `bertorch.evaluate`."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.prefetch import prefetched
from bertorch.data.schedule import evaluation_batches
from bertorch.encoder.cpu import with_onednn
from bertorch.encoder.trials import eval_mode
from bertorch.precision import Precision, require_finite
from bertorch.tasks.base import Task
from bertorch.tasks.metrics import Metric

# Tokens that a batch on a GPU may grow to, so that its kernels outlast their launches: with 16 GiB, and with less.
# On an H100, encoding with the larger one is 1.34 x as fast (bert-base, 91 tokens a text, bf16).
GPU_TOKENS = 65536
SMALL_GPU_TOKENS = 16384


def batch_tokens(device: torch.device) -> int:
    """The tokens that a batch of an evaluation may grow to; 0 on the CPU, where it keeps its size."""
    if device.type != "cuda":
        return 0
    return GPU_TOKENS if torch.cuda.get_device_properties(device).total_memory > 15 * 2**30 else SMALL_GPU_TOKENS


def evaluate(
    task: Task[Any],
    examples: Examples,
    batch_size: int,
    precision: Precision,
    *,
    metric: Metric[Any] | None = None,
    watch: Callable[[Tensor, Any, np.ndarray], object] = lambda *_: None,
) -> Metric[Any]:
    """The metric of all examples, the same on all processes, each of which evaluates a share of them.

    `batch_size` is per process, and larger on a GPU; it does not change the result. `metric` is a fresh one; None: that
    of the task for such examples. `watch` is shown what the metric is: outputs, batch, and indices of its examples.

    Raises:
        NotFiniteError: on all processes, if a number of the metric is not finite.
    """
    device, rank, world_size = distributed.device(), distributed.rank(), distributed.world_size()
    compute, fresh = task.evaluation(examples, device)
    metric = metric or fresh
    shares = evaluation_batches(examples.lengths, batch_size, rank, world_size, tokens=batch_tokens(device))

    def prepared(indices: np.ndarray) -> tuple[np.ndarray, PackedBatch]:
        return indices, examples.batch(indices).ready_for(device)

    # A compiled model would be compiled again for inference, which takes longer than the evaluation.
    with (
        eval_mode(task.model),
        torch.inference_mode(),
        precision.autocast(),
        torch.compiler.set_stance("force_eager"),
        with_onednn(task.model.encoders, precision.dtype),
        closing(prefetched(prepared, shares)) as batches,
    ):
        for indices, batch in batches:
            on_device = batch.to(device)
            outputs = compute(on_device)
            metric.update(outputs, on_device, indices)
            watch(outputs, on_device, indices)
    metric.reduce()
    require_finite(torch.tensor(list(metric.numbers().values())), "the evaluation")
    return metric
