"""What a run writes of itself while it goes on, and when it ends before its epochs do."""

from pathlib import Path

import pytest
import torch

from bertorch.errors import InterruptedRunError, UserError
from bertorch.training import run_state
from bertorch.training.metrics_file import METRICS, MetricsFile, read_metrics
from bertorch.training.run_saver import RunSaver
from bertorch.training.run_state import RunKeeper
from tests.conftest import run_processes
from tests.short_runs import assert_equal, stop_after, trained
from tests.small_tasks import DROPOUT, NO_DROPOUT, classification_data, classification_task

CLOCK = ("speed", "tokens_per_second", "memory")


def run(folder: Path, **settings) -> dict[str, torch.Tensor]:
    """The weights at the end of a run of 4 steps an epoch."""
    task = classification_task(**DROPOUT)
    return trained(folder, task, classification_data(32), classification_data(10, seed=1), **settings)


def numbers(folder: Path) -> list[dict]:
    """The lines of a run without what depends on the clock."""
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines_of(folder)]


def lines_of(folder: Path) -> list[dict]:
    """The lines of a finished run without the last one, which says where its time went."""
    *lines, last = read_metrics(folder / METRICS)
    assert last["step"] == lines[-1]["step"]
    assert last["seconds"] == pytest.approx(sum(last[name] for name in last if name.startswith("seconds_")))
    return lines


@pytest.fixture
def scripted(monkeypatch):
    """Dev metrics to come, in order; the evaluations themselves are as always. And those that have come."""
    values: list[float] = []
    evaluated: list[float] = []

    def patched(*arguments, **options):
        metric = original(*arguments, **options)
        evaluated.append(values[len(evaluated)])
        monkeypatch.setattr(type(metric), "value", evaluated[-1])
        return metric

    original = run_state.evaluate
    monkeypatch.setattr(run_state, "evaluate", patched)
    return values, evaluated


def evaluations(folder: Path) -> list[int]:
    """The steps after which a run has evaluated."""
    return [line["step"] for line in read_metrics(folder / METRICS) if "metric" in line]


def test_a_line_for_each_log_line_and_each_evaluation(tmp_path, log_lines):
    run(tmp_path, logging_steps=2, eval_steps=3, save_steps=100, epochs=2, weight_decay=0.1)
    lines = lines_of(tmp_path)
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


@pytest.mark.parametrize(
    "stops", [pytest.param((1,), marks=pytest.mark.slow), (3, 5), pytest.param((6,), marks=pytest.mark.slow)]
)
def test_a_run_that_goes_on_has_the_lines_of_one_that_nothing_stopped(stops, tmp_path, monkeypatch):
    """A killed run has written more than its checkpoint knows of, also half a line."""
    settings = {"logging_steps": 1, "eval_steps": 2, "save_steps": 3, "patience": 9}
    expected = run(tmp_path / "whole", **settings)
    for stop in stops:
        stop_after(monkeypatch, stop)
        with pytest.raises(InterruptedRunError):
            run(tmp_path / "parts", **settings)
        with (tmp_path / "parts" / METRICS).open("a") as file:
            file.write(f'{{"step": {stop + 1}, "loss": 7.0}}\n{{"step": {stop + 2}, "l')
    monkeypatch.undo()
    assert_equal(run(tmp_path / "parts", **settings), expected)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_the_lines_of_a_finished_run_stay_until_the_first_save_of_the_next(tmp_path, monkeypatch):
    settings = {"logging_steps": 1, "save_steps": 4}
    run(tmp_path, **settings)
    before = (tmp_path / METRICS).read_bytes()
    seen = []
    append = MetricsFile.append

    def spied(self, line) -> None:
        append(self, line)
        seen.append((tmp_path / METRICS).read_bytes())

    monkeypatch.setattr(MetricsFile, "append", spied)
    run(tmp_path, **settings)
    assert seen[:5] == [before] * 5  # four steps and the evaluation before the first save
    assert (tmp_path / METRICS).read_bytes() == seen[-1] != before
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]


def test_a_run_that_saved_nothing_leaves_lines_that_the_next_replaces(tmp_path, log_lines):
    (tmp_path / METRICS).write_text('{"step": 9, "loss": 1.0}\n')
    run(tmp_path, logging_steps=8)
    assert [line["step"] for line in lines_of(tmp_path)] == [3, 6, 8, 8]
    assert any(
        f"{METRICS} is from a run that saved nothing, or of another program; the first" in line for line in log_lines
    )


def test_lines_of_others_stay_until_something_is_saved(tmp_path, monkeypatch):
    (tmp_path / METRICS).write_text("of another program")
    monkeypatch.setattr(RunKeeper, "load_weights", failing)
    with pytest.raises(UserError, match="no weights"):
        run(tmp_path)
    assert (tmp_path / METRICS).read_text() == "of another program"


