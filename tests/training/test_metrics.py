import math

import numpy as np
import pytest
import torch

from bertorch.training.metrics import ClassificationMetric

LOGITS = [[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.5, 0.0], [-1.0, 2.0]]
CLASSES = [0, 0, 1, 0, 1]


def expected_loss() -> float:
    """Mean cross-entropy in plain Python."""
    return sum(
        -math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(LOGITS, CLASSES, strict=True)
    ) / len(LOGITS)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_loss_and_accuracy_do_not_depend_on_the_batch_size(batch_size):
    metric = ClassificationMetric(torch.device("cpu"))
    for start in range(0, len(LOGITS), batch_size):
        batch = slice(start, start + batch_size)
        metric.update(torch.tensor(LOGITS[batch]), torch.tensor(CLASSES[batch]), np.arange(len(LOGITS))[batch])
    metric.reduce()
    assert metric.value == 3 / 5
    assert metric.line() == f"eval loss: {expected_loss():.5f}, accuracy: 0.60000"
