"""The gate, with copies of models in the place of exports: what it measures, and what it lets through."""

import copy
import math

import numpy as np
import pytest
import torch

from bertorch.data.dataset import Subset
from bertorch.exporting.check_data import BUILT_IN, CheckData, built_in
from bertorch.exporting.checking import TOLERANCE, Check, check_metric, check_outputs
from bertorch.tasks.base import Task
from tests.conftest import REVIEWS, SCORES, STS
from tests.exports import KINDS, small_task


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    monkeypatch.setattr("bertorch.exporting.check_data.TEXTS", 40)
    monkeypatch.setattr("bertorch.exporting.check_data._LONGEST", 40)


def sabotaged(task: Task, by: float) -> Task:
    """With noise on one weight of the encoder."""
    other = copy.deepcopy(task)
    with torch.no_grad():
        weight = next(iter(other.model.encoders[0].model.parameters()))
        weight.add_(by * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return other


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_that_are_the_same_and_that_are_not(kind):
    task = small_task(kind)
    same = check_outputs(task, copy.deepcopy(task), built_in(task), batch_size=8)
    assert same.passed
    assert same.value < 1e-5
    assert same.data == BUILT_IN
    other = check_outputs(task, sabotaged(task, 5.0), built_in(task), batch_size=8)
    assert not other.passed
    assert other.value > TOLERANCE


def test_the_largest_difference_is_that_of_all_examples():
    task = small_task("classification")
    other = copy.deepcopy(task)
    with torch.no_grad():
        other.model.model.classifier.bias[1] += 0.25
    _, examples = task.read_labelled(str(REVIEWS / "dev.txt"), "stop")
    check = check_outputs(task, other, CheckData("dev", examples), batch_size=16)
    assert check.value == pytest.approx(0.25, abs=1e-5)
    assert check.data == f"dev and {BUILT_IN}"
    assert check.examples == 128 + len(examples)


@pytest.mark.parametrize(("scale", "passed"), [(1e4, True), (1.0, False)])
def test_the_limit_goes_with_the_size_of_the_outputs(scale, passed):
    """A difference of 0.01 is rounding of scores in the thousands, and an error of others."""
    task = small_task("classification")
    with torch.no_grad():
        task.model.model.classifier.bias[0] = scale
    other = copy.deepcopy(task)
    with torch.no_grad():
        other.model.model.classifier.bias[0] += 0.01
    check = check_outputs(task, other, built_in(task), batch_size=8)
    assert check.value == pytest.approx(0.01, rel=0.1)
    assert check.passed == passed


def test_outputs_that_are_not_finite_do_not_pass():
    task = small_task("classification")
    other = copy.deepcopy(task)
    with torch.no_grad():
        other.model.model.classifier.bias[1] = math.nan
    assert not check_outputs(task, other, built_in(task), batch_size=16).passed


@pytest.mark.parametrize(
    ("kind", "file", "measure"),
    [
        ("classification", REVIEWS / "dev.txt", "accuracy"),
        ("score", SCORES / "dev.txt", "spearman"),
        ("embedding", STS, "spearman"),
    ],
)
def test_the_metric_before_and_after(kind, file, measure):
    task = small_task(kind)
    _, examples = task.read_labelled(str(file), "stop")
    same = check_metric(task, copy.deepcopy(task), CheckData("dev", examples), 16, max_loss=0.0)
    assert (same.measure, same.loss, same.interval, same.examples) == (measure, 0.0, (0.0, 0.0), len(examples))
    assert same.passed
    assert same.before == same.value


def test_a_metric_that_falls_by_more_than_is_allowed():
    """One of two classes is never predicted any more: what is lost are the right ones of it."""
    task = small_task("classification")
    other = copy.deepcopy(task)
    with torch.no_grad():
        other.model.model.classifier.bias[1] += 1e4
    _, examples = task.read_labelled(str(REVIEWS / "dev.txt"), "stop")
    labels = examples.labels_of(np.arange(len(examples)))
    with torch.inference_mode():
        predicted = task.outputs(examples.batch(np.arange(len(examples)))).argmax(-1).numpy()
    lost = float((predicted == labels).mean() - (labels == 1).mean())
    better, worse = (task, other) if lost > 0 else (other, task)
    check = check_metric(better, worse, CheckData("dev", examples), 16, max_loss=abs(lost) - 0.001)
    assert check.loss == pytest.approx(abs(lost))
    assert not check.passed
    assert check.interval[0] < abs(lost) < check.interval[1]
    assert check_metric(better, worse, CheckData("dev", examples), 16, max_loss=abs(lost) + 0.001).passed
    assert check_metric(worse, better, CheckData("dev", examples), 16, max_loss=0.0).passed  # a gain is no loss


def test_agreement_where_there_are_no_labels():
    task = small_task("classification")
    other = copy.deepcopy(task)
    with torch.no_grad():
        other.model.model.classifier.bias[1] += 1e4
    data = built_in(task)
    rows = [task.scorer().rows_of(task.scorer().examples_of([text]).batch(np.arange(1))) for text in data.inputs]
    share = float(np.mean([int(row.argmax()) == 1 for row in rows]))
    check = check_metric(task, other, data, 8, max_loss=0.01)
    assert check.value == pytest.approx(share)
    assert check.loss == pytest.approx(1 - share)
    assert check.before is None


def test_entities_against_those_of_the_model():
    task = small_task("CRF")
    check = check_metric(task, sabotaged(task, 5.0), built_in(task), 8, max_loss=0.01)
    assert check.measure == "F1 of the entities"
    assert 0 <= check.value < 1


def test_a_subset_of_examples_is_checked_as_one():
    task = small_task("classification")
    _, examples = task.read_labelled(str(REVIEWS / "dev.txt"), "stop")
    data = CheckData("some", Subset(examples, np.array([3, 5, 8])))
    assert check_metric(task, copy.deepcopy(task), data, 2, max_loss=0.0).examples == 3


def test_a_check_in_words():
    check = Check("dev.txt", 120, "accuracy", 0.8, 0.05, 0.01, 0.85, (0.01, 0.09))
    assert str(check) == (
        "accuracy 0.8, before 0.85000: a loss of 0.05 (95 % interval 0.01000 to 0.09000), 0.01 allowed, on 120 "
        "examples: dev.txt"
    )
    assert check.record()["interval"] == (0.01, 0.09)
    assert not check.passed
    assert not Check("dev.txt", 1, "accuracy", math.nan, math.nan, 0.01).passed
