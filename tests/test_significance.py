"""Tests of difference against enumeration, scipy, and what they promise where nothing differs."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from scipy import stats

from bertorch.resampling import Measure, bootstrap_intervals, percentile_interval
from bertorch.significance import draw_groups, holm, mcnemar_test, permutation_test, randomisation_test
from tests.test_resampling import MEASURES, expected, random_table

ACCURACY = MEASURES["accuracy"]


def other_table(table, seed: int):
    """Another model's predictions on the same examples."""
    other = random_table(len(table.columns["gold"]), seed=seed)
    given = {name: table.columns[name] for name in ("gold", "entities", "score")}
    columns = dict(other.columns) | given
    columns["hits"] = np.minimum(columns["guesses"], columns["entities"]).tolist()
    columns["right"] = [a == b for a, b in zip(columns["gold"], columns["predicted"], strict=True)]
    return other._replace(columns=columns)


def exchanged(table, other, bits):
    """The table with the other's values where a bit is set."""
    columns = {
        name: [b if bit else a for a, b, bit in zip(values, other.columns[name], bits, strict=True)]
        for name, values in table.columns.items()
    }
    return table._replace(columns=columns)


def enumerated_p(name: str, table, other) -> float:
    """By all exchanges, in plain loops."""
    count = len(table.columns["gold"])
    everything = np.arange(count)

    def difference(bits) -> float:
        ours, theirs = exchanged(table, other, bits), exchanged(table, other, [not bit for bit in bits])
        return abs(expected(name, theirs, everything) - expected(name, ours, everything))

    observed = difference([False] * count)
    differences = [difference(bits) for bits in product([False, True], repeat=count)]
    return sum(each >= observed - 1e-9 for each in differences) / len(differences)


def test_mcnemar_by_hand():
    right = np.array([True] * 1 + [False] * 8 + [True] * 20)
    others = np.array([False] * 1 + [True] * 8 + [True] * 20)
    result = mcnemar_test(right, others)
    assert result.p == pytest.approx(2 * (comb(9, 0) + comb(9, 1)) / 2**9)
    assert result.p == pytest.approx(stats.binomtest(1, 9).pvalue)
    assert result.description == "exact McNemar test; right in one alone: 1, 8"


def test_mcnemar_of_equal_models():
    right = np.array([True, False])
    assert mcnemar_test(right, right).p == 1


@pytest.mark.parametrize(("name", "count"), [("f1", 7), ("macro_f1", 5), ("pearson", 7)])
def test_randomisation_of_few_examples_is_their_enumeration(name, count):
    table = random_table(count, seed=5)
    other = other_table(table, seed=6)
    measure = MEASURES[name]
    result = randomisation_test(measure, table.arrays(measure), other.arrays(measure))
    assert result.p == pytest.approx(enumerated_p(name, table, other))
    assert result.description.startswith("randomisation test, all ")


def test_randomisation_of_more_examples_is_close_to_their_enumeration():
    table = random_table(12, seed=1)
    other = other_table(table, seed=2)
    measure = MEASURES["f1"]
    exact = randomisation_test(measure, table.arrays(measure), other.arrays(measure)).p
    drawn = randomisation_test(measure, table.arrays(measure), other.arrays(measure), draws=2000)
    assert drawn.p == pytest.approx(exact, abs=0.04)
    assert drawn.description == "randomisation test, 2000 exchanges"


def test_randomisation_of_many_examples():
    """The number of all exchanges is beyond what a float holds."""
    random = np.random.default_rng(0)
    score = random.normal(size=2000)
    better, worse = (score + noise * random.normal(size=2000) for noise in (0.1, 1))
    result = randomisation_test(MEASURES["spearman"], [worse, score], [better, score], draws=100)
    assert result.description == "randomisation test, 100 exchanges"
    assert result.p == pytest.approx(1 / 101)


def test_randomisation_of_equal_models():
    measure = MEASURES["spearman"]
    columns = random_table(30).arrays(measure)
    assert randomisation_test(measure, columns, columns).p == 1


def test_randomisation_finds_a_difference():
    random = np.random.default_rng(0)
    score = random.normal(size=200)
    better, worse = score + random.normal(size=200), score + 3 * random.normal(size=200)
    assert randomisation_test(MEASURES["spearman"], [worse, score], [better, score], draws=500).p == pytest.approx(
        1 / 501
    )