def failing(_):
    raise UserError("no weights")


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    def full_disk(self, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsFile, "append", full_disk)
    with pytest.raises(UserError, match="--saved_dir .* expected a folder with room to write to, got: No space left"):
        run(tmp_path)


def test_evaluations_and_saves_have_their_own_steps(tmp_path, scripted, monkeypatch):
    """The best weights are saved when they are found, with the checkpoint or without."""
    values, evaluated = scripted
    values += [0.5, 0.7, 0.6]
    saves = []
    for name in ("save_weights", "save_checkpoint"):
        original = getattr(RunSaver, name)

        def spied(self, *arguments, name=name, original=original, **options):
            saves.append((len(evaluated), name))
            original(self, *arguments, **options)

        monkeypatch.setattr(RunSaver, name, spied)
    run(tmp_path, eval_steps=3, save_steps=4, save_best_model=True)
    assert evaluations(tmp_path) == [3, 6, 8]
    assert saves == [(1, "save_weights"), (1, "save_checkpoint"), (2, "save_weights"), (3, "save_checkpoint")]


def test_patience_counts_evaluations_in_a_row(tmp_path, scripted, log_lines):
    values, _ = scripted
    values += [0.5, 0.4, 0.6, 0.6, 0.2]
    run(tmp_path, eval_steps=1, save_steps=100, patience=2)
    assert evaluations(tmp_path) == [1, 2, 3, 4, 5]
    assert log_lines[-4] == "ends early: evaluations without a better dev metric: 2"
    assert log_lines[-2:] == [
        "best dev accuracy: 0.60000 at step 3",
        f"weights of step 5: {tmp_path}/pytorch_model.bin",
    ]
    assert (tmp_path / "checkpoint-5").is_dir()


def test_a_run_that_ended_early_is_complete(tmp_path, scripted, log_lines):
    values, evaluated = scripted
    values += [0.5, 0.4, 0.4]
    settings = {"eval_steps": 1, "save_steps": 2, "patience": 2, "save_best_model": True}
    expected = run(tmp_path, **settings)
    told, files = log_lines[-2:], (tmp_path / METRICS).read_bytes()
    assert told[-1].startswith("weights of step 1:")
    assert_equal(run(tmp_path, **settings, resume=True), expected)
    assert evaluated == values  # none again
    assert evaluations(tmp_path) == [1, 2, 3]
    assert any(line.endswith("the run is complete, after step 3") for line in log_lines)
    assert log_lines[-2:] == told
    assert (tmp_path / METRICS).read_bytes() == files


@pytest.mark.parametrize(
    "stop", [pytest.param(1, marks=pytest.mark.slow), 2, 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_patience_outlives_a_stop(stop, tmp_path, scripted, monkeypatch):
    values, evaluated = scripted
    values += [0.5, 0.4, 0.4] * 2
    settings = {"eval_steps": 2, "save_steps": 100, "patience": 2}
    expected = run(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(InterruptedRunError):
            run(tmp_path / "parts", **settings)
    assert_equal(run(tmp_path / "parts", **settings), expected)
    assert evaluated == values  # none twice
    assert evaluations(tmp_path / "parts") == [2, 4, 6]
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_the_schedule_ends_with_the_steps(tmp_path):
    run(tmp_path, max_steps=6, logging_steps=1, epochs=2, save_steps=100)
    rates = [(line["step"], line["epoch"], line["rate"]) for line in numbers(tmp_path) if "rate" in line]
    assert [rate[:2] for rate in rates] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
    assert [rate for *_, rate in rates] == pytest.approx([1e-3 * (6 - step) / 6 for step in range(6)])
    assert (tmp_path / "checkpoint-6").is_dir()


def test_more_steps_than_the_epochs_have_change_nothing(tmp_path):
    assert_equal(run(tmp_path / "a", max_steps=100), run(tmp_path / "b"))
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


def train_in_double(folder: Path, batch_size: int) -> None:
    task = classification_task(**NO_DROPOUT)
    task.model.double()
    settings = {"learning_rate": 0.05, "eval_steps": 1, "patience": 2, "epochs": 5, "max_steps": 15, "logging_steps": 1}
    dev = classification_data(11, seed=1)
    trained(folder, task, classification_data(30), dev, batch_size=batch_size, **settings)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
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


def test_a_run_of_fewer_steps_than_logging_steps_has_a_line_of_its_last(tmp_path, log_lines):
    run(tmp_path, max_steps=3, logging_steps=20)
    lines = [line for line in lines_of(tmp_path) if "metric" not in line]
    assert [line["step"] for line in lines] == [3]
    assert sum(line.startswith("global step: 3,") for line in log_lines) == 1
