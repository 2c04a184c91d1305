"""Thresholds against enumeration, and against scikit-learn on predictions made with them."""

from itertools import pairwise, product

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bertorch.tasks.thresholds import Thresholds, best_thresholds, cross_fitted


def candidates(column: np.ndarray) -> list[float]:
    """A threshold for each way to split a label's scores."""
    values = sorted(set(column.tolist()))
    return [values[0] - 1, *((a + b) / 2 for a, b in pairwise(values)), values[-1] + 1]


def f1(scores, gold, thresholds, average) -> float:
    predicted = scores > np.array(thresholds)
    right, parts = (gold & predicted).sum(axis=0), gold.sum(axis=0) + predicted.sum(axis=0)  # (C,) each
    if average == "micro":
        return 2 * right.sum() / max(parts.sum(), 1)
    return np.mean(2 * right / np.maximum(parts, 1))


def test_the_f1_of_these_tests_is_that_of_scikit_learn():
    scores, gold = examples(1, size=30, labels=3)
    for average in ("macro", "micro"):
        assert f1(scores, gold, [0.0] * 3, average) == pytest.approx(f1_score(gold, scores > 0, average=average))


def examples(seed: int, size: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that agree with the gold labels more often than not, some equal, not around 0."""
    random = np.random.default_rng(seed)
    gold = random.random((size, labels)) < random.uniform(0.1, 0.7, labels)
    scores = gold * 1.5 + random.normal(size=(size, labels)) - 2.0 * np.arange(labels)
    return scores.round(1).astype(np.float32).astype(np.float64), gold


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_thresholds_are_better(average, seed):
    scores, gold = examples(seed, size=7, labels=3)
    best = max(f1(scores, gold, chosen, average) for chosen in product(*map(candidates, scores.T)))
    thresholds = best_thresholds(scores, gold, average)
    assert f1(scores, gold, thresholds, average) == pytest.approx(best, abs=1e-12)


def test_each_label_of_many_examples_has_its_best_f1():
    scores, gold = examples(7, size=400, labels=4)
    thresholds = best_thresholds(scores, gold, "macro")
    for index, threshold in enumerate(thresholds):
        column, holds = scores[:, index], gold[:, index]
        best = max(f1(column[:, None], holds[:, None], [each], "micro") for each in candidates(column))
        assert f1_score(holds, column > threshold) == pytest.approx(best, abs=1e-12)


def test_the_micro_f1_is_never_below_that_of_the_macro_thresholds():
    for seed in range(20):
        scores, gold = examples(seed, size=60, labels=8)
        micro, macro = (best_thresholds(scores, gold, average) for average in ("micro", "macro"))
        assert f1(scores, gold, micro, "micro") >= f1(scores, gold, macro, "micro")
        assert f1(scores, gold, macro, "macro") >= f1(scores, gold, micro, "macro")


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_the_default_stays_where_nothing_is_better(average):
    scores = np.array([[3.0, -1.0], [2.0, -4.0], [-2.0, -3.0], [-1.0, -2.0]])
    gold = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], dtype=bool)  # the second label has no example
    assert best_thresholds(scores, gold, average).tolist() == [0.0, 0.0]
    assert best_thresholds(scores[:0], gold[:0], average).tolist() == [0.0, 0.0]
    assert Thresholds.default(2).values.tolist() == [0.0, 0.0]


def test_a_label_that_is_always_wrong_costs_micro_f1_only():
    scores, gold = np.array([[1.0, 4.0], [2.0, 5.0]]), np.array([[1, 0], [1, 0]], dtype=bool)
    assert not (scores > best_thresholds(scores, gold, "micro"))[:, 1].any()
    assert best_thresholds(scores, gold, "macro")[1] == 0


def test_equal_and_neighbouring_scores_are_split_as_they_can_be():
    low = 1.5
    scores = np.array([[low], [low], [np.nextafter(low, 2)], [0.5]])
    for gold in ([1, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1]):
        holds = np.array(gold, dtype=bool)[:, None]
        threshold = best_thresholds(scores, holds, "macro")[0]
        # The candidates of the enumeration have no middle between neighbours, so these are the splits.
        best = max(f1_score(gold, scores[:, 0] >= value) for value in (low, np.nextafter(low, 2), 0.5))
        assert f1_score(gold, scores[:, 0] > threshold) == best


def test_cross_fitting_counts_each_half_with_the_thresholds_of_the_other():
    scores, gold = examples(3, size=41, labels=3)
    predicted = cross_fitted(scores, gold, "macro")
    # Which half an example is in follows from what changes with its own label: nothing of its own half.
    changed = gold.copy()
    changed[0] = ~changed[0]
    differs = (cross_fitted(scores, changed, "macro") != predicted).any(axis=1)
    assert not differs[0]
    halves = np.array_split(np.random.default_rng([0, 0]).permutation(41), 2)
    for tuned, counted in (halves, halves[::-1]):
        thresholds = best_thresholds(scores[tuned], gold[tuned], "macro")
        np.testing.assert_array_equal(predicted[counted], scores[counted] > thresholds)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_cross_fitting_shows_that_tuning_on_noise_gives_nothing(average):
    random = np.random.default_rng(0)
    scores, gold = random.normal(size=(200, 12)), random.random((200, 12)) < 0.15
    tuned = f1(scores, gold, best_thresholds(scores, gold, average), average)
    honest = f1_score(gold, cross_fitted(scores, gold, average), average=average, zero_division=0)
    assert honest < tuned - 0.02


def test_one_example_can_be_tuned_on():
    assert cross_fitted(np.array([[1.0, -1.0]]), np.array([[True, False]]), "micro").tolist() == [[True, False]]
