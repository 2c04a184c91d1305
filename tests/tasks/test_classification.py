import math

import pytest
import torch

from bertorch.tasks.base import Negatives
from bertorch.tasks.metrics import ClassificationMetric
from tests.architectures import random_batch
from tests.small_tasks import classification_task


@pytest.fixture(scope="module")
def task():
    task = classification_task()
    task.model.eval()
    return task


def test_the_loss_of_a_batch_is_the_sum_over_its_sentences(task):
    batch = random_batch([3, 5, 2, 4])
    losses_of = task.losses(batch)
    rows = task.model(batch).tolist()
    labels = batch.labels.tolist()
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(rows, labels, strict=True)]
    assert losses_of["loss"].item() == pytest.approx(sum(losses), rel=1e-5)
    assert losses_of["accuracy"].item() == sum(
        row.index(max(row)) == label for row, label in zip(rows, labels, strict=True)
    )
    assert losses_of["loss"].requires_grad


def test_what_the_train_loop_asks_for(task):
    assert task.loss_parts == ("loss", "accuracy")
    assert task.model.encoder_prefix == "bert"
    assert any(name.startswith("bert.") for name in task.model.weights.state_dict())
    assert isinstance(task.metric(torch.device("cpu")), ClassificationMetric)
    assert task.negatives is Negatives.NONE
