"""What a run writes of itself while it goes on, and when it ends before its epochs do."""

from pathlib import Path

import pytest
import torch

from bertorch.errors import InterruptedRunError, UserError
from bertorch.training import run_state as results
from bertorch.training.loop import fit
from bertorch.training.metrics_file import METRICS, read_metrics
from tests.conftest import run_processes
from tests.training.several_processes import NO_DROPOUT, config
from tests.training.test_loop import make_task, random_dataset
from tests.training.test_resume import DROPOUT, assert_equal, stop_after

CLOCK = ("speed", "tokens_per_second", "memory")


def trained(folder: Path, **settings) -> dict[str, torch.Tensor]:
    """The weights at the end of a run of 4 steps an epoch."""
    task = make_task(**DROPOUT)
    fit(config(folder, **settings), task, random_dataset(32), random_dataset(10, seed=1))
    return task.model.weights.state_dict()


def numbers(folder: Path) -> list[dict]:
    """The lines of a run without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name not in CLOCK} for line in read_metrics(folder / METRICS)
    ]


@pytest.fixture
def scripted(monkeypatch):
    """Dev metrics to come, by step; the evaluations themselves are as always."""
    values: dict[int, float] = {}
    evaluated: list[int] = []

    def patched(self, step):
        evaluated.append(step.number)
        monkeypatch.setattr("bertorch.training.metrics.ClassificationMetric.value", values[step.number])
        return original(self, step)

    original = results.Results._evaluate
    monkeypatch.setattr(results.Results, "_evaluate", patched)
    return values, evaluated


def test_a_line_for_each_log_line_and_each_evaluation(tmp_path, log_lines):
    trained(tmp_path, logging_steps=2, eval_steps=3, save_steps=100, epochs=2, weight_decay=0.1)
    lines = read_metrics(tmp_path / METRICS)
    assert [(line["step"], line["epoch"], "metric" in line) for line in lines] == [
        (2, 1, False), (3, 1, True), (4, 1, False), (6, 2, False), (6, 2, True), (8, 2, False), (8, 2, True)
    ]  # fmt: skip
    told = [line for line in log_lines if line.startswith(("global step", "eval loss"))]
    for line, message in zip(lines, told, strict=True):
        if "metric" in line:
            assert message == f"eval loss: {line['dev_loss']:.5f}, accuracy: {line[line['metric']]:.5f}"
        else:
            assert f"loss: {line['loss']:.5f}, accuracy: {line['accuracy']:.5f}, speed: {line['speed']:.2f}" in message
            assert line["tokens_per_second"] > line["speed"] * 8
            assert line["memory"] > 2**20
    assert [line["rate"] for line in lines if "rate" in line] == pytest.approx([7e-3 / 8, 5e-3 / 8, 3e-3 / 8, 1e-3 / 8])


@pytest.mark.parametrize("stops", [(1,), (3, 5), (6,)])
def test_a_run_that_goes_on_has_the_lines_of_one_that_nothing_stopped(stops, tmp_path, monkeypatch):
    """A killed run has written more than its checkpoint knows of, also half a line."""
    settings = {"logging_steps": 1, "eval_steps": 2, "save_steps": 3, "patience": 9}
    expected = trained(tmp_path / "whole", **settings)
    for stop in stops:
        stop_after(monkeypatch, stop)
        with pytest.raises(InterruptedRunError):
            trained(tmp_path / "parts", **settings)
        with (tmp_path / "parts" / METRICS).open("a") as file:
            file.write(f'{{"step": {stop + 1}, "loss": 7.0}}\n{{"step": {stop + 2}, "l')
    monkeypatch.undo()
    assert_equal(trained(tmp_path / "parts", **settings), expected)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_the_lines_of_a_finished_run_stay_until_the_first_save_of_the_next(tmp_path, monkeypatch):
    settings = {"logging_steps": 1, "save_steps": 4}
    trained(tmp_path, **settings)
    before = (tmp_path / METRICS).read_bytes()
    seen = []
    written = results.Results.record

    def spied(self, *arguments) -> None:
        written(self, *arguments)
        seen.append((tmp_path / METRICS).read_bytes())

    monkeypatch.setattr(results.Results, "record", spied)
    trained(tmp_path, **settings)
    assert seen[:5] == [before] * 5  # four steps and the evaluation before the first save
    assert len(seen[5].splitlines()) == 6
    assert (tmp_path / METRICS).read_bytes() == seen[-1] != before


def test_a_run_that_saved_nothing_leaves_lines_that_the_next_replaces(tmp_path, log_lines):
    (tmp_path / METRICS).write_text('{"step": 9, "loss": 1.0}\n')
    trained(tmp_path, logging_steps=8)
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == [3, 6, 8, 8]
    assert any(line.endswith(f"{METRICS} is from a run that saved nothing; this one replaces it") for line in log_lines)


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    def full_disk(self, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bertorch.training.metrics_file.MetricsFile.append", full_disk)
    with pytest.raises(UserError, match="--saved_dir .* expected a folder with room to write to, got: No space left"):
        trained(tmp_path)


def test_evaluations_and_saves_have_their_own_steps(tmp_path, scripted, monkeypatch):
    """The best weights are saved when they are found, with the checkpoint or without."""
    values, evaluated = scripted
    values |= {3: 0.5, 6: 0.7, 8: 0.6}
    saves = []
    for name in ("save_weights", "save_state"):
        original = getattr(results.RunFolder, name)

        def spied(self, *arguments, name=name, original=original):
            saves.append((evaluated[-1] if evaluated else 0, name))
            original(self, *arguments)

        monkeypatch.setattr(results.RunFolder, name, spied)
    trained(tmp_path, eval_steps=3, save_steps=4, save_best_model=True)
    assert evaluated == [3, 6, 8]
    assert saves == [(3, "save_weights"), (3, "save_state"), (6, "save_weights"), (8, "save_state")]


def test_patience_counts_evaluations_in_a_row(tmp_path, scripted, log_lines):
    values, evaluated = scripted
    values |= {1: 0.5, 2: 0.4, 3: 0.6, 4: 0.6, 5: 0.2}
    trained(tmp_path, eval_steps=1, save_steps=100, patience=2)
    assert evaluated == [1, 2, 3, 4, 5]
    assert log_lines[-3:] == [
        "ends early: evaluations without a better dev metric: 2",
        "best dev accuracy: 0.60000 at step 3",
        f"weights of step 5: {tmp_path}/pytorch_model.bin",
    ]
    assert (tmp_path / "checkpoint-5").is_dir()


def test_a_run_that_ended_early_is_complete(tmp_path, scripted, log_lines):
    values, evaluated = scripted
    values |= {1: 0.5, 2: 0.4, 3: 0.4}
    settings = {"eval_steps": 1, "save_steps": 2, "patience": 2, "save_best_model": True}
    expected = trained(tmp_path, **settings)
    told, files = log_lines[-2:], (tmp_path / METRICS).read_bytes()
    assert told[-1].startswith("weights of step 1:")
    assert_equal(trained(tmp_path, **settings, resume=True), expected)
    assert evaluated == [1, 2, 3]
    assert any(line.endswith("the run is complete, after step 3") for line in log_lines)
    assert log_lines[-2:] == told
    assert (tmp_path / METRICS).read_bytes() == files


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_patience_outlives_a_stop(stop, tmp_path, scripted, monkeypatch):
    values, evaluated = scripted
    values |= {2: 0.5, 4: 0.4, 6: 0.4}
    settings = {"eval_steps": 2, "save_steps": 100, "patience": 2}
    expected = trained(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(InterruptedRunError):
            trained(tmp_path / "parts", **settings)
    assert_equal(trained(tmp_path / "parts", **settings), expected)
    assert evaluated == [2, 4, 6] * 2
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_the_schedule_ends_with_the_steps(tmp_path):
    trained(tmp_path, max_steps=6, logging_steps=1, epochs=2, save_steps=100)
    rates = [(line["step"], line["epoch"], line["rate"]) for line in numbers(tmp_path) if "rate" in line]
    assert [rate[:2] for rate in rates] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
    assert [rate for *_, rate in rates] == pytest.approx([1e-3 * (6 - step) / 6 for step in range(6)])
    assert (tmp_path / "checkpoint-6").is_dir()


def test_more_steps_than_the_epochs_have_change_nothing(tmp_path):
    assert_equal(trained(tmp_path / "a", max_steps=100), trained(tmp_path / "b"))
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


def train_in_double(folder: Path, batch_size: int) -> None:
    task = make_task(**NO_DROPOUT)
    task.model.double()
    settings = {"learning_rate": 0.05, "eval_steps": 1, "patience": 2, "epochs": 5, "max_steps": 15, "logging_steps": 1}
    fit(config(folder, batch_size=batch_size, **settings), task, random_dataset(30), random_dataset(11, seed=1))


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_end_early_as_one_and_write_once(world_size, tmp_path):
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    train_in_double(tmp_path / "one", 12)
    run_processes(world_size, train_in_double, tmp_path / "many", 12 // world_size)
    one, many = (numbers(tmp_path / name) for name in ("one", "many"))
    assert one[-1]["step"] < 15
    assert len(one) == len(many) == 2 * one[-1]["step"]
    for ours, theirs in zip(many, one, strict=True):
        assert ours.pop("metric", None) == theirs.pop("metric", None)
        assert ours == pytest.approx(theirs, rel=1e-6)
