"""Averaged weights against plain loops over the weights after each step."""

import json

import numpy as np
import pytest
import torch

from bertorch import distributed
from bertorch.errors import InterruptedRunError, UserError
from bertorch.precision import Precision
from bertorch.training import loop, run_state
from bertorch.training.ema import AverageWeights
from bertorch.training.eval_loop import evaluate
from bertorch.training.hooks import Hook
from bertorch.training.step import OptimizationStep
from bertorch.weights import load_weights
from tests.architectures import random_batch
from tests.conftest import run_processes
from tests.short_runs import assert_equal, config, fit, stop_after
from tests.small_tasks import DROPOUT, NO_DROPOUT, classification_data, classification_task

DECAY = 0.6  # the growing decay reaches it at the sixth of eight steps


class Recorder(Hook):
    """Keeps the weights after each step."""

    def __init__(self, module) -> None:
        self._module = module
        self.weights = [self._copied()]

    def after_update(self) -> None:
        self.weights.append(self._copied())

    def _copied(self):
        return {name: tensor.detach().double().numpy().copy() for name, tensor in self._module.named_parameters()}


def recorded_run(folder, monkeypatch, dev=None, **settings):
    """A run with averages; the weights at its start and after each step."""
    task, make = classification_task(**DROPOUT), loop.build_hooks
    recorders = []

    def build_hooks(config, task):
        recorders.append(Recorder(task.model.weights))
        return [*make(config, task), *recorders]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "build_hooks", build_hooks)
        fit(config(folder, ema_decay=DECAY, **settings), task, classification_data(29), dev)
    return task, recorders[0].weights


def averages(weights, decay=DECAY):
    """θ̄ after each step, in float64."""
    result = [weights[0]]
    for t, now in enumerate(weights[1:], start=1):
        d = min(decay, (1 + t) / (10 + t))
        result.append({name: d * result[-1][name] + (1 - d) * now[name] for name in now})
    return result


def assert_close(saved, expected, *, atol=1e-7):
    for name, array in expected.items():
        np.testing.assert_allclose(saved[name].double().numpy(), array, rtol=0, atol=atol, err_msg=name)


def test_the_saved_weights_are_the_average_of_a_plain_loop(tmp_path, monkeypatch):
    """And those in memory go on as without it."""
    task, weights = recorded_run(tmp_path / "averaged", monkeypatch)
    assert len(weights) == 9
    assert_close(load_weights(str(tmp_path / "averaged")), averages(weights)[-1])
    assert max(np.abs(averages(weights)[-1][name] - array).max() for name, array in weights[-1].items()) > 1e-4
    plain = classification_task(**DROPOUT)
    fit(config(tmp_path / "plain"), plain, classification_data(29))
    assert_equal(task.model.weights.state_dict(), plain.model.weights.state_dict())


def test_the_decay_grows_up_to_the_one_asked_for():
    """A weight that jumps from 0 to 1 before the first step."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    hook = AverageWeights(model, 0.5)
    torch.nn.init.ones_(model.weight)
    gaps = []
    for _ in range(12):
        hook.after_update()
        with hook.evaluation_weights():
            gaps.append(1 - model.weight.item())
    factors = [gap / before for gap, before in zip(gaps, [1.0, *gaps], strict=False)]
    expected = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(factors, expected, rtol=1e-9)


def test_evaluated_and_chosen_is_the_average(tmp_path, monkeypatch, log_lines):
    """The dev metric of each evaluation is that of the plain loop's average, and the best one's weights are saved."""
    settings = {"save_best_model": True, "eval_steps": 1, "learning_rate": 0.05, "epochs": 3, "patience": 3}
    dev = classification_data(40)
    _, weights = recorded_run(tmp_path, monkeypatch, dev, **settings)
    expected, losses = averages(weights), []
    for average in expected[1:]:
        task = classification_task(**DROPOUT)
        task.model.weights.load_state_dict({name: torch.tensor(array) for name, array in average.items()}, strict=False)
        metric = evaluate(task, dev, 8, Precision("fp32", "cpu"))
        losses.append(metric.numbers())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "metric" in line]
    assert len(told) == len(weights) - 1
    for line, numbers in zip(told, losses, strict=True):
        for name, value in numbers.items():
            assert line[f"dev_{name}"] == pytest.approx(value, abs=1e-4), name
    values = [line[told[0]["metric"]] for line in told]
    best = int(np.argmax(values))
    assert best > 0
    assert len(values) == best + 1 + 3  # patience
    assert any(f"at step {best + 1}" in line for line in log_lines)
    assert_close(load_weights(str(tmp_path)), expected[best + 1], atol=1e-6)


def test_a_stopped_run_has_the_same_averages_bit_for_bit(tmp_path, monkeypatch):
    def run(folder, **settings):
        task = classification_task(**DROPOUT)
        fit(config(folder, ema_decay=DECAY, keep_checkpoints=9, **settings), task, classification_data(29))
        return task.model.weights.state_dict()

    expected = run(tmp_path / "whole")
    for stop in (2, 5):
        stop_after(monkeypatch, stop)
        with pytest.raises(InterruptedRunError):
            run(tmp_path / "parts")
    monkeypatch.undo()
    assert_equal(run(tmp_path / "parts", resume=True), expected)
    assert_equal(load_weights(str(tmp_path / "parts")), load_weights(str(tmp_path / "whole")))
    name = "AverageWeights.safetensors"
    for step in (6, 8):
        whole, parts = (tmp_path / run / f"checkpoint-{step}" for run in ("whole", "parts"))
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
        assert (whole / name).read_bytes() != (tmp_path / "whole" / "checkpoint-3" / name).read_bytes()
        # The checkpoint's model is the one that training goes on with.
        assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def averaged_in_double(folder, settings) -> None:
    task = classification_task(**NO_DROPOUT)
    task.model.double()
    fit(config(folder, ema_decay=DECAY, **settings), task, classification_data(17))
    if distributed.is_main():
        torch.save(load_weights(str(folder)), folder / "averages.pt")


@pytest.mark.slow
def test_processes_save_the_averages_of_one(tmp_path):
    """With adversarial training, which is the gradient's."""
    for name in ("many", "one"):
        (tmp_path / name).mkdir()
    settings = {"adversarial_epsilon": 0.5, "epochs": 2}
    run_processes(2, averaged_in_double, tmp_path / "many", settings | {"batch_size": 4})
    averaged_in_double(tmp_path / "one", settings | {"batch_size": 8})
    many, one = (torch.load(tmp_path / name / "averages.pt") for name in ("many", "one"))
    assert many.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, rtol=0, atol=1e-9, msg=name)


