"""The gate: an export is compared with the model that it was made of, and takes no place if it is worse."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bertorch import distributed
from bertorch.data.dataset import Examples
from bertorch.data.schedule import evaluation_batches
from bertorch.exporting.check_data import BUILT_IN, CheckData, longest_examples
from bertorch.inference.engine import Engine
from bertorch.precision import Precision
from bertorch.resampling import ExampleTable, bootstrap_intervals, percentile_interval
from bertorch.significance import draw_groups
from bertorch.tasks.base import Task
from bertorch.training.eval_loop import evaluate

TOLERANCE = 1e-4  # of what an export in fp32 gives, as a share of the largest output of the model, or of 1
COMPARED = 1000  # examples of a file that outputs are compared on
DRAWS = 2000  # of the intervals


@dataclass(frozen=True)
class Check:
    """What the comparison of an export with the model gave."""

    data: str  # on what
    examples: int  # how many
    measure: str  # what was compared
    value: float  # of the export
    loss: float  # how much worse it is than the model: what is held against the limit
    limit: float
    before: float | None = None  # the measure of the model, where it has one of its own
    interval: tuple[float, float] | None = None  # of the loss, 95 %, over the examples

    @property
    def passed(self) -> bool:
        """Whether the export may take its place."""
        return self.loss <= self.limit  # not where it is NaN

    def record(self) -> dict[str, Any]:
        """As the record of the export has it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        """In words."""
        before = "" if self.before is None else f", before {self.before:.5f}"
        interval = "" if self.interval is None else f" (95 % interval {self.interval[0]:.5f} to {self.interval[1]:.5f})"
        return (
            f"{self.measure} {self.value:.5g}{before}: a loss of {self.loss:.5g}{interval}, {self.limit:g} allowed, on "
            f"{self.examples} examples: {self.data}"
        )


def check_outputs(task: Task[Any], exported: Task[Any], data: CheckData, batch_size: int) -> Check:
    """The largest difference of any output, one text at a time and in batches, on the data and on built-in texts.

    Rounding goes with the size of the outputs: scores may be in the thousands.
    """
    sets: list[tuple[Examples, tuple[int, ...]]] = [(longest_examples(task), (1, batch_size))]
    if data.name != BUILT_IN:
        examples = data.examples
        if examples is None:
            examples = task.agreement().inference.examples_of(data.inputs)
        sets.append((examples, (batch_size,)))
    found, compared = [(0.0, 1.0)], 0
    for examples, sizes in sets:
        chosen = np.unique(np.linspace(0, len(examples) - 1, min(COMPARED, len(examples))).astype(np.int64))
        compared += len(chosen)
        for size in sizes:
            found += _differences(task, exported, examples, chosen, size)
    largest, scale = map(float, np.max(found, axis=0))  # NaN if one is
    name = data.name if data.name == BUILT_IN else f"{data.name} and {BUILT_IN}"
    return Check(name, compared, "largest difference of an output", largest, largest / scale, TOLERANCE)


def _differences(
    task: Task[Any], exported: Task[Any], examples: Examples, chosen: np.ndarray, batch_size: int
) -> Iterator[tuple[float, float]]:
    """Of each batch the largest difference, and the largest output of the model."""
    device = distributed.device()
    computes = [each.evaluation(examples, device)[0] for each in (task, exported)]
    with torch.inference_mode():
        for part in evaluation_batches(examples.lengths[chosen], batch_size, 0, 1):
            batch = examples.batch(chosen[part]).to(device)
            ours, theirs = (compute(batch).double() for compute in computes)
            if ours.numel():  # a text without words has no emissions
                yield float((ours - theirs).abs().max()), float(ours.abs().max())


def check_metric(task: Task[Any], exported: Task[Any], data: CheckData, batch_size: int, max_loss: float) -> Check:
    """The main metric before and after, or without labels how far both agree, with the interval of the loss."""
    if data.examples is None:
        return _check_agreement(task, exported, data, batch_size, max_loss)
    precision = Precision.resolve("fp32", distributed.device())
    tables = [evaluate(each, data.examples, batch_size, precision).example_table() for each in (task, exported)]
    before, after = tables
    assert before is not None, "a task without measures"
    assert after is not None
    name, measure = next(iter(before.measures.items()))
    ours, theirs = draw_groups(measure, [[before.arrays(measure)], [after.arrays(measure)]], draws=DRAWS)
    loss = ours.value - theirs.value
    interval = percentile_interval(ours.drawn - theirs.drawn)
    count = len(next(iter(before.columns.values())))
    return Check(data.name, count, name, theirs.value, loss, max_loss, ours.value, interval)


def _check_agreement(task: Task[Any], exported: Task[Any], data: CheckData, batch_size: int, max_loss: float) -> Check:
    rows = [_rows(each, data.inputs, batch_size) for each in (task, exported)]
    table: ExampleTable = task.agreement().table(*rows)
    ((name, measure),) = table.measures.items()
    low, high = bootstrap_intervals(table, draws=DRAWS)[name]
    value = measure.of(table.arrays(measure))
    return Check(data.name, len(data.inputs), name, value, 1 - value, max_loss, interval=(1 - high, 1 - low))


def _rows(task: Task[Any], inputs: Sequence[Any], batch_size: int) -> list[Any]:
    device = distributed.device()
    engine = Engine(device, Precision.resolve("fp32", device), batch_size=batch_size, shared=False)
    return [row for _, rows in engine.run(task.agreement().inference, inputs) for row in rows]
