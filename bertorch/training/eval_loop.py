"""The one evaluation loop; it knows a `Task`, never a task's name."""

from contextlib import closing
from typing import Any

import numpy as np
import torch

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.prefetch import prefetched
from bertorch.data.schedule import evaluation_batches
from bertorch.training.metrics import Metric
from bertorch.training.step import Precision
from bertorch.training.tasks import Task

GPU_TOKENS = 16384  # of a batch on a GPU: enough work for its kernels to outlast their launches


def evaluate(task: Task[Any], dev: Examples, batch_size: int, precision: Precision) -> Metric[Any]:
    """Evaluate on all processes, each example on one of them; returns the metric of all examples.

    Args:
        task: model and metric.
        dev: the examples, the same on every process.
        batch_size: examples of a batch on one process, more on a GPU; it does not change the result.
        precision: of the forward pass.
    """
    device = distributed.device()
    metric = task.new_metric(device)
    shares = evaluation_batches(
        dev.lengths,
        batch_size,
        distributed.rank(),
        distributed.world_size(),
        tokens=GPU_TOKENS if device.type == "cuda" else 0,
    )

    def prepared(examples: np.ndarray) -> tuple[np.ndarray, PackedBatch]:
        return examples, dev.batch(examples).ready_for(device)

    task.model.eval()
    # A compiled model would be compiled again for inference, which takes longer than evaluations do.
    with (
        torch.inference_mode(),
        precision.autocast(),
        torch.compiler.set_stance("force_eager"),
        closing(prefetched(prepared, shares)) as batches,
    ):
        for examples, batch in batches:
            on_device = batch.to(device)
            metric.update(task.model(on_device), on_device, examples)
    task.model.train()
    metric.reduce()
    return metric
