"""How far probabilities of classes agree with frequencies, and the temperature with which they agree best.

References:
    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from loguru import logger

from bertorch.errors import UserError
from bertorch.tasks.fitting import FittedFile, random_halves
from bertorch.tasks.metadata import KEY

CALIBRATION_BINS = 15
LOWEST, HIGHEST = 0.01, 100.0  # temperatures beyond are taken for a mistake in the data


@dataclass(frozen=True)
class Temperature:
    """What the logits are divided by before the softmax, and where it comes from."""

    value: float = 1.0
    file: FittedFile | None = None  # that it was fitted on; None: the model is not calibrated

    @classmethod
    def saved(cls, settings: Mapping[str, Any], folder: str) -> Self:
        """That in a folder's settings, 1 if there is none; a `UserError` if it is malformed."""
        saved = settings.get("temperature")
        if saved is None:
            return cls()
        try:
            found = cls(saved["value"], FittedFile.read(saved))
        except (KeyError, TypeError, AttributeError):
            found = cls(math.nan)
        if type(found.value) not in (int, float) or not LOWEST <= found.value <= HIGHEST:
            expected = f"a number from {LOWEST} to {HIGHEST} as value, and the data that it was fitted on"
            raise UserError(f"{folder}/config.json: {KEY}: temperature: expected {expected}, got {saved!r}")
        return found

    def settings(self) -> dict[str, Any]:
        """What the folder keeps, as JSON has it: nothing of a model that is not calibrated."""
        return {} if self.file is None else {"temperature": {"value": self.value, **self.file.settings()}}


def fit_temperature(logits: np.ndarray, gold: np.ndarray, where: str) -> float:
    """The temperature with the least negative log-likelihood of logits (N, C) and classes (N,).

    Over β = 1/T that is convex: its slope, the mean over the examples of Σ p·z − z_gold with p = softmax(β·z), rises
    with β, and is zero at the optimum. `where` names the examples in errors.

    Raises:
        UserError: there is no least one, or not within the limits of this module.
    """
    from scipy import optimize, special  # noqa: PLC0415 - not for every evaluation

    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)  # (N, C), the largest is 0
    of_gold = float(logits[np.arange(len(gold)), gold].mean())
    if len(np.unique(gold)) < 2:
        raise UserError(f"--calibrate: {where}: expected examples of at least two labels, got {len(gold)} of one")

    def slope(inverse: float) -> float:
        return float((special.softmax(inverse * logits, axis=1) * logits).sum(axis=1).mean()) - of_gold

    if slope(0) >= 0:
        raise UserError(
            f"--calibrate: {where}: expected logits that are higher for the right labels, got no better ones than by "
            "chance: no temperature helps; check the file's labels, or train on"
        )
    if of_gold == 0:
        raise UserError(
            f"--calibrate: {where}: expected examples that the model gets wrong, got {len(gold)} right ones: no "
            "confidence in them is too high; take examples that it was not trained on"
        )
    if slope(1 / HIGHEST) > 0 or slope(1 / LOWEST) < 0:
        side = f"above {HIGHEST:g}" if slope(1 / HIGHEST) > 0 else f"below {LOWEST:g}"
        raise UserError(
            f"--calibrate: {where}: expected a temperature from {LOWEST:g} to {HIGHEST:g}, got one {side}; take more "
            "examples, or check the file's labels"
        )
    return 1 / float(optimize.brentq(slope, 1 / HIGHEST, 1 / LOWEST, xtol=1e-13, rtol=1e-13))


def fitting_report(logits: np.ndarray, gold: np.ndarray, temperature: float) -> dict[str, Any]:
    """What a temperature fitted on these examples gives: before, after, and cross-fitted.

    Cross-fitted: each half of the examples has the temperature of the other half. The figures `after` are those of the
    examples that it was fitted on, and so too good. A half that determines no temperature is logged, and
    `cross_fitted` is None.
    """
    report: dict[str, Any] = {
        "temperature": temperature,
        "before": calibration_figures(logits, gold),
        "after": calibration_figures(logits, gold, temperature),
        "cross_fitted": None,
    }
    halves = random_halves(len(gold))
    temperatures = np.ones(len(gold))  # (N,)
    try:
        for fitted, measured in (halves, halves[::-1]):
            temperatures[measured] = fit_temperature(logits[fitted], gold[fitted], "a random half of the examples")
    except UserError as error:
        logger.warning("nothing is cross-fitted, and the temperature is doubtful: {}", error)
    else:
        report["cross_fitted"] = calibration_figures(logits, gold, temperatures)
    return report


def calibration_figures(
    logits: np.ndarray, gold: np.ndarray, temperature: float | np.ndarray = 1.0
) -> dict[str, float]:
    """The expected calibration error and the mean negative log-likelihood of logits (N, C) and classes (N,).

    The temperature is that of all examples, or (N,).
    """
    from scipy import special  # noqa: PLC0415

    log_probabilities = special.log_softmax(logits / np.reshape(temperature, (-1, 1)), axis=1)  # (N, C)
    rows, predicted = np.arange(len(gold)), logits.argmax(axis=1)  # (N,) each
    report = calibration_report(np.exp(log_probabilities[rows, predicted]), predicted == gold)
    return {
        "expected_calibration_error": report["expected_calibration_error"],
        "negative_log_likelihood": -float(log_probabilities[rows, gold].mean()),
    }


def calibration_report(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """The expected calibration error of the likeliest labels, and the bins that it is computed from.

    The bins part (0, 1] into `CALIBRATION_BINS` of one width, and have `above` which probability they begin. The error
    is the mean over the examples of what mean probability and accuracy of their bin differ by.

    Args:
        probabilities: of the labels predicted, (N,).
        right: whether these are right, (N,) bool.
    """
    bins = np.ceil(probabilities * CALIBRATION_BINS).astype(np.int64) - 1  # (N,)
    bins = bins.clip(0, CALIBRATION_BINS - 1)
    counts, sums, hits = (  # (bins,) each
        np.bincount(bins, weights, CALIBRATION_BINS) for weights in (None, probabilities, right.astype(np.float64))
    )
    taken = np.flatnonzero(counts)
    return {
        "expected_calibration_error": float(np.abs(sums - hits).sum() / len(bins)),
        "calibration_bins": [
            {
                "above": index / CALIBRATION_BINS,
                "examples": int(counts[index]),
                "probability": float(sums[index] / counts[index]),
                "accuracy": float(hits[index] / counts[index]),
            }
            for index in taken.tolist()
        ],
    }