def test_p_values_are_about_uniform_where_nothing_differs():
    random = np.random.default_rng(0)
    of_examples, of_runs = [], []
    for seed in range(400):
        models = [[values] for values in random.normal(size=(2, 80))]
        of_examples.append(randomisation_test(Measure("mean", ("score",)), *models, draws=200, seed=seed).p)
        of_runs.append(permutation_test(*random.normal(size=(2, 5))).p)
    for values in (of_examples, of_runs):
        shares = [np.mean(np.array(values) <= level) for level in (0.05, 0.25, 0.5, 0.75)]
        assert shares == pytest.approx([0.05, 0.25, 0.5, 0.75], abs=0.06)
        assert 0.02 <= shares[0] <= 0.08


def test_p_values_of_counts_are_never_too_small():
    """They go in steps, and are then a little too large."""
    random = np.random.default_rng(0)
    of_entities, of_labels = [], []
    for seed in range(300):
        entities = random.integers(1, 4, 60)
        models = [[random.binomial(entities, 0.7), entities, entities] for _ in range(2)]
        of_entities.append(randomisation_test(MEASURES["f1"], *models, draws=200, seed=seed).p)
        of_labels.append(mcnemar_test(*(random.random((2, 300)) < 0.8)).p)
    for values in (of_entities, of_labels):
        assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.07


def test_permutation_of_runs_is_their_enumeration():
    values, others = [0.91, 0.92, 0.93], [0.925, 0.94, 0.95, 0.93]
    pooled = [*values, *others]
    observed = abs(np.mean(others) - np.mean(values))
    as_large = 0
    for chosen in combinations(range(7), 3):
        rest = [pooled[index] for index in range(7) if index not in chosen]
        as_large += abs(np.mean(rest) - np.mean([pooled[index] for index in chosen])) >= observed - 1e-9
    result = permutation_test(values, others)
    assert result.p == pytest.approx(as_large / comb(7, 3))
    assert result.description == "permutation test, all 35 splits of 3 + 4 runs; least possible p 0.029"


def test_the_least_possible_p_is_possible():
    assert permutation_test([1.0, 2.0], [3.0, 4.0]).p == pytest.approx(1 / 3)
    for sizes in ((2, 2), (1, 3), (3, 3)):
        result = permutation_test(
            [0.1 * index for index in range(sizes[0])], [9.0 + index for index in range(sizes[1])]
        )
        assert float(result.description.rsplit(" ", 1)[1]) == pytest.approx(result.p, rel=0.05), sizes


def test_many_runs_are_split_at_random():
    random = np.random.default_rng(1)
    values, others = random.normal(size=10), random.normal(0.8, size=12)
    theirs = stats.permutation_test(
        (values, others), lambda x, y, axis: np.mean(x, axis) - np.mean(y, axis), vectorized=True, n_resamples=10_000,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    result = permutation_test(values.tolist(), others.tolist())
    assert result.p == pytest.approx(theirs.pvalue, abs=0.02)
    assert "10000 splits" in result.description


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


def test_a_group_of_one_run_has_the_interval_of_its_evaluation():
    table = random_table(50)
    drawn = draw_groups(ACCURACY, [[table.arrays(ACCURACY)]], draws=1000)
    assert drawn[0].interval == pytest.approx(bootstrap_intervals(table)["accuracy"])
    assert drawn[0].value == pytest.approx(np.mean(table.columns["right"]))


def test_groups_are_paired_by_their_examples():
    columns = random_table(50).arrays(ACCURACY)
    first, second = draw_groups(ACCURACY, [[columns], [columns]], draws=200)
    assert (first.drawn == second.drawn).all()


def test_the_hierarchical_bootstrap_is_that_of_loops():
    tables = [random_table(40, seed=seed) for seed in range(3)]
    (drawn,) = draw_groups(ACCURACY, [[table.arrays(ACCURACY) for table in tables]], draws=60, seed=4)
    examples = np.random.default_rng(4).integers(0, 40, (60, 40))
    runs = np.random.default_rng([4, 0]).integers(0, 3, (3, 60))
    values = [
        np.mean([expected("accuracy", tables[run], examples[draw]) for run in runs[:, draw]]) for draw in range(60)
    ]
    assert drawn.drawn == pytest.approx(np.array(values))
    assert drawn.interval == percentile_interval(drawn.drawn)
    assert drawn.values == pytest.approx([expected("accuracy", table, np.arange(40)) for table in tables])
