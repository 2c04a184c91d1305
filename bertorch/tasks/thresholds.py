"""Thresholds over which labels hold: those that are best by F1, and what they give on examples they were not tuned on.

A label holds if its score, a logit, is above its threshold.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from bertorch.tasks.fitting import FittedFile, random_halves

DEFAULT = 0.0  # a probability of one half


@dataclass(frozen=True)
class Thresholds:
    """A threshold for each label, and where it comes from."""

    values: np.ndarray  # (C,) fp64
    average: str | None = None  # of the F1 that they were tuned for; None: not tuned, and all are `DEFAULT`
    file: FittedFile | None = None  # that they were tuned on

    @classmethod
    def default(cls, num_labels: int) -> Self:
        """Those of a model that was not tuned."""
        return cls(np.full(num_labels, DEFAULT))

    def settings(self) -> dict[str, Any]:
        """What the folder keeps, as JSON has it: nothing of a model that was not tuned."""
        if self.file is None:
            return {}
        return {"thresholds": {"values": self.values.tolist(), "average": self.average, **self.file.settings()}}


def best_thresholds(scores: np.ndarray, gold: np.ndarray, average: str) -> np.ndarray:
    """The thresholds (C,) with the best F1 of scores (N, C) and gold labels (N, C) bool, of all thresholds there are.

    The macro F1 is a sum over labels, so each gets the best of its N+1 cuts. The micro F1 is a ratio of such sums,
    which Dinkelbach's method maximises: with `rate` the best F1 so far, each label gets the cut with the largest
    2·right − rate·predicted, until that raises the F1 no more. Of equally good cuts the one nearest to `DEFAULT` is
    taken, and `DEFAULT` itself where it is one: so a label without a positive example is not tuned for macro F1.

    References:
        Dinkelbach, On Nonlinear Fractional Programming, Management Science 1967.
    """
    cuts = [_Cuts.of(*columns) for columns in zip(scores.T, gold.T, strict=True)]
    chosen = [cut.best(2 * cut.right / np.maximum(cut.taken + cut.right[-1], 1)) for cut in cuts]
    if average == "micro":
        total = sum(int(cut.right[-1]) for cut in cuts)
        numerator, denominator = 0, 1  # of `rate`: in whole numbers nothing is rounded
        while True:
            now = [cut.best(2 * denominator * cut.right - numerator * cut.taken) for cut in cuts]
            right = sum(int(cut.right[index]) for cut, index in zip(cuts, now, strict=True))
            taken = sum(int(cut.taken[index]) for cut, index in zip(cuts, now, strict=True))
            if 2 * right * denominator <= numerator * (taken + total):
                break
            chosen, numerator, denominator = now, 2 * right, taken + total
    return np.array([cut.thresholds[index] for cut, index in zip(cuts, chosen, strict=True)])


def cross_fitted(scores: np.ndarray, gold: np.ndarray, average: str) -> np.ndarray:
    """What tuned thresholds predict for examples that they were not tuned on, (N, C) bool.

    A random half of the examples is predicted with the thresholds of the other half, and the other way round.
    """
    halves = random_halves(len(scores))
    predicted = np.zeros(gold.shape, dtype=bool)
    for tuned, counted in (halves, halves[::-1]):
        predicted[counted] = scores[counted] > best_thresholds(scores[tuned], gold[tuned], average)
    return predicted


@dataclass(frozen=True)
class _Cuts:
    """The ways to split N examples by a label's score: the first k in the order of falling scores are taken."""

    taken: np.ndarray  # (cuts,) int64, the numbers k, rising, 0 and N among them; equal scores stay together
    right: np.ndarray  # (cuts,) int64, gold examples among those taken
    thresholds: np.ndarray  # (cuts,) fp64, falling

    @classmethod
    def of(cls, scores: np.ndarray, gold: np.ndarray) -> Self:
        order = np.argsort(-scores, kind="stable")
        values = scores[order].astype(np.float64)  # (N,), falling
        right = np.append(0, gold[order].cumsum())  # (N+1,)
        # A cut takes the scores above its threshold, which is anywhere in [lower, upper).
        lower, upper = np.append(values, -np.inf), np.append(np.inf, values)  # (N+1,) each
        taken = np.flatnonzero(lower < upper)  # (cuts,)
        lower, upper = lower[taken], upper[taken]  # (cuts,) each
        with np.errstate(invalid="ignore"):  # ∞ − ∞, which is replaced
            middle = lower + (upper - lower) / 2
        middle = np.where(middle < upper, middle, lower)  # neighbours have none, nor has the first cut
        middle = np.where(np.isfinite(lower), middle, np.nextafter(upper, -np.inf))  # below all scores
        return cls(taken, right[taken], np.where((lower <= DEFAULT) & (upper > DEFAULT), DEFAULT, middle))

    def best(self, values: np.ndarray) -> int:
        """The index of the largest value, of equal ones that with the threshold nearest to `DEFAULT`."""
        largest = np.flatnonzero(values == values.max())
        return int(largest[np.abs(self.thresholds[largest] - DEFAULT).argmin()])
