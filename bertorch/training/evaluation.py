"""The one evaluation loop; it knows a `Task`, never a task's name."""

from typing import Any

import torch

from bertorch import distributed
from bertorch.data.batching import Examples, evaluation_batches
from bertorch.training.metrics import Metric
from bertorch.training.step import Precision
from bertorch.training.tasks import Task


def evaluate(task: Task[Any], dev: Examples, batch_size: int, precision: Precision) -> Metric[Any]:
    """Evaluate on all processes, each example on one of them; returns the metric of all examples.

    Args:
        task: model and metric.
        dev: the examples, the same on every process.
        batch_size: examples of a batch on one process; it does not change the result.
        precision: of the forward pass.
    """
    device = distributed.device()
    metric = task.new_metric(device)
    shares = evaluation_batches(dev.lengths, batch_size, distributed.rank(), distributed.world_size())
    task.model.eval()
    with torch.inference_mode(), precision.autocast():
        for examples in shares:
            batch = dev.batch(examples).to(device)
            metric.update(task.model(batch), batch, examples)
    task.model.train()
    metric.reduce()
    return metric
