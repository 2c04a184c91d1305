import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.tasks.metrics import (
    ClassificationMetric,
    CorrelationMetric,
    best_threshold,
    class_report,
)
from bertorch.tasks.multi_label import binary_cross_entropies
from bertorch.tasks.multi_label_metric import MultiLabelMetric
from bertorch.tasks.ranking_metric import RankingMetric
from bertorch.tasks.score import ScoreMetric
from bertorch.tasks.thresholds import Thresholds
from tests.architectures import random_batch
from tests.conftest import run_processes

LOGITS = [[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.5, 0.0], [-1.0, 2.0]]
CLASSES = [0, 0, 1, 0, 1]


def batch_of(labels: torch.Tensor) -> PackedBatch:
    """A batch of which only the labels matter."""
    return replace(random_batch([1]), labels=labels)


def expected_loss() -> float:
    """Mean cross-entropy in plain Python."""
    return sum(
        -math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(LOGITS, CLASSES, strict=True)
    ) / len(LOGITS)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_loss_and_accuracy_do_not_depend_on_the_batch_size(batch_size):
    metric = ClassificationMetric(torch.device("cpu"), ["a", "b"])
    for start in range(0, len(LOGITS), batch_size):
        part = slice(start, start + batch_size)
        metric.update(torch.tensor(LOGITS[part]), batch_of(torch.tensor(CLASSES[part])), np.arange(len(LOGITS))[part])
    metric.reduce()
    assert metric.value == 3 / 5
    assert metric.line() == f"eval loss: {expected_loss():.5f}, accuracy: 0.60000"
    assert metric.numbers() == {"accuracy": 3 / 5, "loss": pytest.approx(expected_loss())}
    assert next(iter(metric.numbers())) == metric.name


CPU = torch.device("cpu")
SCORES = [0.0, 1.5, 1.5, 4.0, 5.0, 2.5, 0.0]


def random_pairs() -> torch.Tensor:
    """(examples, 2, E); the fourth and the sixth pair are as similar as each other."""
    pairs = torch.randn(len(SCORES), 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs[5] = pairs[3] * 2
    return pairs


def ranks(values: list[float]) -> list[float]:
    """The mean rank of equal values."""
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def pearson(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def expected_correlations() -> tuple[float, float]:
    cosines = []
    for u, v in random_pairs().tolist():
        dot = sum(a * b for a, b in zip(u, v, strict=True))
        cosines.append(round(dot / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v)), 12))
    return pearson(ranks(cosines), ranks(SCORES)), pearson(cosines, SCORES)


def correlate(order: list[int], batch_size: int) -> CorrelationMetric:
    metric = CorrelationMetric(CPU)
    pairs, scores = random_pairs(), torch.tensor(SCORES, dtype=torch.float64)
    for start in range(0, len(order), batch_size):
        examples = np.array(order[start : start + batch_size])
        metric.update(pairs[examples].flatten(0, 1), batch_of(scores[examples]), examples)
    metric.reduce()
    return metric


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [6, 2, 4, 0, 1, 5, 3]])
def test_correlations_do_not_depend_on_order_or_batch_size(order, batch_size):
    metric = correlate(order, batch_size)
    spearman, pearson_ = expected_correlations()
    assert metric.value == pytest.approx(spearman, abs=1e-9)
    assert metric.line() == f"spearman corr: {spearman:.4f}, pearson corr: {pearson_:.4f}"
    assert list(metric.numbers().items()) == [("spearman", metric.value), ("pearson", pytest.approx(pearson_))]
    assert metric.value == correlate(list(range(7)), 7).value


def correlate_a_share(folder: Path) -> None:
    order = [[6, 2, 0, 3], [4, 1, 5], []][distributed.rank()]
    metric = correlate(order, 3)
    (folder / str(distributed.rank())).write_text(f"{metric.value!r} {metric.line()}")


@pytest.mark.slow
def test_correlations_over_uneven_shares_of_three_processes(tmp_path):
    run_processes(3, correlate_a_share, tmp_path)
    metric = correlate(list(range(7)), 7)
    assert [path.read_text() for path in tmp_path.iterdir()] == [f"{metric.value!r} {metric.line()}"] * 3


def test_embeddings_that_are_all_alike_correlate_with_nothing():
    metric = CorrelationMetric(CPU)
    metric.update(torch.ones(6, 4), batch_of(torch.tensor([1.0, 2.0, 3.0])), np.arange(3))
    metric.reduce()
    assert metric.line() == "spearman corr: 0.0000, pearson corr: 0.0000"


# Reports

LABELS = ["a", "b", "c", "none"]


