"""Metrics of an evaluation, added up over the processes, so that each example counts once on any number of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from bertorch import distributed
from bertorch.data.batch import PackedBatch, on_device
from bertorch.data.lines import shorten
from bertorch.resampling import ExampleTable, Measure
from bertorch.tasks.calibration import Temperature, calibration_figures, calibration_report

USUAL_CAUSES = "usual causes: a --learning_rate that is too high or too low, too few steps so far"
B_contra = TypeVar("B_contra", bound=PackedBatch, contravariant=True)


class Metric(Protocol[B_contra]):
    """What the evaluation loop, the log and the report know of a metric; it starts on a device."""

    name: str

    def update(self, outputs: Tensor, batch: B_contra, indices: np.ndarray, /) -> None:
        """Take in one batch: the task's outputs, the batch, and the indices of its examples."""

    def reduce(self) -> None:
        """Gather what all processes took in; call it once, on every process."""

    def merge(self, parts: Sequence[Self], indices: Sequence[np.ndarray]) -> None:
        """Become the metric of all examples, from reduced ones of parts of them; instead of `update` and `reduce`.

        Only metrics of single examples with classes can.

        Args:
            parts: what different models gave for them.
            indices: of each part, those of its examples among all.
        """
        raise TypeError(f"{type(self).__name__} cannot be merged from {len(parts)} parts of {len(indices)}")

    @property
    def value(self) -> float:
        """The number by which the best model is chosen; higher is better."""

    def numbers(self) -> Mapping[str, float]:
        """What is recorded of an evaluation in training, `value` first."""

    def line(self) -> str:
        """The message of the log line."""

    def summary(self) -> Sequence[str]:
        """What is logged of the best evaluation at the end of a run, beside the line."""
        return ()

    def warnings(self) -> Sequence[str]:
        """What is wrong with the predictions as a whole; logged after the first evaluation of a run."""
        return ()

    def report(self) -> dict[str, Any]:
        """What `bertorch.evaluate` reports, as JSON has it."""

    def example_table(self) -> ExampleTable | None:
        """What was predicted for each example, in order, and the main measures; None: no intervals, no comparison.

        An example is what is drawn again for an interval, such as a sentence or a query.
        """
        return None


class ExampleRows:
    """Numbers of each example, gathered over the processes in the order of the examples.

    An example may have several rows, one after the other.
    """

    def __init__(self, device: torch.device, columns: int) -> None:
        self._rows = [torch.zeros(0, 1 + columns, dtype=torch.float64, device=device)]  # the first is the index

    def add(self, indices: np.ndarray, *columns: Tensor) -> None:
        """Add the columns, (examples,) or several (examples, …) at once, of the examples with these indices."""
        row_ids = on_device(indices, columns[0].device)  # (examples,)
        parts = [column[:, None] if column.ndim == 1 else column for column in (row_ids, *columns)]
        self._rows.append(torch.cat([part.double() for part in parts], dim=1))

    def gather(self) -> np.ndarray:
        """(columns, N) fp64; call it once, on every process."""
        rows, _ = distributed.gather_rows(torch.cat(self._rows))  # (N, 1+columns)
        return rows[rows[:, 0].argsort(stable=True), 1:].cpu().numpy().T


