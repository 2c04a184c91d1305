import math

import pytest
import torch

from bertorch.training.metrics import ClassificationMetric
from tests.architectures import random_batch
from tests.small_tasks import classification_task


@pytest.fixture(scope="module")
def task():
    task = classification_task()
    task.model.eval()
    return task


def test_the_loss_of_a_batch_is_the_sum_over_its_sentences(task):
    batch = random_batch([3, 5, 2, 4])
    output = task.training_output(batch)
    rows = task.model(batch).tolist()
    labels = batch.labels.tolist()
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(rows, labels, strict=True)]
    assert output.loss.item() == pytest.approx(sum(losses), rel=1e-5)
    assert output.correct.item() == sum(row.index(max(row)) == label for row, label in zip(rows, labels, strict=True))
    assert output.loss.requires_grad


def test_what_the_train_loop_asks_for(task):
    assert task.counts_correct
    assert task.model.encoder_prefix == "bert"
    assert any(name.startswith("bert.") for name in task.model.weights.state_dict())
    assert isinstance(task.new_metric(torch.device("cpu")), ClassificationMetric)
    assert not task.joins_processes