def test_classes_as_scikit_learn_has_them():
    rng = np.random.default_rng(3)
    gold, predicted = rng.integers(0, 3, (2, 200))
    report = class_report(gold, predicted, LABELS)
    options = {"labels": range(4), "zero_division": 0}
    assert report["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    assert report["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro", **options))
    assert report["micro_f1"] == pytest.approx(f1_score(gold, predicted, average="micro", **options))
    confusions = [[report["confusions"].get(row, {}).get(column, 0) for column in LABELS] for row in LABELS]
    assert confusions == confusion_matrix(gold, predicted, labels=range(4)).tolist()
    expected = classification_report(gold, predicted, target_names=LABELS, output_dict=True, **options)
    for label in LABELS:
        assert list(report["labels"][label].values()) == pytest.approx(list(expected[label].values()))


def test_the_report_of_many_labels_grows_with_the_examples():
    """A matrix of all of them would have 10^8 numbers."""
    names = [f"label {index}" for index in range(10_000)]
    gold, predicted = np.random.default_rng(3).integers(0, len(names), (2, 500))
    report = class_report(gold, predicted, names)
    assert sum(map(len, report["confusions"].values())) <= 500
    assert len(json.dumps(report)) < 2_000_000


@pytest.mark.parametrize("decimals", [1, 6])
def test_no_threshold_is_better(decimals):
    rng = np.random.default_rng(4)
    positive = rng.random(60) < 0.4
    cosines = (rng.normal(size=60) + positive).round(decimals).astype(np.float32)
    best = best_threshold(cosines, positive)

    def scores(threshold):
        taken = cosines >= threshold
        return accuracy_score(positive, taken), f1_score(positive, taken, zero_division=0)

    tried = [scores(threshold) for threshold in [*np.unique(cosines), cosines.max() + 1]]
    assert best["accuracy"] == pytest.approx(max(accuracy for accuracy, _ in tried))
    assert best["f1"] == pytest.approx(max(f1 for _, f1 in tried))
    assert scores(best["accuracy_threshold"])[0] == pytest.approx(best["accuracy"])
    assert scores(best["f1_threshold"])[1] == pytest.approx(best["f1"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_pair_at_all_may_be_best(dtype):
    cosines = np.array([0.9, 0.8, 0.1], dtype=dtype)
    best = best_threshold(cosines, np.array([False, False, True]))
    assert best["accuracy"] == pytest.approx(2 / 3)
    assert not (cosines >= best["accuracy_threshold"]).any()
    assert best["f1"] == pytest.approx(0.5)
    assert (cosines >= best["f1_threshold"]).all()


def test_a_threshold_between_neighbours_parts_them():
    low = np.float32(0.9)
    cosines = np.array([np.nextafter(low, np.float32(1)), low])
    best = best_threshold(cosines, np.array([True, False]))
    assert best["accuracy"] == 1
    for kind in (np.float32, np.float64):
        assert (cosines.astype(kind) >= best["accuracy_threshold"]).tolist() == [True, False]


def test_macro_f1_over_all_labels_and_over_those_that_occur():
    """scikit-learn leaves out labels that are neither gold nor predicted, unless it is told all of them."""
    gold, predicted = np.array([0, 0, 3, 3, 3]), np.array([0, 1, 3, 3, 0])
    report = class_report(gold, predicted, ["a", "b", "c", "d", "e"])
    assert report["macro_f1_present"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    expected = f1_score(gold, predicted, average="macro", labels=range(5), zero_division=0)
    assert report["macro_f1"] == pytest.approx(expected) != report["macro_f1_present"]


def test_the_table_of_examples_gives_the_numbers_of_the_report():
    metric = ClassificationMetric(CPU, ["a", "b", "never"])
    metric.update(torch.tensor([[*row, -9.0] for row in LOGITS]), batch_of(torch.tensor(CLASSES)), np.arange(5))
    metric.reduce()
    table, report = metric.example_table(), metric.report()
    assert next(iter(table.measures)) == metric.name
    for name, measure in table.measures.items():
        assert measure.of(table.arrays(measure)) == pytest.approx(report[name])
    assert table.columns["gold"] == ["a", "a", "b", "a", "b"]
    assert table.columns["predicted"] == ["a", "b", "a", "a", "b"]


def test_the_table_of_pairs_gives_the_correlations():
    metric = correlate(list(range(len(SCORES))), 3)
    table = metric.example_table()
    assert list(table.measures) == ["spearman", "pearson"]
    for name, measure in table.measures.items():
        assert measure.of(table.arrays(measure)) == pytest.approx(metric.report()[name], abs=1e-6)


def given_metrics():
    """Of a score, of several labels and of a ranking, each after an evaluation of 40 examples."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    holds = (torch.rand(40, 3, generator=generator) < 0.4).to(torch.uint8)
    relevances = torch.stack([torch.arange(40) % 4 == 0, torch.arange(40) // 4], dim=1).double()
    several = MultiLabelMetric(CPU, ["a", "b", "c"], binary_cross_entropies, Thresholds.default(3))
    for metric, outputs, labels in (
        (ScoreMetric(CPU), logits[:, :1], logits[:, 0] + logits[:, 1]),
        (several, logits, holds),
        (RankingMetric(CPU), logits[:, :1], relevances),
    ):
        metric.update(outputs, batch_of(labels), np.arange(40))
        metric.reduce()
        yield metric


def test_the_tables_of_scores_label_sets_and_rankings_give_the_numbers_of_the_report():
    for metric in given_metrics():
        table, report = metric.example_table(), metric.report()
        assert len(table.measures) >= 2
        for name, measure in table.measures.items():
            assert measure.of(table.arrays(measure)) == pytest.approx(report[name])
        first = next(iter(table.measures))
        assert report[first] == metric.value
        assert {len(column) for column in table.columns.values()} == {10 if first == "mrr@10" else 40}


def test_label_sets_do_not_depend_on_the_order_of_the_labels():
    """Else `compare` would take two models whose label files differ in it for models of different examples."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    holds = (torch.rand(20, 3, generator=generator) < 0.6).to(torch.uint8)
    tables = []
    for order in ([0, 1, 2], [2, 0, 1]):
        names = [["a", "b", "c"][index] for index in order]
        metric = MultiLabelMetric(CPU, names, binary_cross_entropies, Thresholds.default(3))
        metric.update(logits[:, order], batch_of(holds[:, order]), np.arange(20))
        metric.reduce()
        tables.append(metric.example_table())
    assert tables[0] == tables[1]
    assert ["a", "b", "c"] in tables[0].columns["gold"]


def test_whether_the_first_candidate_is_right_is_a_yes_or_no():
    """So that `compare` tests it exactly, as an accuracy."""
    *_, ranking = given_metrics()
    assert {type(value) for value in ranking.example_table().columns["hits@1"]} == {bool}
