"""Numbers of a report: classes, thresholds, entities; as JSON has them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bertorch.training.metrics import precision_recall_f1


class Span(NamedTuple):
    """An entity: its sentence, first token, end and type."""

    sentence: int
    first: int
    end: int
    type: str


def f1_scores(right: int, predicted: int, gold: int) -> dict[str, float]:
    """Precision, recall and F1 by name, and the support."""
    precision, recall, f1 = precision_recall_f1(right, predicted, gold)
    return {"precision": precision, "recall": recall, "f1": f1, "support": gold}


def class_report(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro and micro F1, a table by label, and the confusion matrix.

    Args:
        gold, predicted: (N,) ids.
        labels: C of them. The macro F1 is the mean over all, also those that do not come up.

    Returns:
        With `confusion_matrix` (C, C): how often the label of the row was taken for that of the column.
    """
    count = len(labels)
    matrix = np.bincount(gold * count + predicted, minlength=count * count).reshape(count, count)
    by_label = [
        f1_scores(int(matrix[number, number]), int(matrix[:, number].sum()), int(matrix[number].sum()))
        for number in range(count)
    ]
    accuracy = float(np.trace(matrix)) / len(gold)
    return {
        "examples": len(gold),
        "accuracy": accuracy,
        "macro_f1": float(np.mean([row["f1"] for row in by_label])),
        "micro_f1": accuracy,  # with one label an example, each false positive is a false negative of another label
        "labels": dict(zip(labels, by_label, strict=True)),
        "confusion_matrix": matrix.tolist(),
    }


def best_threshold(cosines: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """The thresholds of the cosine from which on a pair is taken for positive, best by accuracy and best by F1.

    They lie in the middle between two cosines that come up, or above all of them; of equally good ones it is the
    largest. Cosines can be compared with them in their own type and in a finer one.

    Args:
        cosines: (N,).
        positive: (N,) bool.
    """
    order = np.argsort(-cosines, kind="stable")
    values, hits = cosines[order], np.append(0, positive[order].cumsum())  # (N,), (N+1,) positives of the first so many
    taken = np.arange(len(values) + 1)
    splits = np.concatenate([[True], values[1:] < values[:-1], [True]])  # equal cosines stay together
    gold = hits[-1]
    accuracy = (hits + (len(values) - gold) - (taken - hits)) / len(values)
    f1 = 2 * hits / np.maximum(taken + gold, 1)
    result = {}
    for name, scores in (("accuracy", accuracy), ("f1", f1)):
        best = int(np.where(splits, scores, -1.0).argmax())
        result[name] = float(scores[best])
        result[f"{name}_threshold"] = float(_below(values, best))
    return result


def _below(values: np.ndarray, taken: int) -> np.floating:
    """A threshold that the first so many of falling values reach, and the others do not."""
    if taken == 0:
        return np.nextafter(values[0], np.inf, dtype=values.dtype)
    if taken == len(values):
        return values[-1]
    middle = (values[taken - 1] + values[taken]) / 2
    return middle if middle > values[taken] else values[taken - 1]  # neighbours have no middle


def entity_report(gold: Sequence[Span], predicted: Sequence[Span], types: Sequence[str]) -> dict[str, Any]:
    """Precision, recall and F1 of entities by type and over all, strict and lenient.

    Strict: type, beginning and end are the same; with the reading of tags of `EntityFinder`, that is seqeval's strict
    mode. Lenient: an entity is right where one of the same type on the other side shares a token with it. The lenient
    recall is the share of gold entities that are right so, the precision that of the predicted ones, and F1 their
    harmonic mean.

    Args:
        gold, predicted: the entities.
        types: the types of the report.
    """
    same = set(gold) & set(predicted)
    found, sound = _overlapping(gold, predicted), _overlapping(predicted, gold)
    report: dict[str, Any] = {"strict": {}, "lenient": {}}
    for name in (*types, None):
        counts = [sum(name in (None, span.type) for span in spans) for spans in (same, predicted, gold, found, sound)]
        right, guesses, support, recalled, precise = counts
        precision, recall = precise / max(guesses, 1), recalled / max(support, 1)
        lenient = {
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            "support": support,
        }
        report["strict"][name or "micro average"] = f1_scores(right, guesses, support)
        report["lenient"][name or "micro average"] = lenient
    return report


def _overlapping(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """Those that share a token with one of the others of the same type."""
    tokens = {(span.sentence, span.type, token) for span in others for token in range(span.first, span.end)}
    return [
        span
        for span in spans
        if any((span.sentence, span.type, token) in tokens for token in range(span.first, span.end))
    ]
