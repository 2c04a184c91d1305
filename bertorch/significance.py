"""Whether two models differ: tests over the examples of one file, and over runs that differ by their seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb
from typing import NamedTuple

import numpy as np

from bertorch.resampling import Measure, blocks, bootstrap_weights, percentile_interval

DRAWS = 10_000
_EQUAL = 1e-12  # differences that differ by less differ by rounding


class SignificanceTest(NamedTuple):
    """The p-value of a two-sided test, and what it is of, in words."""

    p: float
    description: str


def mcnemar_test(right: np.ndarray, others_right: np.ndarray) -> SignificanceTest:
    """The exact McNemar test of two models on the same examples; `right` (N,) bool says which each has right.

    References:
        McNemar, Note on the sampling error of the difference between correlated proportions or percentages, 1947.
        Dietterich, Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms, 1998.
    """
    from scipy import stats  # noqa: PLC0415 - takes a quarter of a second, which --help need not wait for

    lost, won = int((right & ~others_right).sum()), int((others_right & ~right).sum())
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return SignificanceTest(p, f"exact McNemar test; right in one alone: {lost}, {won}")


def randomisation_test(
    measure: Measure,
    columns: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> SignificanceTest:
    """Whether a measure differs between two models, by exchanging their predictions of random examples.

    Where few examples differ, so that all their exchanges are no more than `draws`, all are made.

    References:
        Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989; Yeh, More accurate tests for the statistical
        significance of result differences, COLING 2000.

    Args:
        measure: see `bertorch.resampling`.
        columns, others: those of the measure, (N,) each, of the one model and the other.
        draws, seed: how many exchanges.
    """
    count = len(columns[0])
    estimate = measure.estimator([np.concatenate(each) for each in zip(columns, others, strict=True)])  # of 2N examples

    def differences(exchanged: np.ndarray) -> np.ndarray:
        """(D,), from which examples (D, N) are exchanged in each draw, 0 or 1."""
        first, second = np.hstack([1 - exchanged, exchanged]), np.hstack([exchanged, 1 - exchanged])  # (D, 2N) each
        return np.abs(estimate(second) - estimate(first))

    differ = np.flatnonzero(np.any([a != b for a, b in zip(columns, others, strict=True)], axis=0))  # (M,)
    observed = differences(np.zeros((1, count)))[0] - _EQUAL
    is_exact = 2 ** len(differ) <= draws
    as_large = total = 0
    random = np.random.default_rng(seed)
    for rows in blocks(2 ** len(differ) if is_exact else draws, 2 * count):
        if is_exact:
            bits = np.arange(total, total + rows)[:, None] >> np.arange(len(differ)) & 1  # (d, M)
        else:
            bits = random.integers(0, 2, (rows, len(differ)), dtype=np.int8)  # (d, M)
        exchanged = np.zeros((rows, count))  # (d, N)
        exchanged[:, differ] = bits
        as_large += int((differences(exchanged) >= observed).sum())
        total += rows
    exchanges = f"{'all ' if is_exact else ''}{total} exchanges"
    return SignificanceTest(_share(as_large, total, is_exact=is_exact), f"randomisation test, {exchanges}")


def paired_test(
    measure: Measure,
    columns: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> SignificanceTest:
    """Whether a measure differs between two models: exact where it counts right examples, else by random exchanges."""
    if measure.kind == "mean" and columns[0].dtype == others[0].dtype == bool:
        return mcnemar_test(columns[0], others[0])
    return randomisation_test(measure, columns, others, draws=draws, seed=seed)


def permutation_test(
    values: Sequence[float], others: Sequence[float], *, draws: int = DRAWS, seed: int = 0
) -> SignificanceTest:
    """Whether the means of two groups of runs differ, by splitting all their values into such groups anew.

    All splits are made, or `draws` random ones where there are more. With few runs no p-value can be small: the least
    is in the description.

    References:
        Fisher, The Design of Experiments, 1935; Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005.
    """
    pooled, size = np.array([*values, *others]), len(values)
    observed = abs(np.mean(others) - np.mean(values)) - _EQUAL
    splits = comb(len(pooled), size)
    is_exact = splits <= draws
    as_large = 0
    chosen = combinations(range(len(pooled)), size) if is_exact else _random_splits(len(pooled), size, draws, seed)
    while some := list(islice(chosen, 4096)):
        sums = pooled[np.array(some)].sum(axis=1)  # (d,), of the first group
        means = sums / size, (pooled.sum() - sums) / len(others)  # (d,) each
        as_large += int((np.abs(means[1] - means[0]) >= observed).sum())
    total = splits if is_exact else draws
    p = _share(as_large, total, is_exact=is_exact)
    # The same split with the groups' names exchanged is as large, where the groups have one size.
    least = (1 + (len(values) == len(others))) / splits if is_exact else 1 / (draws + 1)
    which = f"{'all ' if is_exact else ''}{total} splits of {size} + {len(others)} runs"
    return SignificanceTest(p, f"permutation test, {which}; least possible p {least:.2g}")


def _random_splits(count: int, size: int, draws: int, seed: int) -> Iterator[tuple[int, ...]]:
    random = np.random.default_rng(seed)
    return (tuple(random.permutation(count)[:size].tolist()) for _ in range(draws))


def _share(as_large: int, total: int, *, is_exact: bool) -> float:
    """The p-value; of random draws the observed one counts as one more, so that it is never 0."""
    return as_large / total if is_exact else (as_large + 1) / (total + 1)


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, adjusted so that all of them together err as seldom as one.

    References:
        Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class GroupDraws:
    """The mean of a measure over a group of runs: of all examples, and in each draw."""

    values: list[float]  # of each run, of all examples
    drawn: np.ndarray  # (draws,), of the mean over runs and examples drawn with replacement

    @property
    def value(self) -> float:
        """The mean over the runs."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float]:
        """The percentile bootstrap interval of `value`."""
        return percentile_interval(self.drawn)


def draw_groups(
    measure: Measure, groups: Sequence[Sequence[Sequence[np.ndarray]]], *, draws: int, seed: int = 0
) -> list[GroupDraws]:
    """Hierarchical bootstrap of a measure over the runs of each group and the examples of one file.

    A draw has the same examples for all runs, so that differences of groups are paired, and each group's runs drawn
    with replacement; a group of one run has it always.

    References:
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.

    Args:
        measure: see `bertorch.resampling`.
        groups: runs, and of each the columns (N,) of the measure.
        draws, seed: how many.
    """
    estimators = [[measure.estimator(columns) for columns in runs] for runs in groups]
    count = len(groups[0][0][0])
    parts: list[list[list[np.ndarray]]] = [[[] for _ in runs] for runs in groups]
    for weights in bootstrap_weights(count, draws=draws, seed=seed):
        for runs, found in zip(estimators, parts, strict=True):
            for estimate, blocks_of_run in zip(runs, found, strict=True):
                blocks_of_run.append(estimate(weights))
    results = []
    for index, (columns_of_runs, found) in enumerate(zip(groups, parts, strict=True)):
        values = np.stack([np.concatenate(blocks_of_run) for blocks_of_run in found])  # (runs, draws)
        random = np.random.default_rng([seed, index])
        chosen = random.integers(0, len(values), (len(values), draws))  # (runs, draws)
        drawn = np.take_along_axis(values, chosen, axis=0).mean(axis=0)  # (draws,)
        results.append(GroupDraws([measure.of(columns) for columns in columns_of_runs], drawn))
    return results
