"""Numbers that are not finite stop a run before anything of the step is saved, and are never a result."""

from functools import partial
from pathlib import Path

import pytest
import torch

from bertorch.errors import NotFiniteError, UserError
from bertorch.inference.engine import Engine
from bertorch.inference.model import Model
from bertorch.precision import Precision
from bertorch.training.eval_loop import evaluate
from bertorch.training.metrics_file import METRICS, read_metrics
from tests.short_runs import trained
from tests.small_tasks import (
    candidate_data,
    classification_data,
    classification_task,
    entity_data,
    global_pointer_task,
    multi_label_data,
    multi_label_task,
    ranking_task,
    score_data,
    score_task,
    tagged_data,
    tagging_task,
    tiny_classification_task,
    tiny_global_pointer_task,
    tiny_tagging_task,
)

CPU = torch.device("cpu")
FP32 = Precision.resolve("fp32", CPU)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("with_dev", [False, True])
@pytest.mark.parametrize(
    ("make_task", "make_data"),
    [(classification_task, classification_data), (lambda: tagging_task(use_crf=True), tagged_data)],
)
def test_weights_that_diverge_in_the_last_step_are_not_saved(make_task, make_data, with_dev, tmp_path):
    data = make_data(9)
    settings = {"max_steps": 1, "learning_rate": 1e30, "save_best_model": with_dev}
    with pytest.raises(UserError, match=r"step 1 \(epoch 1, batch 1\), expected finite weights.*lower --learning_rate"):
        trained(tmp_path, make_task(), data, data if with_dev else None, **settings)
    assert files(tmp_path) <= {METRICS}


def test_dev_metrics_that_are_not_finite_end_the_run(tmp_path):
    """A rate of 1e15 makes finite weights whose products overflow."""
    data = classification_data(9)
    with pytest.raises(UserError, match=r"step 1 .* expected finite dev metrics, got NaN or infinity. The last save"):
        trained(tmp_path, classification_task(), data, data, max_steps=1, logging_steps=1, learning_rate=1e15)
    assert files(tmp_path) == {METRICS}
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == [1]


def test_what_was_saved_before_is_as_it_was(tmp_path, monkeypatch):
    data = classification_data(29)
    trained(tmp_path, classification_task(), data, max_steps=3)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(UserError, match="expected finite weights"):
        trained(tmp_path, classification_task(), data, max_steps=3, save_steps=1, learning_rate=1e30, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def spoilt(task):
    """One weight is NaN."""
    with torch.no_grad():
        next(task.model.parameters()).fill_(torch.nan)
    return task


@pytest.mark.parametrize(
    ("make_task", "make_data"),
    [
        (classification_task, classification_data),
        (multi_label_task, multi_label_data),
        (score_task, score_data),
        (ranking_task, partial(candidate_data, queries=3)),
        (lambda: tagging_task(use_crf=False), tagged_data),
        (lambda: tagging_task(use_crf=True), tagged_data),
        (global_pointer_task, entity_data),
    ],
)
def test_an_evaluation_is_not_of_results_that_are_not_finite(make_task, make_data):
    with pytest.raises(NotFiniteError, match="expected finite results for the evaluation, got NaN or infinity"):
        evaluate(spoilt(make_task()), make_data(9), 4, FP32)


def test_predictions_are_finite():
    model = Model(spoilt(tiny_classification_task(["a", "b"])), Engine(CPU, FP32, batch_size=2, shared=False))
    with pytest.raises(NotFiniteError, match="expected finite results for 3 inputs, the first of them '房间'"):
        model.predict(["房间", "早餐", "干净"])


@pytest.mark.parametrize(
    "make_task", [*(partial(tiny_tagging_task, use_crf=use_crf) for use_crf in (False, True)), tiny_global_pointer_task]
)
def test_no_entities_are_found_without_finite_scores(make_task):
    model = Model(spoilt(make_task()), Engine(CPU, FP32, batch_size=2, shared=False))
    with pytest.raises(NotFiniteError, match="expected finite results for the tokens of a batch"):
        model.tag(["房间", "早餐", "干净"])
