"""Measures over examples that are drawn again and again, for bootstrap intervals and tests; numpy alone.

A measure is a number of N examples, such as an accuracy. It is computed from columns (N,) and weights (D, N): how often
each example is in each of D draws. So all draws are computed at once, and none of them copies an example.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

DRAWS = 1000
LEVEL = 0.95
_CELLS = 2**17  # numbers of a block of weights: what is computed at once stays small

Estimator = Callable[[np.ndarray], np.ndarray]  # weights (D, N) → values (D,)


@dataclass(frozen=True)
class Measure:
    """How a number comes from columns of the examples."""

    kind: str  # in `KINDS`
    columns: tuple[str, ...]  # their names
    classes: int = 0  # labels of the model, of a macro average over them

    def estimator(self, columns: Sequence[np.ndarray]) -> Estimator:
        """The measure of draws from N examples, whose `columns` (N,) are in the order of the names."""
        return KINDS[self.kind](self, *columns)

    def of(self, columns: Sequence[np.ndarray]) -> float:
        """The measure of all examples."""
        return float(self.estimator(columns)(np.ones((1, len(columns[0]))))[0])


class ExampleTable(NamedTuple):
    """What was predicted for each of N examples, and what measures are computed from it."""

    columns: Mapping[str, Sequence[Any]]  # N values of each, as JSON has them; `gold` is what was given
    measures: Mapping[str, Measure]  # by name; the first is that by which the best model is chosen

    def arrays(self, measure: Measure) -> list[np.ndarray]:
        """The columns (N,) of a measure."""
        return [_array(self.columns[name]) for name in measure.columns]


def _array(values: Sequence[Any]) -> np.ndarray:
    if not any(isinstance(value, list) for value in values):
        return np.asarray(values)
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):  # numpy would take lists of one length for an axis
        array[index] = value
    return array


def _mean(_: Measure, values: np.ndarray) -> Estimator:
    numbers = values.astype(np.float64)  # (N,)
    return lambda weights: weights @ numbers / weights.sum(axis=1)  # (D,)


def _f1(_: Measure, right: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> Estimator:
    counts = np.stack([2 * right, predicted + gold], axis=1).astype(np.float64)  # (N, 2)

    def estimate(weights: np.ndarray) -> np.ndarray:
        right, all_ = (weights @ counts).T  # (D,) each
        return right / np.maximum(all_, 1)

    return estimate


def _macro_f1(measure: Measure, gold: np.ndarray, predicted: np.ndarray) -> Estimator:
    """The mean F1 over the labels of the model; that of a label that occurs nowhere is 0."""
    (gold_rows, gold_names), (predicted_rows, predicted_names) = _labels(gold), _labels(predicted)
    names, ids = np.unique([*gold_names, *predicted_names], return_inverse=True)  # (labels,), (K,)
    rows = np.concatenate([gold_rows, predicted_rows])  # (K,), the example of each
    pairs = rows * len(names) + ids  # (K,)
    is_right = np.isin(pairs[: len(gold_rows)], pairs[len(gold_rows) :])  # (gold,)
    right_rows, right_ids = (each[: len(gold_rows)][is_right] for each in (rows, ids))  # (right,) each

    def estimate(weights: np.ndarray) -> np.ndarray:
        values = []
        for row in weights:  # (N,)
            right = np.bincount(right_ids, row[right_rows], len(names))  # (labels,)
            found = np.bincount(ids, row[rows], len(names))  # (labels,)
            values.append((2 * right / np.maximum(found, 1)).sum() / measure.classes)
        return np.array(values)  # (D,)

    return estimate


def _labels(values: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """The labels of N examples, each of which has one or a list, (K,), and the example (K,) of each."""
    sets = [value if isinstance(value, list) else [value] for value in values.tolist()]
    rows = np.repeat(np.arange(len(sets)), list(map(len, sets)))  # (K,)
    return rows, [name for names in sets for name in names]


def _pearson(_: Measure, x: np.ndarray, y: np.ndarray) -> Estimator:
    x, y = (each - each.mean() for each in (x.astype(np.float64), y.astype(np.float64)))  # (N,) each
    products = np.stack([x, y, x * x, y * y, x * y], axis=1)  # (N, 5)

    def estimate(weights: np.ndarray) -> np.ndarray:
        means = (weights @ products / weights.sum(axis=1, keepdims=True)).T  # (5, D)
        return _correlation(*means)

    return estimate


def _spearman(_: Measure, x: np.ndarray, y: np.ndarray) -> Estimator:
    ranks_of_x, ranks_of_y = _weighted_ranks(x), _weighted_ranks(y)

    def estimate(weights: np.ndarray) -> np.ndarray:
        by_example = np.ascontiguousarray(weights.T)  # (N, D): whole rows are sorted, not single numbers
        total = weights.sum(axis=1)  # (D,)
        ranks_x, ranks_y = (ranks(by_example) - (total + 1) / 2 for ranks in (ranks_of_x, ranks_of_y))  # (N, D) each
        pairs = ((ranks_x, ranks_x), (ranks_y, ranks_y), (ranks_x, ranks_y))
        xx, yy, xy = (np.einsum("nd,nd,nd->d", by_example, *pair) for pair in pairs)  # (D,) each
        nothing = np.zeros_like(total)  # the mean of ranks around their middle
        return _correlation(nothing, nothing, xx, yy, xy)

    return estimate


def _weighted_ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From weights (N, D) to the mid-ranks (N, D) of the values (N,) in each draw, from 1."""
    different, group = np.unique(values, return_inverse=True)  # (groups,), (N,)
    order = np.argsort(group, kind="stable")  # (N,)
    starts = np.searchsorted(group[order], np.arange(len(different)))  # (groups,)

    def ranks(weights: np.ndarray) -> np.ndarray:
        sizes = weights[order]  # (N, D)
        if len(different) < len(values):
            sizes = np.add.reduceat(sizes, starts, axis=0)  # (groups, D)
        return (sizes.cumsum(axis=0) - (sizes - 1) / 2)[group]  # (N, D)

    return ranks


