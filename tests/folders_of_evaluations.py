"""Folders as `bertorch.evaluate` leaves them, made without a model."""

import json
from pathlib import Path

import numpy as np

from bertorch.data.predictions import predictions_entry, write_predictions
from bertorch.resampling import ExampleTable, Measure, bootstrap_intervals

LABELS = ["negative", "positive"]


def classified(right: float, *, seed: int, count: int = 200) -> ExampleTable:
    """The same gold labels for each seed, of which about this share is predicted right."""
    names = np.array(LABELS, dtype=object)
    gold = np.random.default_rng(0).integers(0, 2, count)
    predicted = np.where(np.random.default_rng([1, seed]).random(count) < right, gold, 1 - gold)
    columns = {
        "gold": names[gold].tolist(),
        "predicted": names[predicted].tolist(),
        "right": (gold == predicted).tolist(),
    }
    macro_f1 = Measure("macro_f1", ("gold", "predicted"), classes=2)
    return ExampleTable(columns, {"accuracy": Measure("mean", ("right",)), "macro_f1": macro_f1})


def correlated(noise: float, *, seed: int, count: int = 100) -> ExampleTable:
    """The same scores for each seed, and cosines that differ from them by noise."""
    scores = np.random.default_rng(0).normal(size=count)
    cosines = scores + noise * np.random.default_rng([1, seed]).normal(size=count)
    columns = {"gold": scores.tolist(), "cosine": cosines.tolist()}
    return ExampleTable(columns, {"spearman": Measure("spearman", ("cosine", "gold"))})


def write_evaluation(folder: Path, table: ExampleTable, *, digest: str = "d", task: str = "classification") -> str:
    """Write the folder; returns its name."""
    folder.mkdir(parents=True)
    write_predictions(str(folder / "predictions.jsonl"), table, overwrite=False)
    report = {"model": "m", "task": task, "data": "dev.txt"}
    report |= predictions_entry(table, digest, bootstrap_intervals(table, draws=50))
    (folder / "report.json").write_text(json.dumps(report))
    return str(folder)
