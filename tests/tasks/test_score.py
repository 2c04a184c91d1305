"""Training a score: squared error, correlations, several processes, dev scores that are all the same."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error
from transformers import AutoTokenizer

from bertorch import distributed
from bertorch.config import ClassifierConfig
from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.tasks.score import ScoreMetric, ScoreTask
from bertorch.training.eval_loop import evaluate
from tests.architectures import random_batch
from tests.conftest import TINY, run_processes
from tests.short_runs import assert_same_as_one_process
from tests.small_tasks import NO_DROPOUT, score_data, score_task

CPU = torch.device("cpu")


def test_the_loss_is_the_squared_error_summed_over_examples():
    task = score_task()
    task.model.double().eval()
    batch = score_data(5).batch(np.array([3, 0, 4]))
    scores = task.outputs(batch).flatten().tolist()
    losses = task.losses(batch)
    expected = sum((score - label) ** 2 for score, label in zip(scores, batch.labels.tolist(), strict=True))
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-12)
    assert losses.keys() == {"loss"} == set(task.loss_parts)
    half = task.losses_of(task.outputs(batch).bfloat16(), batch)["loss"]
    assert half.dtype == torch.float32


@pytest.mark.parametrize("parts", [1, 3])
def test_the_metric_is_that_of_scipy_and_scikit_learn(parts):
    generator = np.random.default_rng(0)
    scores = generator.normal(size=40)
    labels = np.round(scores + generator.normal(size=40))  # with ties
    metric = ScoreMetric(CPU)
    for indices in np.array_split(generator.permutation(40), parts):
        batch = replace(random_batch([1]), labels=torch.from_numpy(labels[indices]))
        metric.update(torch.from_numpy(scores[indices])[:, None], batch, indices)
    metric.reduce()
    spearman, pearson = stats.spearmanr(scores, labels).statistic, stats.pearsonr(scores, labels).statistic
    squared = mean_squared_error(labels, scores)
    assert metric.line() == f"eval loss: {squared:.5f}, spearman corr: {spearman:.4f}, pearson corr: {pearson:.4f}"
    assert metric.value == pytest.approx(spearman)
    assert next(iter(metric.numbers())) == "spearman"
    assert metric.report() == {
        "examples": 40,
        "spearman": pytest.approx(spearman),
        "pearson": pytest.approx(pearson),
        "mse": pytest.approx(squared),
        "mae": pytest.approx(mean_absolute_error(labels, scores)),
    }


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.5, 0.5, 0.5], [1.0, 2.0, 3.0], "all 3 predictions are 0.5, and both correlations are 0; usual causes: "),
        ([0.1, 0.2, 0.3], [2.0, 2.0, 2.0], "all 3 dev examples have the score 2: there is nothing to correlate with"),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 2.0], None),
    ],
)
def test_correlations_that_are_not_defined_are_told(scores, labels, expected):
    metric = ScoreMetric(CPU)
    batch = replace(random_batch([1]), labels=torch.tensor(labels))
    metric.update(torch.tensor(scores)[:, None], batch, np.arange(3))
    metric.reduce()
    warnings = metric.warnings()
    assert len(warnings) == (expected is not None)
    assert all(warning.startswith(expected) for warning in warnings)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_train_as_one(world_size, tmp_path):
    settings = {"batch_size": 4, "max_grad_norm": 0.5}
    assert_same_as_one_process(tmp_path, world_size, partial(score_task, **NO_DROPOUT), score_data(21), settings)


def report_in_double(folder, batch_size) -> None:
    task = score_task()
    task.model.double()
    metric = evaluate(task, score_data(23), batch_size, Precision("fp32", "cpu"))
    (folder / f"{distributed.rank()}.txt").write_text(f"{metric.line()} {metric.value!r}")


@pytest.mark.slow
def test_evaluation_does_not_depend_on_processes(tmp_path):
    for folder in ("one", "many"):
        (tmp_path / folder).mkdir()
    report_in_double(tmp_path / "one", 23)
    run_processes(2, report_in_double, tmp_path / "many", 3)
    expected = (tmp_path / "one" / "0.txt").read_text()
    assert [path.read_text() for path in (tmp_path / "many").iterdir()] == [expected] * 2


def test_dev_scores_that_are_all_the_same_are_refused(tmp_path):
    (tmp_path / "dev.txt").write_text("好\t2\n坏\t2.0\n")
    config = ClassifierConfig(train_data_file="-", problem_type="score")
    _, read = ScoreTask.readers(config, ())
    with pytest.raises(UserError, match="dev.txt: expected scores that differ, to correlate with, got only 2"):
        read(
            str(tmp_path / "dev.txt"), tokenizer=AutoTokenizer.from_pretrained(TINY), max_length=16, on_bad_line="stop"
        )
