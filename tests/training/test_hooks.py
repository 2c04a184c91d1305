"""Tricks as hooks: each point does what a plain loop would do, and a stateful one is resumed bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bertorch import distributed
from bertorch.data.schedule import ScheduledStep
from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.training.acceleration import graph_obstacle
from bertorch.training.ema import AverageWeights
from bertorch.training.hooks import Hook, UsedParameters, using
from bertorch.training.step import OptimizationStep
from tests.architectures import random_batch
from tests.conftest import run_processes
from tests.short_runs import config
from tests.small_tasks import classification_task

RATE = 0.5


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def forward(self, scale: float) -> torch.Tensor:
        return (scale * self.weight**3).sum()


def take_step(hook: Hook, *, steps: int = 1, lengths=((3,),)) -> tuple[Linear, dict[str, float]]:
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    precision = Precision("fp32", "cpu")
    step = OptimizationStep(model, lambda batch: {"loss": model(1.0)}, optimizer, scheduler, precision, hooks=[hook])
    hook.model = model
    for _ in range(steps):
        reported = step([random_batch(list(each)) for each in lengths], label_count=2)
    return model, dict(zip(step.reports, reported.tolist(), strict=True))


def test_around_the_loss():
    """As R-Drop does: the forward pass runs twice, and the loss is of both."""

    class Twice(Hook):
        def around_loss(self, compute, batch):
            first, second = compute()["loss"], compute()["loss"]
            return {"loss": first + 3 * second}

    model, reported = take_step(Twice())
    start = Linear().weight.detach()
    torch.testing.assert_close(model.weight.detach(), start - RATE * 4 * 3 * start**2 / 2)
    assert reported["loss"] == pytest.approx(4 * (start**3).sum().item() / 2)


def test_around_forward_and_backward():
    """The gradient of changed weights is added to that of the weights themselves."""

    class Shifted(Hook):
        def around_backward(self, compute, batch):
            losses = compute()
            with torch.no_grad():
                self.model.weight += 1
            compute()
            with torch.no_grad():
                self.model.weight -= 1
            return losses

    model, reported = take_step(Shifted())
    start = Linear().weight.detach()
    torch.testing.assert_close(model.weight.detach(), start - RATE * 3 * (start**2 + (start + 1) ** 2) / 2)
    assert reported["loss"] == pytest.approx((start**3).sum().item() / 2)


def test_around_the_gradients_of_a_step():
    """All batches of the step run again, and what the hook adds belongs to the step."""

    class Again(Hook):
        def around_gradients(self, compute, batches):
            self.sizes = [batch.size for batch in batches]
            sums = compute()
            self.first = self.model.weight.grad.clone()
            compute()
            self.both = self.model.weight.grad.clone()
            self.model.weight.grad += 1
            return sums + 10

    hook = Again()
    model, reported = take_step(hook, lengths=[(3,), (3, 4)])
    start = Linear().weight.detach()
    assert hook.sizes == [1, 2]
    torch.testing.assert_close(hook.first, 2 * 3 * start**2 / 2)
    torch.testing.assert_close(hook.both, 2 * hook.first)
    torch.testing.assert_close(model.weight.detach(), start - RATE * (hook.both + 1))
    assert reported["loss"] == pytest.approx((2 * (start**3).sum().item() + 10) / 2)


def test_before_and_after_the_update():
    class Watching(Hook):
        reports = ("largest",)

        def before_update(self, parameters, norm):
            (self.gradient,) = (parameter.grad.clone() for parameter in parameters)
            self.norm = norm.clone()
            return {"largest": self.gradient.abs().max()}

        def after_update(self):
            self.after = self.model.weight.detach().clone()

    hook = Watching()
    model, reported = take_step(hook)
    start = Linear().weight.detach()
    torch.testing.assert_close(hook.gradient, 3 * start**2 / 2)
    torch.testing.assert_close(hook.norm, hook.gradient.norm())
    assert torch.equal(hook.after, model.weight)
    assert reported["largest"] == pytest.approx(6.0)


def test_a_point_that_a_hook_does_not_use_is_not_visited():
    class Late(Hook):
        def after_update(self):
            pass

    hooks = [Hook(), Late()]
    around = ("around_loss", "around_backward", "around_gradients")
    points = (*around, "before_update", "evaluation_weights", "inspect", "state")
    assert [using(hooks, point) for point in points] == [[]] * 7
    assert using(hooks, "after_update") == hooks[1:]


def test_a_hook_that_cannot_be_captured_turns_graphs_off(tmp_path):
    class Fixed(Hook):
        capturable = True

    class Asking(Hook):
        pass

    settings, task, precision = config(tmp_path), classification_task(), Precision("bf16", "cuda")
    assert graph_obstacle(settings, task, precision, [Fixed()]) is None
    assert graph_obstacle(settings, task, precision, [Fixed(), Asking()]) == "Asking cannot be captured"


class LateModel(nn.Module):
    """Uses its second parameter only from the second step on."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.late = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
        self.steps = 0

    def losses(self, batch):
        self.steps += 1
        uses_late = self.steps > 1 and distributed.rank() == distributed.world_size() - 1
        return {"loss": self.always.sum() ** 2 + (self.late.sum() ** 2 if uses_late else 0)}


