import json
import math

import pytest

from bertorch.data.predictions import read_evaluation
from bertorch.errors import UserError
from tests.folders_of_evaluations import classified, write_evaluation


@pytest.fixture
def folder(tmp_path):
    write_evaluation(tmp_path / "report", classified(0.8, seed=1))
    return tmp_path / "report"


def change(folder, **entries) -> None:
    report = json.loads((folder / "report.json").read_text()) | entries
    (folder / "report.json").write_text(json.dumps(report))


def test_what_is_written_is_read(folder):
    read = read_evaluation(str(folder))
    table = classified(0.8, seed=1)
    assert read.table == table
    assert (read.task, read.data, read.digest) == ("classification", "dev.txt", "d")


def expect(folder, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_evaluation(str(folder))


def test_a_report_of_an_earlier_version(folder):
    report = json.loads((folder / "report.json").read_text())
    del report["measures"]
    (folder / "report.json").write_text(json.dumps(report))
    expect(folder, "got one from an earlier version, or of a task without them; evaluate again, with --overwrite")


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"task": 1}', "\xff"])
def test_a_damaged_report(folder, text):
    (folder / "report.json").write_text(text, encoding="latin-1")
    expect(folder, "report.json: expected the report of bertorch.evaluate, got ")


@pytest.mark.parametrize(
    "measures",
    [[1], {"accuracy": 1}, {"accuracy": {"kind": "median", "columns": ["right"], "classes": 0, "value": 1}}],
)
def test_damaged_measures(folder, measures):
    change(folder, measures=measures)
    expect(folder, "report.json: expected measures as bertorch.evaluate has them, got ")


@pytest.mark.filterwarnings("error")
def test_a_mean_over_no_classes(folder):
    measures = json.loads((folder / "report.json").read_text())["measures"]
    measures["macro_f1"]["classes"] = 0
    change(folder, measures=measures)
    expect(folder, "expected the predictions of the report.json beside it, got macro_f1 inf there and 0.8")


def test_missing_predictions(folder):
    (folder / "predictions.jsonl").unlink()
    expect(folder, "predictions.jsonl: expected a readable text file, got: No such file")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"number": 1}', "predictions.jsonl:201: expected 'gold' in a line of predictions.jsonl, got only number"),
        ("right", "predictions.jsonl:201:1: expected a JSON object"),
    ],
)
def test_damaged_predictions(folder, line, message):
    with (folder / "predictions.jsonl").open("a") as file:
        file.write(line + "\n")
    expect(folder, message)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [None, [1], "yes", pytest.param(10**400, id="huge"), math.inf])
def test_values_that_are_no_numbers(folder, value):
    path = folder / "predictions.jsonl"
    rows = [json.loads(line) | {"right": value} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expect(folder, "predictions.jsonl: expected ")


def test_files_of_two_evaluations(folder, tmp_path):
    other = write_evaluation(tmp_path / "other", classified(0.7, seed=2))
    (folder / "predictions.jsonl").write_text((tmp_path / "other" / "predictions.jsonl").read_text())
    expect(folder, "expected the predictions of the report.json beside it, got accuracy 0.7.* there and 0.8")
    assert read_evaluation(other).table.measures