class ClassificationMetric(Metric[PackedBatch]):
    """Mean cross-entropy and accuracy; the outputs are logits (N, C), the labels classes (N,).

    After `reduce`, `gold` and `predicted` are (N,) int64, `probabilities` (N,) those of the class predicted, `losses`
    (N,) fp64, and `logits` (N, C) fp64 if they are kept, else (N, 0).

    Args:
        device: of the outputs.
        label_names: C of them.
        temperature: that probabilities and losses are computed with.
        fitted_here: whether it was fitted on the examples that are evaluated.
        keeps_logits: whether the logits are kept; always with a temperature that was fitted.
    """

    name = "accuracy"
    of_examples: tuple[str, ...] = ("gold", "predicted", "probabilities", "losses")  # its attributes (N,)

    def __init__(
        self,
        device: torch.device,
        label_names: Sequence[str],
        temperature: Temperature = Temperature(),  # noqa: B008 - is frozen
        *,
        fitted_here: bool = False,
        keeps_logits: bool = False,
    ) -> None:
        self._label_names, self._temperature, self._fitted_here = label_names, temperature, fitted_here
        self._keeps_logits = keeps_logits or temperature.file is not None
        self._rows = ExampleRows(device, 4 + self._keeps_logits * len(label_names))

    @override
    def update(self, logits: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        temperature, kept = self._temperature.value, [logits] if self._keeps_logits else []
        losses = F.cross_entropy(logits.double() / temperature, batch.labels, reduction="none")  # (N,)
        predicted = logits.argmax(dim=-1)  # (N,)
        probabilities = (logits.float() / temperature).softmax(-1)  # (N, C)
        of_predicted = probabilities.gather(1, predicted[:, None])  # (N, 1)
        self._rows.add(indices, batch.labels, predicted, of_predicted, losses, *kept)

    @override
    def reduce(self) -> None:
        gold, predicted, self.probabilities, self.losses, *_ = rows = self._rows.gather()
        self.logits = rows[4:].T
        self.gold, self.predicted = gold.astype(np.int64), predicted.astype(np.int64)

    @override
    def merge(self, parts: Sequence[Self], indices: Sequence[np.ndarray]) -> None:
        order = np.concatenate(indices).argsort()
        for name in self.of_examples:
            setattr(self, name, np.concatenate([getattr(part, name) for part in parts])[order])

    @property
    @override
    def value(self) -> float:
        return float((self.gold == self.predicted).mean())  # accuracy in [0, 1]

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(self.losses.mean())

    @override
    def numbers(self) -> Mapping[str, float]:
        return {"accuracy": self.value, "loss": self.loss}

    @override
    def line(self) -> str:
        return f"eval loss: {self.loss:.5f}, accuracy: {self.value:.5f}"

    @override
    def warnings(self) -> Sequence[str]:
        first = int(self.predicted[0])
        if (self.predicted != first).any() or (self.gold == self.gold[0]).all():
            return ()
        all_alike = f"all {len(self.predicted)} predictions are {shorten(self._label_names[first])}"
        unequal = "very unequal classes (run_classifier.py has --class_weights and --logit_adjustment)"
        return (f"{all_alike}; {USUAL_CAUSES}, {unequal}, or a wrong column of labels",)

    @override
    def report(self) -> dict[str, Any]:
        """See `class_report` and `calibration_report`; with a temperature, also what the model gives without it."""
        report = class_report(self.gold, self.predicted, self._label_names)
        report |= calibration_report(self.probabilities, self.gold == self.predicted)
        report["negative_log_likelihood"] = self.loss
        if self._temperature.file is not None:
            fitted = {"fitted_on": self._temperature.file.name, "fitted_on_these_examples": self._fitted_here}
            report["temperature"] = {"value": self._temperature.value, **fitted}
            report["without_temperature"] = calibration_figures(self.logits, self.gold)
        return report

    @override
    def example_table(self) -> ExampleTable:
        names = np.array(self._label_names, dtype=object)  # (C,)
        columns = {
            "gold": names[self.gold].tolist(),
            "predicted": names[self.predicted].tolist(),
            "probability": self.probabilities.tolist(),
            "right": (self.gold == self.predicted).tolist(),
        }
        macro_f1 = Measure("macro_f1", ("gold", "predicted"), classes=len(names))
        return ExampleTable(columns, {"accuracy": Measure("mean", ("right",)), "macro_f1": macro_f1})


class CorrelationMetric(Metric[PackedBatch]):
    """Spearman and Pearson correlation of the cosine of two embeddings with a given score.

    The outputs are embeddings (2·examples, E), those of a pair one after the other; the labels scores (examples,).
    After `reduce`, `cosines` are (examples,) fp32 and `scores` (examples,) fp64.
    """

    name = "spearman corr"

    def __init__(self, device: torch.device) -> None:
        self._rows = ExampleRows(device, 2)

    @override
    def update(self, embeddings: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        self._rows.add(indices, pair_cosines(embeddings.view(len(batch.labels), 2, -1)), batch.labels)

    @override
    def reduce(self) -> None:
        cosines, self.scores = self._rows.gather()
        self.cosines = cosines.astype(np.float32)
        self._correlations = correlations(cosines, self.scores)

    @property
    @override
    def value(self) -> float:
        return self._correlations["spearman"]

    @override
    def numbers(self) -> Mapping[str, float]:
        return self._correlations

    @override
    def line(self) -> str:
        return "spearman corr: {spearman:.4f}, pearson corr: {pearson:.4f}".format(**self._correlations)

    @override
    def warnings(self) -> Sequence[str]:
        return warnings_of_scores(self.scores)

    @override
    def report(self) -> dict[str, Any]:
        """Both correlations, and where the scores are 0 and 1 also the best thresholds of the cosine."""
        report: dict[str, Any] = {"examples": len(self.scores), **self._correlations}
        if set(self.scores) == {0.0, 1.0}:
            report["threshold"] = best_threshold(self.cosines, self.scores == 1)
        return report

    @override
    def example_table(self) -> ExampleTable:
        columns = {"gold": self.scores.tolist(), "cosine": self.cosines.tolist()}
        return ExampleTable(columns, {name: Measure(name, ("cosine", "gold")) for name in self._correlations})


def warnings_of_scores(scores: np.ndarray) -> Sequence[str]:
    """What is wrong with the gold scores (N,) of dev examples that `--dev_ratio` drew; a file of such is refused."""
    if np.ptp(scores) > 0:
        return ()
    got = f"all {len(scores)} dev examples have the score {scores[0]:g}"
    return (f"{got}: there is nothing to correlate with, and both correlations are 0",)


def pair_cosines(pairs: Tensor) -> Tensor:
    """The cosine of each pair of embeddings, (examples, 2, E) → (examples,)."""
    first, second = pairs.unbind(dim=1)  # (examples, E) each
    return F.cosine_similarity(first, second)


def class_report(gold: np.ndarray, predicted: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro and micro F1, a table by label, and the confusions.

    `gold` and `predicted` are (N,) ids of labels. The macro F1 is the mean over all C labels, also those without an
    example, whose F1 is 0; `macro_f1_present` is the mean over the labels that occur in `gold` or `predicted`, which is
    what scikit-learn's `f1_score(gold, predicted, average="macro")` gives. Of a gold label the confusions have the
    labels that it was taken for, itself among them, and how often.
    """
    groups = (gold[gold == predicted], predicted, gold)
    right, guesses, support = (np.bincount(ids, minlength=len(label_names)).tolist() for ids in groups)
    by_label = [f1_scores(*counts) for counts in zip(right, guesses, support, strict=True)]
    present = [row["f1"] for row, *counts in zip(by_label, guesses, support, strict=True) if any(counts)]
    accuracy = sum(right) / len(gold)
    confusions: dict[str, dict[str, int]] = {}
    pairs, counts = np.unique(np.stack([gold, predicted]), axis=1, return_counts=True)  # (2, pairs), (pairs,)
    for row, column, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        confusions.setdefault(label_names[row], {})[label_names[column]] = count
    return {
        "examples": len(gold),
        "accuracy": accuracy,
        "macro_f1": float(np.mean([row["f1"] for row in by_label])),
        "macro_f1_present": float(np.mean(present)),
        "micro_f1": accuracy,  # with one label an example, each false positive is a false negative of another label
        "labels": dict(zip(label_names, by_label, strict=True)),
        "confusions": confusions,
    }


def f1_scores(right: int, predicted: int, gold: int) -> dict[str, float]:
    """Precision, recall and F1 by name, 0 where there is nothing to divide by, and the support."""
    precision, recall = right / max(predicted, 1), right / max(gold, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * right / max(predicted + gold, 1), "support": gold}


def best_threshold(cosines: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """The thresholds from which on a pair counts as positive, best by accuracy and best by F1.

    They lie in the middle between two neighbouring cosines (N,), or above all of them; of equally good ones it is the
    largest. Cosines can be compared with them in their own type and in a finer one. `positive` is (N,) bool.
    """
    order = np.argsort(-cosines, kind="stable")
    values = cosines[order]  # (N,), falling
    hits = np.append(0, positive[order].cumsum())  # (N+1,), positives among the first 0, 1, … N
    taken = np.arange(len(values) + 1)  # (N+1,)
    splits = np.concatenate([[True], values[1:] < values[:-1], [True]])  # equal cosines stay together
    gold = hits[-1]
    accuracy = (hits + (len(values) - gold) - (taken - hits)) / len(values)  # (N+1,)
    f1 = 2 * hits / np.maximum(taken + gold, 1)  # (N+1,)
    result = {}
    for name, scores in (("accuracy", accuracy), ("f1", f1)):
        best = int(np.where(splits, scores, -1.0).argmax())
        result[name] = float(scores[best])
        result[f"{name}_threshold"] = float(_threshold(values, best))
    return result


def _threshold(values: np.ndarray, taken: int) -> np.floating:
    """Threshold separating the top `taken` values from the rest."""
    if taken == 0:
        return np.nextafter(values[0], np.inf, dtype=values.dtype)
    if taken == len(values):
        return values[-1]
    middle = (values[taken - 1] + values[taken]) / 2
    return middle if middle > values[taken] else values[taken - 1]  # neighbouring floats have no middle


def correlations(cosines: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Spearman and Pearson correlation by name, in [-1, 1]; 0 where one side is constant and they are undefined.

    NaN where a number is not finite, for which some versions of SciPy raise.
    """
    if not np.isfinite(cosines).all() or not np.isfinite(scores).all():
        return {"spearman": np.nan, "pearson": np.nan}
    if np.ptp(cosines) == 0 or np.ptp(scores) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    from scipy import stats  # noqa: PLC0415 - takes a quarter of a second, which classification need not wait for

    results = {"spearman": stats.spearmanr(cosines, scores), "pearson": stats.pearsonr(cosines, scores)}
    return {name: float(result.statistic) for name, result in results.items()}