def late_steps(count: int):
    model = LateModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    step = OptimizationStep(model, model.losses, optimizer, scheduler, Precision("fp32", "cpu"))
    rows = [step([random_batch([3])], label_count=1) for _ in range(count)]
    return model, step, rows


def test_a_parameter_that_gets_its_first_gradient_later_joins_the_others():
    model, step, rows = late_steps(2)
    torch.testing.assert_close(model.late.detach(), torch.full((2,), 1 - 0.1 * 4, dtype=torch.float64))
    assert [dict(zip(step.reports, row.tolist(), strict=True))["late_gradients"] for row in rows] == [0, 0]


def late_on_one_process(folder) -> None:
    model, step, rows = late_steps(3)
    assert torch.equal(model.late, torch.ones(2, dtype=torch.float64))  # the processes do not differ
    (used,) = (hook for hook in step.hooks if isinstance(hook, UsedParameters))
    seen = []
    for number, row in enumerate(rows, start=1):
        numbers = dict(zip(step.reports, distributed.all_reduce_sum(row).tolist(), strict=True))
        try:
            used.inspect(ScheduledStep(number, 1, number, [np.arange(1)]), numbers, 0.1)
        except UserError as error:
            seen.append(str(error))
    (folder / str(distributed.rank())).write_text("\n".join(seen))


def test_on_several_processes_it_ends_the_run_with_its_name(tmp_path):
    run_processes(2, late_on_one_process, tmp_path)
    for rank in range(2):
        first, second = (tmp_path / str(rank)).read_text().splitlines()
        assert first.startswith("step 2: expected every parameter to get a gradient in the first step or in none")
        assert "later for late;" in first
        assert second.startswith("step 3:")


def test_a_resumed_run_keeps_the_parameters_in_use():
    """Also where the first step after the resumption does not use one of them."""
    parameters = {name: nn.Parameter(torch.ones(1)) for name in ("a", "b", "c")}
    used = UsedParameters(parameters)
    (parameters["a"] + parameters["c"]).sum().backward()
    assert used.select() == [parameters["a"], parameters["c"]]
    resumed = UsedParameters(parameters)
    resumed.restore(used.state())
    parameters["a"].grad = None
    assert resumed.select() == [parameters["a"], parameters["c"]]
    parameters["b"].sum().backward()
    assert resumed.select() == list(parameters.values())  # in the order of the model, as in a run of one piece


def test_hooks_with_the_same_name_are_refused():
    with pytest.raises(ValueError, match="expected hooks with different names"):
        OptimizationStep(
            Linear(),
            lambda batch: {},
            torch.optim.SGD(Linear().parameters(), lr=0.1),
            None,
            Precision("fp32", "cpu"),
            hooks=[AverageWeights(Linear(), 0.9), AverageWeights(Linear(), 0.5)],
        )


def test_a_process_without_examples_agrees_on_the_parameters_in_use():
    parameters = {"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1))}
    used = UsedParameters(parameters)
    F.mse_loss(parameters["a"], torch.zeros(1)).backward()
    assert used.select() == [parameters["a"]]
    assert SimpleNamespace(**used.before_update([], torch.ones(()))).late_gradients == 0


def test_a_first_gradient_within_a_capture_is_refused(monkeypatch):
    """Its state of the optimiser would be made within the graph, and be zero again at each replay."""
    first, later = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    first.grad = torch.ones(2)
    used = UsedParameters({"first": first, "later": later})
    assert used.select() == [first]
    later.grad = torch.ones(2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="the first gradient of later came in a capture"):
        used.select()