def test_an_evaluation_leaves_weights_and_averages_as_they_were_also_after_an_error():
    model = torch.nn.Linear(3, 2)
    hook = AverageWeights(model, 0.9)
    torch.nn.init.normal_(model.weight)
    hook.after_update()
    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    average = {name: tensor.clone() for name, tensor in hook.state().tensors.items()}
    memory = [tensor.data_ptr() for tensor in (*model.parameters(), *hook.state().tensors.values())]

    def evaluated(error):
        with hook.evaluation_weights():
            assert_equal(dict(model.named_parameters()), {name: average[f"average.{name}"] for name in weights})
            if error is not None:
                raise error

    evaluated(None)
    with pytest.raises(MemoryError):
        evaluated(MemoryError())
    assert_equal(dict(model.named_parameters()), weights)
    assert_equal(hook.state().tensors, average)
    assert [tensor.data_ptr() for tensor in (*model.parameters(), *hook.state().tensors.values())] == memory


def test_before_the_first_step_the_average_is_the_start():
    model = torch.nn.Linear(3, 2)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    with AverageWeights(model, 0.9).evaluation_weights():
        assert_equal(dict(model.named_parameters()), before)


def test_frozen_parameters_have_no_average_and_buffers_stay():
    model = torch.nn.BatchNorm1d(2)
    model.bias.requires_grad_(False)
    hook = AverageWeights(model, 0.9)
    assert hook.state().tensors.keys() == {"updates", "average.weight"}
    model.running_mean += 1
    with hook.evaluation_weights():
        assert model.running_mean.tolist() == [1.0, 1.0]


def test_a_step_that_fp16_leaves_out_is_no_update():
    """The scaler's first factor, 65536, overflows fp32 with a loss of 1e38; half of it does not."""
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-39)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda steps: 1.0)
    size = torch.finfo(torch.float32).max / 40000
    hook = AverageWeights(model, 0.9)
    start = model.weight.item()
    losses_of = lambda batch: {"loss": size * model.weight.sum()}  # noqa: E731
    step = OptimizationStep(model, losses_of, optimizer, scheduler, Precision("fp16", "cpu"), hooks=[hook])
    step([random_batch([3])], label_count=1)
    assert step.overflows == 1
    assert hook.state().tensors["updates"] == 0
    assert hook.state().tensors["average.weight"].item() == start
    step([random_batch([3])], label_count=1)
    assert hook.state().tensors["updates"] == 1
    expected = 2 / 11 * start + 9 / 11 * model.weight.item()
    assert hook.state().tensors["average.weight"].item() == pytest.approx(expected, rel=1e-6)


def test_weights_are_saved_for_use_within_the_swap_alone(tmp_path, monkeypatch):
    """A checkpoint holds both: its model is the one of the last step, not the average."""
    seen = []
    save = run_state.RunSaver.save_checkpoint

    def noting(saver, step, parts, savables):
        seen.append({name: tensor.clone() for name, tensor in parts["model"].state().tensors.items()})
        return save(saver, step, parts, savables)

    monkeypatch.setattr(run_state.RunSaver, "save_checkpoint", noting)
    _, weights = recorded_run(tmp_path, monkeypatch)
    assert len(seen) == 3
    for step, model in zip((3, 6, 8), seen, strict=True):
        for name, array in weights[step].items():
            assert np.array_equal(model[name].double().numpy(), array), name


def test_weights_that_have_diverged_behind_a_slow_average_are_not_saved(tmp_path, monkeypatch):
    """Late in a run the average hardly moves: its squares are still finite when those of the weights are not."""
    make = AverageWeights.__init__

    def late(hook, *arguments):
        make(hook, *arguments)
        hook._updates += 1e9

    monkeypatch.setattr(AverageWeights, "__init__", late)
    settings = {"ema_decay": 0.999999, "learning_rate": 1e23, "max_steps": 1}
    with pytest.raises(UserError, match=r"step 1 .*expected finite weights, .* got up to \S+e\+2"):
        fit(config(tmp_path, **settings), classification_task(), classification_data(29))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("checkpoint", "pytorch_model"))]
