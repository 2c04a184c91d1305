"""What `bertorch.evaluate` leaves for `bertorch.compare`: `predictions.jsonl`, and what `report.json` says of it.

A line of `predictions.jsonl` is a JSON object with the number of an example from 1, what was given and what was
predicted. `report.json` says under `measures` which columns each number is computed from, and how.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertorch.data.json_lines import parse_object
from bertorch.data.lines import BadLineError, read_rows
from bertorch.errors import UserError
from bertorch.files import PREDICTIONS, REPORT, require_file, to_json, whole_output
from bertorch.resampling import KINDS, ExampleTable, Measure

_AGAIN = "evaluate again, with --overwrite"


def write_predictions(path: str, table: ExampleTable, *, overwrite: bool) -> None:
    """Write a line for each example; a `UserError` if the file exists without `overwrite`, or cannot be written."""
    with whole_output(path, overwrite=overwrite) as file:
        for number, values in enumerate(zip(*table.columns.values(), strict=True), start=1):
            line = {"number": number} | dict(zip(table.columns, values, strict=True))
            file.write(to_json(line) + "\n")


def predictions_entry(table: ExampleTable, digest: str, intervals: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What `report.json` has beside the numbers: the digest of the file that was evaluated, intervals, measures."""
    return {
        "data_digest": digest,
        "intervals": {name: list(interval) for name, interval in intervals.items()},
        "measures": {
            name: asdict(measure) | {"value": measure.of(table.arrays(measure))}
            for name, measure in table.measures.items()
        },
    }


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as its folder has it."""

    folder: str
    task: str
    data: str  # name of the file that was evaluated
    digest: str  # of its content
    table: ExampleTable


def read_evaluation(folder: str) -> Evaluation:
    """Read the folder that `bertorch.evaluate --output_dir` wrote.

    Raises:
        UserError: there is no report or no predictions, they are damaged, or not of one evaluation.
    """
    report_path, path = Path(folder) / REPORT, str(Path(folder) / PREDICTIONS)
    require_file(report_path, f"the {REPORT} of a folder that bertorch.evaluate --output_dir wrote")
    try:
        report = json.loads(report_path.read_text(encoding="utf-8"))
        task, data = str(report["task"]), str(report["data"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
        raise UserError(f"{report_path}: expected the report of bertorch.evaluate, got {found}; {_AGAIN}") from error
    if not report.get("measures"):
        reason = "from an earlier version, or of a task without them"
        raise UserError(f"{report_path}: expected a report with predictions beside it, got one {reason}; {_AGAIN}")
    try:
        digest = str(report["data_digest"])
        measures = {name: _measure(entry) for name, entry in report["measures"].items()}
        values = {name: float(report["measures"][name]["value"]) for name in measures}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{report_path}: expected measures as bertorch.evaluate has them, got {found}; {_AGAIN}"
        ) from error
    evaluation = Evaluation(folder, task, data, digest, ExampleTable(_read_columns(path, measures), measures))
    for name, measure in measures.items():
        _check(path, name, measure, evaluation.table, values[name])
    return evaluation


def _measure(entry: Mapping[str, Any]) -> Measure:
    if entry["kind"] not in KINDS:
        raise ValueError(f"a measure of the kind {entry['kind']!r}; known are {', '.join(KINDS)}")
    return Measure(entry["kind"], tuple(map(str, entry["columns"])), int(entry["classes"]))


def _read_columns(path: str, measures: Mapping[str, Measure]) -> dict[str, list[Any]]:
    """The columns of the measures, and what was given."""
    names = list(dict.fromkeys(["gold", *(name for measure in measures.values() for name in measure.columns)]))
    columns: dict[str, list[Any]] = {name: [] for name in names}

    def parse(line: str) -> None:
        row = parse_object(line, f"a line of {PREDICTIONS}")
        for name in names:
            if name not in row:
                raise BadLineError(f"expected {name!r} in a line of {PREDICTIONS}, got only {', '.join(row)}")
            columns[name].append(row[name])

    for _ in read_rows(path, parse, remedy=f"It is damaged: {_AGAIN}."):
        pass
    return columns


def _check(path: str, name: str, measure: Measure, table: ExampleTable, expected: float) -> None:
    """A command that was stopped may have replaced one of the two files."""
    try:
        with np.errstate(all="ignore"):  # what is not finite is not what is expected
            value = measure.of(table.arrays(measure))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: expected values to compute {name} from, got: {error}; {_AGAIN}") from error
    if not math.isclose(value, expected, rel_tol=0, abs_tol=1e-6):
        got = f"{value:.6f} there and {expected:.6f} in {REPORT}"
        raise UserError(f"{path}: expected the predictions of the {REPORT} beside it, got {name} {got}; {_AGAIN}")
