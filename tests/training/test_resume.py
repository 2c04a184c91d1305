"""A run that was stopped goes on as if it had not been."""

from contextlib import suppress
from functools import partial

import pytest
import torch

from bertorch.errors import InterruptedRunError, UserError
from bertorch.training.interruption import Interruption
from bertorch.training.metrics_file import METRICS, read_metrics
from tests.conftest import run_processes, slow_but
from tests.short_runs import assert_equal, config, fit, stop_after, train_in_double, trained
from tests.small_tasks import (
    DROPOUT,
    NO_DROPOUT,
    classification_data,
    classification_task,
    contrastive_data,
    contrastive_task,
    cosent_task,
    entity_data,
    global_pointer_task,
    group_data,
    multi_label_data,
    multi_label_task,
    pair_data,
    ranking_task,
    score_data,
    score_task,
    scored_pair_data,
    siamese_task,
    tagged_data,
    tagging_task,
    weighted_task,
    windowed_data,
    windowed_task,
)

TASKS = {
    "classifier": (partial(classification_task, **DROPOUT), partial(classification_data, 29)),
    "several labels": (partial(multi_label_task, "zlpr", **DROPOUT), partial(multi_label_data, 29)),
    "scores": (partial(score_task, **DROPOUT), partial(score_data, 29)),
    "groups": (partial(ranking_task, **DROPOUT), partial(group_data, 29)),
    "windows": (partial(windowed_task, **DROPOUT), partial(windowed_data, 29)),
    "unequal classes": (partial(weighted_task, **DROPOUT), partial(classification_data, 29)),
    "pairs": (partial(siamese_task, **DROPOUT), pair_data),
    "contrastive": (partial(contrastive_task, micro_batch_size=3, **DROPOUT), partial(contrastive_data, 29)),
    "cosent": (partial(cosent_task, micro_batch_size=3, **DROPOUT), partial(scored_pair_data, 29)),
    "linear tagger": (partial(tagging_task, use_crf=False, **DROPOUT), partial(tagged_data, 29)),
    "crf tagger": (partial(tagging_task, use_crf=True, **DROPOUT), partial(tagged_data, 29)),
    "global pointer": (partial(global_pointer_task, **DROPOUT), partial(entity_data, 29)),
}


def run_task(folder, name="classifier", **settings) -> dict[str, torch.Tensor]:
    """Train a task on its data, and evaluate it on them if it has an accuracy."""
    make_task, make_train = TASKS[name]
    task, train = make_task(), make_train()
    return trained(folder, task, train, train if "accuracy" in task.loss_parts else None, **settings)


def results_told(lines: list[str]) -> list[str]:
    """What the last run said at its end."""
    return [line.split("weights of")[-1].split(":")[0] for line in lines[-2:] if "speed" not in line]


@pytest.mark.parametrize("name", slow_but(["classifier", "contrastive", "crf tagger"], TASKS))
@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stopped_run_ends_with_the_same_weights_bit_for_bit(name, accumulation, tmp_path, monkeypatch, log_lines):
    """Stopped in the first epoch, at a save, and in the second epoch; with dropout, warm-up and a cosine schedule."""
    settings = {"scheduler": "cosine", "warmup_proportion": 0.3, "gradient_accumulation_steps": accumulation}
    settings |= {"epochs": 3, "weight_decay": 0.01, "max_grad_norm": 0.5}
    expected = run_task(tmp_path / "whole", name, **settings)
    told = results_told(log_lines)
    for stop in (1, 3, 5):
        stop_after(monkeypatch, stop)
        with pytest.raises(InterruptedRunError) as stopped:
            run_task(tmp_path / "parts", name, **settings)
        assert str(stopped.value) == f"stopped after step {stop}, with a checkpoint in {tmp_path / 'parts'}"
        assert stopped.value.goes_on
    monkeypatch.undo()
    assert_equal(run_task(tmp_path / "parts", name, **settings, resume=True), expected)
    assert results_told(log_lines) == told
    saved, whole = (torch.load(tmp_path / run / "pytorch_model.bin") for run in ("parts", "whole"))
    assert_equal(saved, whole)


