import errno
import json
import math
from pathlib import Path

import pytest

from bertorch.errors import UserError
from bertorch.training.metrics_file import METRICS, MetricsFile, read_metrics


def line(step: int) -> dict:
    return {"step": step, "loss": step / 7, "metric": "准确率"}


def started(folder, *steps: int) -> MetricsFile:
    file = MetricsFile(folder)
    file.start()
    for step in steps:
        file.append(line(step))
    return file


def test_each_line_is_there_at_once(tmp_path):
    file = started(tmp_path)
    for step in (2, 4, 6):
        file.append(line(step))
        text = (tmp_path / METRICS).read_text(encoding="utf-8")
        assert [json.loads(row) for row in text.splitlines()] == [line(number) for number in range(2, step + 1, 2)]
    assert "准确率" in text


def test_a_run_that_goes_on_drops_what_came_after_its_checkpoint(tmp_path):
    started(tmp_path, 2, 4, 4, 6)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 8, "lo')  # killed in the middle
    again = MetricsFile(tmp_path)
    again.resume(4)
    again.append(line(6))
    assert read_metrics(tmp_path / METRICS) == [line(2), line(4), line(4), line(6)]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_a_run_that_goes_on_without_its_file_starts_one(tmp_path):
    file = MetricsFile(tmp_path)
    file.resume(4)
    file.append(line(6))
    assert read_metrics(tmp_path / METRICS) == [line(6)]


def test_lines_are_held_back_until_the_results_of_the_earlier_run_go(tmp_path):
    started(tmp_path, 2, 4)
    file = MetricsFile(tmp_path)
    file.append(line(1))
    assert read_metrics(tmp_path / METRICS) == [line(2), line(4)]
    file.release()
    assert read_metrics(tmp_path / METRICS) == [line(1)]
    file.append(line(3))
    file.release()
    assert read_metrics(tmp_path / METRICS) == [line(1), line(3)]


@pytest.mark.parametrize("begin", ["release", "resume"])
def test_a_prepared_link_is_not_written_through(begin, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / METRICS
    victim.write_text('{"step": 1}\n')
    path.symlink_to("victim")
    file = MetricsFile(tmp_path)
    {"release": file.release, "resume": lambda: file.resume(1)}[begin]()
    file.append(line(2))
    assert not path.is_symlink()
    path.unlink()
    path.symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"):
        file.append(line(3))
    assert victim.read_text() == '{"step": 1}\n'


def test_numbers_that_json_does_not_have_are_left_out(tmp_path):
    file = started(tmp_path)
    file.append({"step": 1, "loss": math.nan, "rate": math.inf, "speed": 2.0})
    text = (tmp_path / METRICS).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "speed": 2.0}


def test_an_unfinished_last_line_is_left_out(tmp_path):
    started(tmp_path, 2)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4}')
    assert read_metrics(tmp_path / METRICS) == [line(2)]


@pytest.mark.parametrize(
    "content",
    [
        "step 1\n",
        "[1]\n",
        '{"loss": 1}\n',
        '{"step": "a"}\n',
        "\udcff\n",
        '{"step": 1, "loss": {}}\n',
        '{"step": 1, "metric": []}\n',
        '{"step": 1, "loss": "low"}\n',
        "[" * 10**5 + "\n",
        '{"step": 1' + "0" * 400 + "}\n",
        '{"step": 1, "loss": 1' + "0" * 400 + "}\n",
        '{"step": 1, "loss": -1e308}\n',
    ],
)
def test_another_line_is_named(content, tmp_path):
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n' + content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"{METRICS}:2: expected a JSON object with a step, got "):
        read_metrics(tmp_path / METRICS)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / METRICS).write_text('{"step": 1, "loss": NaN}\n')
    assert math.isnan(read_metrics(tmp_path / METRICS)[0]["loss"])

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(UserError, match=f"expected a readable {METRICS}, got: Permission denied"):
        read_metrics(tmp_path / METRICS)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=f"{METRICS}: expected the {METRICS} of a run, got: No such file"):
        read_metrics(tmp_path / METRICS)
