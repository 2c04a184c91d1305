"""Measures against scikit-learn and scipy, intervals against a loop that copies examples."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from bertorch import resampling
from bertorch.resampling import ExampleTable, Measure, bootstrap_intervals, bootstrap_weights

LABELS = [*"abcd"]
MEASURES = {
    "accuracy": Measure("mean", ("right",)),
    "f1": Measure("f1", ("hits", "guesses", "entities")),
    "macro_f1": Measure("macro_f1", ("gold", "predicted"), classes=len(LABELS) + 1),
    "pearson": Measure("pearson", ("cosine", "score")),
    "spearman": Measure("spearman", ("cosine", "score")),
}


def random_table(count: int, seed: int = 0) -> ExampleTable:
    """Columns of all measures; cosines and scores have ties."""
    random = np.random.default_rng(seed)
    gold = random.choice(LABELS, count)
    predicted = np.where(random.random(count) < 0.6, gold, random.choice(LABELS, count))
    guesses, entities = random.integers(0, 4, (2, count))
    cosine = random.normal(size=count).round(1)
    columns = {
        "gold": gold,
        "predicted": predicted,
        "right": gold == predicted,
        "hits": np.minimum(guesses, entities) // 2,
        "guesses": guesses,
        "entities": entities,
        "cosine": cosine,
        "score": (cosine + random.normal(size=count)).round(),
    }
    return ExampleTable({name: column.tolist() for name, column in columns.items()}, MEASURES)


def expected(name: str, table: ExampleTable, drawn) -> float:
    """A measure of the examples with these indices, by other libraries or in plain Python."""
    columns = {key: np.array(values)[drawn] for key, values in table.columns.items()}
    if name == "accuracy":
        return accuracy_score(columns["gold"], columns["predicted"])
    if name == "f1":
        return 2 * columns["hits"].sum() / (columns["guesses"].sum() + columns["entities"].sum())
    if name == "macro_f1":  # one label occurs nowhere
        labels = [*LABELS, "never"]
        return f1_score(columns["gold"], columns["predicted"], labels=labels, average="macro", zero_division=0)
    correlate = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name]
    return correlate(columns["cosine"], columns["score"]).statistic


@pytest.mark.parametrize("name", MEASURES)
def test_measures(name):
    table = random_table(60)
    measure = MEASURES[name]
    assert measure.of(table.arrays(measure)) == pytest.approx(expected(name, table, np.arange(60)), abs=1e-12)


@pytest.mark.parametrize("cells", [2**17, 100])  # all draws at once, and block by block
def test_the_bootstrap_is_that_of_a_loop_with_the_same_draws(cells, monkeypatch):
    monkeypatch.setattr(resampling, "_CELLS", cells)
    table = random_table(40)
    ours = bootstrap_intervals(table, draws=50, seed=3)
    all_drawn = np.random.default_rng(3).integers(0, 40, (50, 40))
    for name in MEASURES:
        values = [expected(name, table, drawn) for drawn in all_drawn]
        assert ours[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-9), name


def test_intervals_are_about_those_of_scipy():
    table = random_table(300)
    cosine, score = (np.array(table.columns[name]) for name in ("cosine", "score"))
    theirs = stats.bootstrap(
        (cosine, score), lambda x, y, axis: stats.pearsonr(x, y, axis=axis).statistic, paired=True, vectorized=True,
        n_resamples=1000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert bootstrap_intervals(table)["pearson"] == pytest.approx(theirs, abs=0.02)


def test_intervals_hold_the_truth_95_times_of_100():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        table = ExampleTable({"right": (random.random(200) < 0.8).tolist()}, {"accuracy": MEASURES["accuracy"]})
        low, high = bootstrap_intervals(table, draws=400)["accuracy"]
        held += low <= 0.8 <= high
    assert 0.91 <= held / 300 <= 0.98


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_where_a_side_is_constant_the_correlation_is_0(kind):
    measure = Measure(kind, ("x", "y"))
    columns = [np.array([0.1, 0.1, 0.7]), np.array([1.0, 2.0, 3.0])]
    weights = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [2.0, 0.0, 1.0]])
    assert measure.estimator(columns)(weights) == pytest.approx([0, 0, 1])


def test_weights_draw_as_many_examples_as_there_are():
    weights = np.concatenate(list(bootstrap_weights(30, draws=20, seed=0)))
    assert weights.shape == (20, 30)
    assert (weights.sum(axis=1) == 30).all()


@pytest.mark.parametrize("most", [1, 3])  # labels of an example; with one, all lists are of one length
def test_macro_f1_of_several_labels(most):
    random = np.random.default_rng(most)
    sets = [
        [sorted(random.choice(LABELS, random.integers(most == 1, most + 1), replace=False).tolist()) for _ in range(50)]
        for _ in range(2)
    ]
    table = ExampleTable(dict(zip(("gold", "predicted"), sets, strict=True)), {"macro_f1": MEASURES["macro_f1"]})
    columns = table.arrays(MEASURES["macro_f1"])
    matrices = [[[label in each for label in LABELS] for each in column] for column in sets]
    theirs = f1_score(*np.array(matrices), average="macro", zero_division=0)
    assert MEASURES["macro_f1"].of(columns) == pytest.approx(theirs * len(LABELS) / (len(LABELS) + 1))