def test_a_run_does_not_go_on_with_another_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    vocabulary = tmp_path / "model" / "vocab.txt"
    vocabulary.write_text("a\nb\n")
    settings = {"pretrained_model_name_or_path": str(tmp_path / "model")}
    stop_after(monkeypatch, 3)
    with pytest.raises(InterruptedRunError):
        run_task(tmp_path / "run", **settings)
    vocabulary.write_text("b\na\n")
    with pytest.raises(UserError, match="content of --pretrained_model_name_or_path, vocab.txt: .* there, .* now"):
        run_task(tmp_path / "run", **settings, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_gradient_checkpointing_reaches_every_task_and_may_come_and_go(name, tmp_path, monkeypatch):
    """It changes no bit of the weights, so a run goes on with it or without it."""
    expected = run_task(tmp_path / "whole", name)
    stop_after(monkeypatch, 3)
    make_task, make_train = TASKS[name]
    task = make_task()
    with pytest.raises(InterruptedRunError):
        fit(config(tmp_path / "parts", gradient_checkpointing=True), task, make_train(), None)
    assert any(getattr(module, "gradient_checkpointing", False) for module in task.model.modules())
    monkeypatch.undo()
    assert_equal(run_task(tmp_path / "parts", name), expected)


def test_the_best_metric_and_its_weights_outlive_a_stop(tmp_path, monkeypatch, log_lines):
    settings = {"save_best_model": True, "save_steps": 2, "learning_rate": 0.05, "epochs": 3}
    run_task(tmp_path / "whole", **settings)
    told = results_told(log_lines)
    stop_after(monkeypatch, 4, 7)
    for _ in range(2):
        with pytest.raises(InterruptedRunError):
            run_task(tmp_path / "parts", **settings)
    monkeypatch.undo()
    run_task(tmp_path / "parts", **settings)
    assert results_told(log_lines) == told
    saved, whole = (torch.load(tmp_path / run / "pytorch_model.bin") for run in ("parts", "whole"))
    assert_equal(saved, whole)


def test_a_finished_run_has_nothing_left_to_do(tmp_path, log_lines):
    expected = run_task(tmp_path)
    before = log_lines[-2:]
    assert_equal(run_task(tmp_path, resume=True), expected)
    assert log_lines[-2:] == before
    assert sum(line.startswith("global step: 8,") for line in log_lines) == 1


def test_weights_to_warm_start_from_are_not_needed_to_go_on(tmp_path, monkeypatch):
    start = tmp_path / "start.bin"
    torch.save(classification_task().model.weights.state_dict(), start)
    stop_after(monkeypatch, 5)
    with pytest.raises(InterruptedRunError):
        run_task(tmp_path / "run", init_from_ckpt=str(start))
    monkeypatch.undo()
    start.unlink()
    run_task(tmp_path / "run", init_from_ckpt=str(start))


def train_until(folder, batch_size: int, stop: int | None) -> None:
    if stop is not None:
        Interruption.requested = lambda self, step: step == stop
    with suppress(InterruptedRunError):
        task = partial(classification_task, **NO_DROPOUT)
        train_in_double(folder, task, classification_data(29), {"batch_size": batch_size})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 2), (2, 3), (3, 1)],
)
def test_another_number_of_processes_goes_on_with_the_same_batch(before, after, tmp_path):
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    train_until(tmp_path / "whole", 12, None)
    run_processes(before, train_until, tmp_path / "parts", 12 // before, 4)
    assert list((tmp_path / "parts").glob("rank*")) == []
    run_processes(after, train_until, tmp_path / "parts", 12 // after, None)
    expected = torch.load(tmp_path / "whole" / "rank0.pt")
    for rank in range(after):
        for name, tensor in torch.load(tmp_path / "parts" / f"rank{rank}.pt").items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-9)


def test_other_options_or_data_are_refused(tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedRunError):
        run_task(tmp_path)
    with pytest.raises(UserError, match="--learning_rate: 0.001 there, 0.002 now"):
        run_task(tmp_path, learning_rate=2e-3, resume=True)


def test_a_stop_without_checkpoints_says_so(tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedRunError) as stopped:
        run_task(tmp_path, keep_checkpoints=0)
    assert (str(stopped.value), stopped.value.goes_on) == ("stopped after step 2", False)


def test_a_stop_in_the_last_step_finds_the_run_complete(tmp_path, monkeypatch, log_lines):
    expected = run_task(tmp_path / "whole")
    steps = read_metrics(tmp_path / "whole" / METRICS)[-1]["step"]
    stop_after(monkeypatch, steps)
    log_lines.clear()
    assert_equal(run_task(tmp_path / "stopped"), expected)
    assert any(line.startswith(f"weights of step {steps}: ") for line in log_lines)
