"""How far two models agree on inputs without labels: what an export is compared by where there is nothing better."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bertorch.resampling import ExampleTable, Measure

if TYPE_CHECKING:
    from bertorch.tasks.base import Inference

EQUAL, COSINE, SPEARMAN, F1 = "share of equal labels", "mean cosine", "spearman", "F1 of the entities"


@dataclass(frozen=True)
class Agreement:
    """What two models of one task are compared by; 1 is full agreement.

    Args:
        inference: that both run.
        inputs_of: its inputs from texts, at least two.
        read: its inputs from a file, as the command that uses such models reads it.
        table: of the results of the model that counts as right, and those of the other, with one measure.
    """

    inference: "Inference[Any]"
    inputs_of: Callable[[Sequence[str]], Sequence[Any]]
    read: Callable[[str], Iterator[Any]]
    table: Callable[[Sequence[Any], Sequence[Any]], ExampleTable]


def equal_labels(expected: Sequence[Sequence[str]], got: Sequence[Sequence[str]]) -> ExampleTable:
    """The share of inputs with the same labels."""
    equal = [list(ours) == list(theirs) for ours, theirs in zip(expected, got, strict=True)]
    return ExampleTable({"equal": equal}, {EQUAL: Measure("mean", ("equal",))})


def mean_cosine(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> ExampleTable:
    """The mean cosine of vectors of length 1, (E,) each."""
    cosines = [float(np.dot(ours.astype(np.float64), theirs)) for ours, theirs in zip(expected, got, strict=True)]
    return ExampleTable({"cosine": cosines}, {COSINE: Measure("mean", ("cosine",))})


def same_order(expected: Sequence[float], got: Sequence[float]) -> ExampleTable:
    """Spearman's correlation of scores."""
    columns = {"expected": list(expected), "score": list(got)}
    return ExampleTable(columns, {SPEARMAN: Measure("spearman", ("score", "expected"))})


def same_entities(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> ExampleTable:
    """The F1 of entities, of rows start, end, type, … of each text, against those expected."""
    found = [[{tuple(row[:3]) for row in rows.tolist()} for rows in each] for each in (expected, got)]
    counts = [(len(ours & theirs), len(theirs), len(ours)) for ours, theirs in zip(*found, strict=True)]
    columns = dict(zip(("right", "predicted", "gold"), map(list, zip(*counts, strict=True)), strict=True))
    if not any(columns["predicted"] + columns["gold"]):  # neither finds any: they agree
        return ExampleTable({"equal": [True] * len(counts)}, {F1: Measure("mean", ("equal",))})
    return ExampleTable(columns, {F1: Measure("f1", ("right", "predicted", "gold"))})
