"""The files of an evaluation, `report.json`, `errors.tsv` and `predictions.jsonl`, and what the log has of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch.data.fingerprint import files_digest
from bertorch.data.lines import cell
from bertorch.data.predictions import predictions_entry, write_predictions
from bertorch.data.retrieval import files_of
from bertorch.files import ERRORS, PREDICTIONS, REPORT, to_json, whole_output
from bertorch.resampling import ExampleTable, bootstrap_intervals
from bertorch.tasks.base import Errors

MOST_LINES = 20  # of a table in the log; of a longer one the most frequent labels and the worst, half of them each
NOT_LOGGED = ("confusions", "data_digest", "intervals", "measures")


def write_evaluation(
    folder: Path,
    report: dict[str, Any],
    errors: Errors,
    table: ExampleTable | None,
    *,
    data_files: Sequence[str],
    overwrite: bool,
) -> dict[str, Any]:
    """Write the files of an evaluation on `data_files` into a folder, and log the numbers; returns the whole report.

    Raises:
        UserError: one of them exists without `overwrite`, or cannot be written.
    """
    with whole_output(str(folder / ERRORS), overwrite=overwrite) as file:
        file.writelines("\t".join(map(cell, row)) + "\n" for row in [errors.header, *errors.rows])
    if table is not None:
        write_predictions(str(folder / PREDICTIONS), table, overwrite=overwrite)
        digest = files_digest([file for path in data_files for file in files_of(path)])
        report = report | predictions_entry(table, digest, bootstrap_intervals(table))
    with whole_output(str(folder / REPORT), overwrite=overwrite) as file:
        file.write(to_json(report, indent=2) + "\n")
    for note in report.get("notes", ()):
        logger.warning("{}", note)
    for line in _lines({name: value for name, value in report.items() if name not in NOT_LOGGED}):
        logger.info("{}", line)
    for name, (low, high) in report.get("intervals", {}).items():
        logger.info("{}: {:.5f}, 95 % interval {:.5f} to {:.5f}", name, report["measures"][name]["value"], low, high)
    logger.info("{}, {}: {}", folder / REPORT, ERRORS, len(errors.rows))
    return report


def _lines(report: dict[str, Any], prefix: str = "") -> list[str]:
    """The numbers of a report, one per line, and each row of a table in one line; of long tables a part."""
    lines = []
    for name, value in report.items():
        if isinstance(value, float):
            lines.append(f"{prefix}{name}: {value:.5f}")
        elif isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
            for part, rows in _parts(value).items():
                lines += _lines(rows, f"{prefix}{name}{part}, ")
        elif isinstance(value, dict):
            row = (f"{key} {each:.5f}" if isinstance(each, float) else f"{key} {each}" for key, each in value.items())
            lines.append(f"{prefix}{name}: {', '.join(row)}")
    return lines


def _parts(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the log has of a table, by a word that says which part it is."""
    if len(table) <= MOST_LINES:
        return {"": table}
    if not all("f1" in row and "support" in row for row in table.values()):
        return {}
    worst = sorted(
        (name for name in table if table[name]["support"]),
        key=lambda name: (table[name]["f1"], -table[name]["support"]),
    )
    return {
        ", most frequent": most_frequent(table, MOST_LINES // 2),
        ", worst": {name: table[name] for name in worst[: MOST_LINES // 2]},
    }


def most_frequent(table: dict[str, Any], most: int) -> dict[str, Any]:
    """The labels with the most examples, in the order of the table."""
    names = set(sorted(table, key=lambda name: -table[name]["support"])[:most])
    return {name: row for name, row in table.items() if name in names}
