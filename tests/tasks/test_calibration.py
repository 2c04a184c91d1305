"""Calibration against plain loops, and the temperature against a search that knows nothing of slopes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import optimize

from bertorch.errors import UserError
from bertorch.tasks.calibration import (
    Temperature,
    calibration_figures,
    calibration_report,
    fit_temperature,
    fitting_report,
)
from bertorch.tasks.fitting import FittedFile, random_halves
from bertorch.tasks.metrics import ClassificationMetric
from tests.small_tasks import classification_task, siamese_task

FILE = FittedFile("digest", "dev.txt")


def expected_calibration_error(probabilities, right) -> float:
    """Bin by bin in plain Python."""
    error = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        inside = [(p, r) for p, r in zip(probabilities, right, strict=True) if low < p <= high]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(r for _, r in inside) / len(inside)
            error += len(inside) / len(probabilities) * abs(accuracy - confidence)
    return error


def test_calibration_error_against_a_loop():
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(0.2, 1, 500)
    right = generator.random(500) < probabilities**2
    report = calibration_report(probabilities, right)
    assert report["expected_calibration_error"] == pytest.approx(expected_calibration_error(probabilities, right))
    assert sum(row["examples"] for row in report["calibration_bins"]) == 500
    for row in report["calibration_bins"]:
        inside = (probabilities > row["above"]) & (probabilities <= row["above"] + 1 / 15)
        assert row["accuracy"] == pytest.approx(right[inside].mean())
        assert row["probability"] == pytest.approx(probabilities[inside].mean())


def test_a_model_that_is_sure_and_right_half_the_time():
    report = calibration_report(np.ones(4), np.array([True, False, True, False]))
    assert report["expected_calibration_error"] == 0.5
    assert report["calibration_bins"] == [{"above": 14 / 15, "examples": 4, "probability": 1.0, "accuracy": 0.5}]


def examples(seed: int, size: int = 200, labels: int = 4, confidence: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C), and classes (N,) drawn from their softmax before they were multiplied by the confidence."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(size, labels)) * 2
    gold = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return logits * confidence, gold


def negative_log_likelihood(logits: np.ndarray, gold: np.ndarray, temperature: float) -> float:
    """Example by example in plain Python."""
    total = 0.0
    for row, label in zip(logits.tolist(), gold.tolist(), strict=True):
        scaled = [value / temperature for value in row]
        total += max(scaled) + math.log(sum(math.exp(value - max(scaled)) for value in scaled)) - scaled[label]
    return total / len(gold)


@pytest.mark.parametrize("confidence", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("labels", [2, 5])
def test_no_other_temperature_is_better(labels, confidence):
    logits, gold = examples(labels, size=60, labels=labels, confidence=confidence)
    searched = optimize.minimize_scalar(
        lambda log: negative_log_likelihood(logits, gold, math.exp(log)), bounds=(-5, 5), options={"xatol": 1e-9}
    )
    fitted = fit_temperature(logits, gold, "x")
    assert fitted == pytest.approx(math.exp(searched.x), rel=1e-5)
    best = negative_log_likelihood(logits, gold, fitted)
    for other in np.geomspace(0.02, 90, 300):
        assert best <= negative_log_likelihood(logits, gold, other) + 1e-12


def test_it_undoes_what_the_logits_were_multiplied_by():
    logits, gold = examples(0, size=20000, confidence=2.5)
    fitted = fit_temperature(logits, gold, "x")
    assert fitted == pytest.approx(2.5, rel=0.03)  # the rest is chance
    assert fit_temperature(7 * logits, gold, "x") == pytest.approx(7 * fitted, rel=1e-9)
    assert fit_temperature(logits + 1e4, gold, "x") == pytest.approx(fitted, rel=1e-9)  # of each row, any constant
    order = np.random.default_rng(1).permutation(len(gold))
    assert fit_temperature(logits[order], gold[order], "x") == pytest.approx(fitted, rel=1e-12)


def test_figures_before_after_and_cross_fitted_against_loops():
    logits, gold = examples(1)
    temperature = fit_temperature(logits, gold, "x")
    report = fitting_report(logits, gold, temperature)
    halves, scaled = random_halves(len(gold)), logits.copy()
    for fitted, measured in (halves, halves[::-1]):
        scaled[measured] /= fit_temperature(logits[fitted], gold[fitted], "x")
    assert sorted(np.concatenate(halves)) == list(range(len(gold)))
    for name, values in (("before", logits), ("after", logits / temperature), ("cross_fitted", scaled)):
        probabilities = torch.from_numpy(values).softmax(-1).numpy()
        error = expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == gold)
        assert report[name]["expected_calibration_error"] == pytest.approx(error, abs=1e-12)
        assert report[name]["negative_log_likelihood"] == pytest.approx(negative_log_likelihood(values, gold, 1.0))
    losses = {name: report[name]["negative_log_likelihood"] for name in ("after", "cross_fitted", "before")}
    assert losses["after"] <= losses["cross_fitted"] < losses["before"]
    assert report["after"]["expected_calibration_error"] < report["before"]["expected_calibration_error"]
    assert report == fitting_report(logits, gold, temperature)  # the halves are always the same


def test_a_half_without_a_temperature_leaves_only_the_others(log_lines):
    logits, gold = examples(2, confidence=1.0)
    right = random_halves(len(gold))[0]
    gold[right] = logits[right].argmax(axis=1)
    report = fitting_report(logits, gold, fit_temperature(logits, gold, "x"))
    assert report["cross_fitted"] is None
    assert report["after"]["negative_log_likelihood"] < report["before"]["negative_log_likelihood"]
    assert log_lines[0].startswith(
        "nothing is cross-fitted, and the temperature is doubtful: --calibrate: a random half"
    )


LOGITS = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("logits", "gold", "message"),
    [
        (LOGITS, [0, 1, 0, 1], "expected examples that the model gets wrong, got 4 right ones: no confidence in them"),
        (LOGITS, [0, 0, 0, 0], "expected examples of at least two labels, got 4 of one"),
        (LOGITS[:1], [1], "expected examples of at least two labels, got 1 of one"),
        (LOGITS[:, :1], [0, 0, 0, 0], "expected examples of at least two labels, got 4 of one"),
        (LOGITS, [1, 0, 1, 0], "expected logits that are higher for the right labels, got no better ones than by cha"),
        (
            LOGITS * 0,
            [1, 0, 1, 0],
            "expected logits that are higher for the right labels, got no better ones than by cha",
        ),
        (LOGITS * 1000, [0, 1, 1, 1], "expected a temperature from 0.01 to 100, got one above 100; take more exam"),
        (LOGITS / 1000, [0, 1, 1, 1], "expected a temperature from 0.01 to 100, got one below 0.01; take more exam"),
    ],
)
def test_examples_that_determine_no_temperature_are_refused(logits, gold, message):
    with pytest.raises(UserError, match=f"--calibrate: dev.txt: {message}"):
        fit_temperature(logits, np.array(gold), "dev.txt")


def test_no_predicted_label_changes():
    generator = torch.Generator().manual_seed(0)
    for make_task in (classification_task, siamese_task):
        task = make_task()
        for power in torch.linspace(-2, 2, 41):
            logits = torch.randn(500, 5, generator=generator) * 10**power
            task.temperature = Temperature(float(10 ** (power + torch.rand(1, generator=generator) - 0.5)), FILE)
            scaled = logits.double() / task.temperature.value
            assert torch.allclose(task.probabilities(logits).double(), scaled.softmax(-1), atol=1e-5)
            # Where rounding leaves two labels with one probability, either is the likeliest.
            of_label = task.probabilities(logits).gather(1, logits.argmax(-1, keepdim=True))
            assert (of_label.squeeze(1) == task.probabilities(logits).max(-1).values).all()


@pytest.mark.parametrize(("temperature", "keeps", "columns"), [(1.0, False, 0), (1.0, True, 3), (2.0, False, 3)])
def test_a_metric_keeps_logits_only_if_asked_or_calibrated(temperature, keeps, columns):
    logits, labels = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.0, 1.0]]), torch.tensor([1, 1])
    value = Temperature() if temperature == 1 else Temperature(temperature, FILE)
    metric = ClassificationMetric(torch.device("cpu"), ["a", "b", "c"], value, keeps_logits=keeps, fitted_here=True)
    for index in ([1], [0]):
        metric.update(logits[index], SimpleNamespace(labels=labels[index]), np.array(index))
    metric.reduce()
    assert metric.logits.tolist() == logits[:, :columns].tolist()
    log_probabilities = (logits.double() / temperature).log_softmax(-1)
    assert metric.probabilities == pytest.approx(log_probabilities.exp().max(-1).values.tolist())
    assert metric.losses == pytest.approx((-log_probabilities[:, 1]).tolist())
    assert metric.value == 0.5
    report = metric.report()
    assert report["negative_log_likelihood"] == pytest.approx(-log_probabilities[:, 1].mean().item())
    if temperature == 1:
        assert not report.keys() & {"temperature", "without_temperature"}
    else:
        assert report["temperature"] == {"value": 2.0, "fitted_on": "dev.txt", "fitted_on_these_examples": True}
        assert report["without_temperature"] == calibration_figures(logits.double().numpy(), labels.numpy())


def test_settings_are_read_as_they_are_written():
    assert Temperature().settings() == {}
    assert Temperature.saved({}, "folder") == Temperature()
    for file in (FILE, FittedFile("digest", None)):
        assert Temperature.saved(Temperature(1.5, file).settings(), "folder") == Temperature(1.5, file)


@pytest.mark.parametrize("value", [0, -1.5, math.nan, math.inf, 1e-3, 101, "2", True, None])
def test_a_temperature_that_is_none_is_refused(value):
    settings = {"temperature": {"value": value, "data": "digest"}}
    with pytest.raises(
        UserError, match=r"folder/config.json: bertorch: temperature: expected a number from 0.01 to 10"
    ):
        Temperature.saved(settings, "folder")


@pytest.mark.parametrize("saved", [1.5, [], "x", {}, {"value": 1.5}, {"data": "digest"}])
def test_settings_of_another_form_are_refused(saved):
    with pytest.raises(UserError, match=r"temperature: expected a number .* and the data that it was fitted on, got"):
        Temperature.saved({"temperature": saved}, "folder")
