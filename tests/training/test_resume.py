"""A run that was stopped goes on as if it had not been."""

from functools import partial

import pytest
import torch

from bertorch import distributed
from bertorch.errors import InterruptedRunError, UserError
from bertorch.training.interruption import Interruption
from bertorch.training.loop import fit
from tests.conftest import run_processes
from tests.tasks import test_contrastive, test_tagging
from tests.training import test_loop as test_trainer
from tests.training.several_processes import NO_DROPOUT, config

TASKS = {
    "classifier": (test_trainer.make_task, partial(test_trainer.random_dataset, 29)),
    "pairs": (test_trainer.make_siamese_task, test_trainer.random_pairs),
    "contrastive": (partial(test_contrastive.make_task, micro_batch_size=3), partial(test_contrastive.random_rows, 29)),
    "linear tagger": (partial(test_tagging.make_task, use_crf=False), partial(test_tagging.random_sentences, 29)),
    "crf tagger": (partial(test_tagging.make_task, use_crf=True), partial(test_tagging.random_sentences, 29)),
}
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}


def stop_after(monkeypatch, *steps: int) -> None:
    monkeypatch.setattr(Interruption, "requested", lambda self, step: step in steps)


def trained(folder, make_task, train, **settings) -> dict[str, torch.Tensor]:
    task = make_task()
    fit(config(folder, **settings), task, train, train if task.counts_correct else None)
    return task.model.weights.state_dict()


def results_told(lines: list[str]) -> list[str]:
    """What the last run said at its end."""
    return [line.split("weights of")[-1].split(":")[0] for line in lines[-2:] if "speed" not in line]


def assert_equal(ours, expected) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stopped_run_ends_with_the_same_weights_bit_for_bit(name, accumulation, tmp_path, monkeypatch, log_lines):
    """Stopped in the first epoch, at a save, and in the second epoch; with dropout, warm-up and a cosine schedule."""
    make_task, make_train = TASKS[name]
    make_task = partial(make_task, **DROPOUT) if name != "pairs" else make_task
    settings = {"scheduler": "cosine", "warmup_proportion": 0.3, "gradient_accumulation_steps": accumulation}
    settings |= {"epochs": 3, "weight_decay": 0.01, "max_grad_norm": 0.5}
    expected = trained(tmp_path / "whole", make_task, make_train(), **settings)
    told = results_told(log_lines)
    for stop in (1, 3, 5):
        stop_after(monkeypatch, stop)
        with pytest.raises(InterruptedRunError) as stopped:
            trained(tmp_path / "parts", make_task, make_train(), **settings)
        assert (stopped.value.step, stopped.value.folder) == (stop, str(tmp_path / "parts"))
    monkeypatch.undo()
    assert_equal(trained(tmp_path / "parts", make_task, make_train(), **settings, resume=True), expected)
    assert results_told(log_lines) == told
    saved, whole = (torch.load(tmp_path / run / "pytorch_model.bin") for run in ("parts", "whole"))
    assert_equal(saved, whole)


@pytest.mark.parametrize("name", TASKS)
def test_gradient_checkpointing_reaches_every_task_and_may_come_and_go(name, tmp_path, monkeypatch):
    """It changes no bit of the weights, so a run goes on with it or without it."""
    make_task, make_train = TASKS[name]
    make_task = partial(make_task, **DROPOUT) if name != "pairs" else make_task
    expected = trained(tmp_path / "whole", make_task, make_train())
    stop_after(monkeypatch, 3)
    task = make_task()
    with pytest.raises(InterruptedRunError):
        fit(config(tmp_path / "parts", gradient_checkpointing=True), task, make_train(), None)
    assert any(getattr(module, "gradient_checkpointing", False) for module in task.model.modules())
    monkeypatch.undo()
    assert_equal(trained(tmp_path / "parts", make_task, make_train()), expected)


def test_the_best_metric_and_its_weights_outlive_a_stop(tmp_path, monkeypatch, log_lines):
    settings = {"save_best_model": True, "save_steps": 2, "learning_rate": 0.05, "epochs": 3}
    make_task, make_train = TASKS["classifier"]
    trained(tmp_path / "whole", make_task, make_train(), **settings)
    told = results_told(log_lines)
    stop_after(monkeypatch, 4, 7)
    for _ in range(2):
        with pytest.raises(InterruptedRunError):
            trained(tmp_path / "parts", make_task, make_train(), **settings)
    monkeypatch.undo()
    trained(tmp_path / "parts", make_task, make_train(), **settings)
    assert results_told(log_lines) == told
    saved, whole = (torch.load(tmp_path / run / "pytorch_model.bin") for run in ("parts", "whole"))
    assert_equal(saved, whole)


def test_a_finished_run_has_nothing_left_to_do(tmp_path, log_lines):
    make_task, make_train = TASKS["classifier"]
    expected = trained(tmp_path, make_task, make_train())
    before = log_lines[-2:]
    assert_equal(trained(tmp_path, make_task, make_train(), resume=True), expected)
    assert log_lines[-2:] == before
    assert sum(line.startswith("global step: 8,") for line in log_lines) == 1


def test_weights_to_warm_start_from_are_not_needed_to_go_on(tmp_path, monkeypatch):
    make_task, make_train = TASKS["classifier"]
    start = tmp_path / "start.bin"
    torch.save(make_task().model.weights.state_dict(), start)
    stop_after(monkeypatch, 5)
    with pytest.raises(InterruptedRunError):
        trained(tmp_path / "run", make_task, make_train(), init_from_ckpt=str(start))
    monkeypatch.undo()
    start.unlink()
    trained(tmp_path / "run", make_task, make_train(), init_from_ckpt=str(start))


def train_in_double(folder, batch_size: int, stop: int | None) -> None:
    make_task, make_train = TASKS["classifier"]
    task = make_task(**NO_DROPOUT)
    task.model.double()
    if stop is not None:
        Interruption.requested = lambda self, step: step == stop
    try:
        fit(config(folder, batch_size=batch_size), task, make_train(), None)
    except InterruptedRunError:
        return
    torch.save(task.model.weights.state_dict(), folder / f"rank{distributed.rank()}.pt")


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 1)])
def test_another_number_of_processes_goes_on_with_the_same_batch(before, after, tmp_path):
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    train_in_double(tmp_path / "whole", 12, None)
    run_processes(before, train_in_double, tmp_path / "parts", 12 // before, 4)
    assert list((tmp_path / "parts").glob("rank*")) == []
    run_processes(after, train_in_double, tmp_path / "parts", 12 // after, None)
    expected = torch.load(tmp_path / "whole" / "rank0.pt")
    for rank in range(after):
        for name, tensor in torch.load(tmp_path / "parts" / f"rank{rank}.pt").items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-9)


def test_other_options_or_data_are_refused(tmp_path, monkeypatch):
    make_task, make_train = TASKS["classifier"]
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedRunError):
        trained(tmp_path, make_task, make_train())
    with pytest.raises(UserError, match="--learning_rate: 0.001 there, 0.002 now"):
        trained(tmp_path, make_task, make_train(), learning_rate=2e-3, resume=True)


def test_a_stop_without_checkpoints_says_so(tmp_path, monkeypatch):
    make_task, make_train = TASKS["classifier"]
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedRunError) as stopped:
        trained(tmp_path, make_task, make_train(), keep_checkpoints=0)
    assert stopped.value.folder is None