def _correlation(x: np.ndarray, y: np.ndarray, xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Pearson's from means (D,) of numbers and of their products; 0 where a side is constant and it is undefined."""
    variances = [square - mean**2 for square, mean in ((xx, x), (yy, y))]  # (D,) each
    is_defined = (variances[0] > 1e-13 * xx) & (variances[1] > 1e-13 * yy)  # of a constant, rounding leaves a little
    scale = np.sqrt(np.where(is_defined, variances[0] * variances[1], 1.0))  # (D,)
    return np.where(is_defined, (xy - x * y) / scale, 0.0)


# How a measure is computed, by the names in `report.json`, from these columns:
KINDS: dict[str, Callable[..., Estimator]] = {
    "mean": _mean,  # a number of each example, such as whether it is right
    "f1": _f1,  # counts of each example: right, predicted, gold
    "macro_f1": _macro_f1,  # a gold and a predicted label, or lists of them
    "pearson": _pearson,  # two numbers
    "spearman": _spearman,  # two numbers
}


def blocks(draws: int, count: int) -> Iterator[int]:
    """How many draws from this many examples to compute at once, until there are `draws`."""
    size = max(1, _CELLS // count)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def bootstrap_weights(count: int, *, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """Blocks (d, N), `draws` rows together: how often each of N examples is among N drawn with replacement."""
    random = np.random.default_rng(seed)
    for rows in blocks(draws, count):
        drawn = random.integers(0, count, (rows, count))  # (d, N)
        drawn += np.arange(0, rows * count, count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """What the middle `LEVEL` of values (D,) lies between."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_intervals(table: ExampleTable, *, draws: int = DRAWS, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The percentile bootstrap interval of each measure; the same draws for all.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    estimators = {name: measure.estimator(table.arrays(measure)) for name, measure in table.measures.items()}
    count = len(next(iter(table.columns.values())))
    parts = [
        [estimate(weights) for estimate in estimators.values()]
        for weights in bootstrap_weights(count, draws=draws, seed=seed)
    ]
    values = map(np.concatenate, zip(*parts, strict=True))  # (draws,) each
    return {name: percentile_interval(each) for name, each in zip(estimators, values, strict=True)}
