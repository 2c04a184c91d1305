"""FGM against a plain loop on whole batches of a padded model, and what it must not change."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bertorch.data.schedule import TrainingSchedule
from bertorch.errors import InterruptedRunError, UserError
from bertorch.precision import Precision
from bertorch.training.adversarial import FastGradientMethod
from bertorch.training.ema import AverageWeights
from bertorch.training.graphs import CudaCapture
from bertorch.training.loop import build_hooks
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.step import OptimizationStep
from bertorch.weights import load_weights
from tests.architectures import padded_inputs, random_batch, small_classifier
from tests.short_runs import assert_equal, assert_same_as_one_process, config, stop_after, train_in_double, trained
from tests.small_tasks import (
    NO_DROPOUT,
    classification_data,
    classification_task,
    contrastive_data,
    contrastive_task,
    entity_data,
    global_pointer_task,
    pair_data,
    siamese_task,
    tagged_data,
    tagging_task,
)
from tests.training.test_graphs import PretendedCapture, assert_same_training, on_a_side_stream, train
from tests.training.test_resume import TASKS, run_task

EPSILON = 0.7
MAKE_TASK = partial(classification_task, **NO_DROPOUT)


def plain_run(size: int, batch_size: int, epochs: int, rate: float, *, epsilon: float = EPSILON):
    """FGM as its users write it, around transformers' own padded model, in float64; the weights, the clean losses."""
    model = small_classifier("bert", **NO_DROPOUT).double().train()
    dataset, schedule = classification_data(size), TrainingSchedule(size, batch_size, 1, seed=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, eps=1e-6, weight_decay=0.0)
    last, losses = schedule.steps_per_epoch * epochs, []
    for step in schedule.all_steps(last):
        batch = dataset.batch(step.batches[0])
        inputs = padded_inputs(batch, takes_token_types=True) | {"labels": batch.labels}
        loss = model(**inputs).loss
        losses.append(loss.item())
        loss.backward()
        matrix = model.bert.embeddings.word_embeddings.weight
        before, r = matrix.detach().clone(), epsilon * matrix.grad / matrix.grad.pow(2).sum().sqrt()
        matrix.data.add_(r)
        model(**inputs).loss.backward()
        matrix.data.copy_(before)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * (last - step.number + 1) / last
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict(), losses


def test_a_run_is_that_of_a_plain_loop(tmp_path, log_lines):
    """The training line has the loss of the clean pass."""
    expected, losses = plain_run(29, 8, 2, 1e-3)
    settings = {"batch_size": 8, "epochs": 2, "adversarial_epsilon": EPSILON, "logging_steps": 1}
    train_in_double(tmp_path, MAKE_TASK, classification_data(29), settings)
    weights = torch.load(tmp_path / "rank0.pt")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-9, msg=name)
    told = [line.split("loss: ")[1].split(",")[0] for line in log_lines if line.startswith("global step")]
    assert told == [f"{loss:.5f}" for loss in losses]
    without, _ = plain_run(29, 8, 2, 1e-3, epsilon=0.0)
    assert max((without[name] - tensor).abs().max() for name, tensor in expected.items()) > 1e-4


def test_batches_of_a_step_are_perturbed_together(tmp_path):
    """Not each along its own gradient: three uneven batches take the step of one."""
    settings = {"epochs": 2, "adversarial_epsilon": EPSILON}
    runs = {"one": {"batch_size": 12}, "three": {"batch_size": 4, "gradient_accumulation_steps": 3}}
    for name, batches in runs.items():
        (tmp_path / name).mkdir()
        train_in_double(tmp_path / name, MAKE_TASK, classification_data(22), settings | batches)
    one, three = (torch.load(tmp_path / name / "rank0.pt") for name in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(three[name], tensor, rtol=0, atol=1e-9, msg=name)


def test_processes_perturb_along_the_gradient_of_all(tmp_path):
    """Also where a process has no example in the last step: 2 · 4 · 2 + 1 of them."""
    settings = {"batch_size": 4, "epochs": 2, "gradient_accumulation_steps": 2, "adversarial_epsilon": EPSILON}
    assert_same_as_one_process(tmp_path, 2, MAKE_TASK, classification_data(17), settings)


@pytest.mark.slow
def test_a_loss_over_all_processes_is_computed_by_all_in_both_passes(tmp_path):
    """The last step has an example on one process only."""
    make_task = partial(contrastive_task, gather=True, **NO_DROPOUT)
    settings = {"batch_size": 3, "epochs": 2, "adversarial_epsilon": EPSILON}
    assert_same_as_one_process(tmp_path, 2, make_task, contrastive_data(13), settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_task", "train_data"),
    [
        (partial(siamese_task, **NO_DROPOUT), pair_data()),
        (partial(tagging_task, use_crf=False, **NO_DROPOUT), tagged_data(17)),
        (partial(tagging_task, use_crf=True, **NO_DROPOUT), tagged_data(17)),
        (partial(global_pointer_task, **NO_DROPOUT), entity_data(17)),
        (partial(contrastive_task, gather=True, micro_batch_size=2, **NO_DROPOUT), contrastive_data(17)),
    ],
    ids=["pairs", "linear tagger", "crf tagger", "global pointer", "gradient caching"],
)
def test_processes_of_every_task(make_task, train_data, tmp_path):
    settings = {"batch_size": 2, "epochs": 2, "adversarial_epsilon": EPSILON}
    assert_same_as_one_process(tmp_path, 3, make_task, train_data, settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_stopped_run_ends_with_the_same_weights_bit_for_bit(name, tmp_path, monkeypatch):
    """With averaged weights too, and dropout, which the second pass draws anew."""
    settings = {"adversarial_epsilon": EPSILON, "ema_decay": 0.9, "max_steps": 4}
    expected = run_task(tmp_path / "whole", name, **settings)
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedRunError):
        run_task(tmp_path / "parts", name, **settings)
    monkeypatch.undo()
    assert_equal(run_task(tmp_path / "parts", name, **settings, resume=True), expected)
    assert_equal(load_weights(str(tmp_path / "parts")), load_weights(str(tmp_path / "whole")))


@pytest.mark.parametrize("name", ["classifier", pytest.param("contrastive", marks=pytest.mark.slow)])
def test_recomputed_activations_are_those_of_the_perturbed_pass(name, tmp_path):
    settings = {"adversarial_epsilon": EPSILON, "max_steps": 4}
    expected = run_task(tmp_path / "plain", name, **settings)
    assert_equal(run_task(tmp_path / "again", name, gradient_checkpointing=True, **settings), expected)


def test_without_the_options_there_is_no_hook(tmp_path):
    kinds = {FastGradientMethod, AverageWeights}
    task = classification_task()
    assert not kinds & {type(hook) for hook in build_hooks(config(tmp_path), task)}
    both = config(tmp_path, adversarial_epsilon=1.0, ema_decay=0.9)
    assert kinds < {type(hook) for hook in build_hooks(both, task)}


class Passes:
    """Calls a hook on passes with given gradients, and keeps the matrix that each of them sees."""

    def __init__(self, *gradients: torch.Tensor) -> None:
        model = classification_task().model
        self.matrix = model.encoders[0].model.get_input_embeddings().weight
        self.gradients, self.seen = list(gradients), []
        self._hook = FastGradientMethod(model, EPSILON)

    def __call__(self) -> torch.Tensor:
        return self._hook.around_gradients(self._compute, [])

    def _compute(self) -> torch.Tensor:
        self.seen.append(self.matrix.detach().clone())
        if self.gradients:
            gradient = self.gradients.pop(0)
            self.matrix.grad = gradient if self.matrix.grad is None else self.matrix.grad + gradient
        return torch.tensor([float(len(self.seen))])


def gradient_like(matrix: torch.Tensor, size: float = 1.0) -> torch.Tensor:
    torch.manual_seed(5)
    return size * torch.randn_like(matrix)


def test_the_matrix_comes_back_bit_for_bit_in_its_own_memory():
    passes = Passes()
    first, second = gradient_like(passes.matrix), gradient_like(passes.matrix, 3.0)
    passes.gradients = [first.clone(), second.clone()]
    memory, before = passes.matrix.data_ptr(), passes.matrix.detach().clone()
    assert passes().tolist() == [1.0]  # of the first pass
    assert torch.equal(passes.matrix, before)
    assert passes.matrix.data_ptr() == memory
    assert torch.equal(passes.seen[0], before)
    r = EPSILON * first / first.double().pow(2).sum().sqrt()
    torch.testing.assert_close(passes.seen[1], before + r.float(), rtol=0, atol=1e-6)
    assert not torch.equal(passes.seen[1] - (passes.seen[1] - before), before)  # why it is copied
    assert torch.equal(passes.matrix.grad, first + second)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf")])
def test_a_gradient_without_direction_moves_nothing(value):
    passes = Passes()
    gradient = gradient_like(passes.matrix) if value else torch.zeros_like(passes.matrix)
    gradient[3, 4] = value
    passes.gradients = [gradient, gradient]
    before = passes.matrix.detach().clone()
    passes()
    assert torch.equal(passes.seen[1], before)
    assert torch.equal(passes.matrix, before)


@pytest.mark.parametrize("size", [1e-18, 2.0**16, 1e15])
def test_the_scale_of_the_gradient_does_not_matter(size):
    passes = Passes()
    gradient = gradient_like(passes.matrix, size)
    passes.gradients = [gradient, gradient]
    before = passes.matrix.detach().clone()
    passes()
    assert (passes.seen[1] - before).double().norm().item() == pytest.approx(EPSILON, rel=1e-5)


def test_a_process_without_examples_moves_nothing_alone():
    passes = Passes()
    passes()
    assert passes.matrix.grad is None
    assert torch.equal(passes.seen[1], passes.seen[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fp16_scales_both_passes_and_leaves_out_a_step_that_overflows(precision):
    """The scaled gradients give the step of unscaled ones, on a model small enough to work out by hand."""
    torch.manual_seed(0)
    embedding, batch = nn.Embedding(50, 3), random_batch([3, 5])
    model = SimpleNamespace(encoders=[SimpleNamespace(model=SimpleNamespace(get_input_embeddings=lambda: embedding))])
    factor = [1.0]  # on the loss
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    step = OptimizationStep(
        embedding,
        lambda batch: {"loss": factor[0] * embedding(batch.input_ids).square().sum()},
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
        Precision(precision, "cpu"),
        hooks=[FastGradientMethod(model, EPSILON)],
    )
    before = embedding.weight.detach().clone()  # (V, H)
    if precision == "fp16":
        factor[0] = torch.inf
        step([batch], label_count=1)
        assert step.overflows == 1
        assert torch.equal(embedding.weight, before)
        factor[0] = 1.0
    step([batch], label_count=1)
    counts = torch.bincount(batch.input_ids, minlength=50)[:, None].double()  # (V, 1)
    gradient = 2 * counts * before  # (V, H)
    perturbed = before + EPSILON * gradient / gradient.pow(2).sum().sqrt()  # (V, H)
    expected = before - 0.1 * (gradient + 2 * counts * perturbed)  # (V, H)
    torch.testing.assert_close(embedding.weight.detach(), expected.float(), rtol=1e-5, atol=1e-6)


def hooked_step(task, capture, *, device="cpu", precision="fp32"):
    task.model.to(device).train()
    optimizer = build_optimizer(task.model, learning_rate=1e-3, weight_decay=0.01)
    scheduler = build_scheduler("linear", optimizer, warmup_proportion=0.2, total_steps=40)
    hooks = [FastGradientMethod(task.model, EPSILON), AverageWeights(task.model, 0.9)]
    resolved = Precision.resolve(precision, torch.device(device))
    parts = {"loss_parts": task.loss_parts, "hooks": hooks, "capture": capture}
    return OptimizationStep(task.model, task.losses, optimizer, scheduler, resolved, **parts), hooks[1]


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), *(pytest.param("cuda", p, marks=pytest.mark.cuda) for p in ("fp32", "bf16"))],
)
def test_graphs_train_as_eager_steps_do(device, precision):
    task, reference = (classification_task(**NO_DROPOUT) for _ in range(2))
    if device == "cpu":
        for each in (task, reference):
            each.model.double()
    capture = PretendedCapture() if device == "cpu" else CudaCapture()
    with on_a_side_stream(device):
        step, average = hooked_step(task, capture, device=device, precision=precision)
        sums = train(step, classification_data(40))
        plain, plain_average = hooked_step(reference, None, device=device, precision=precision)
        expected = train(plain, classification_data(40))
    assert step._graphs.failure is None
    assert len(step._graphs._replays) >= 2
    tolerance = {"cpu": 1e-9, "cuda": 1e-4 if precision == "fp32" else 5e-2}[device]
    assert_same_training(task, reference, sums, expected, rtol=tolerance, atol=tolerance)
    ours, theirs = average.state().tensors, plain_average.state().tensors
    assert ours["updates"] == theirs["updates"] == len(sums)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


class NoAnswers(TorchDispatchMode):
    """Refuses what makes the host wait for a device: a tensor's number or truth value, and sizes that depend on it."""

    WAIT = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.is_nonzero)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in self.WAIT:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_hooks_ask_nothing_of_the_device():
    with pytest.raises(AssertionError, match="waits"), NoAnswers():
        bool(torch.ones(()) > 0)
    passes = Passes()
    passes.gradients = [gradient_like(passes.matrix), gradient_like(passes.matrix)]
    average = AverageWeights(classification_task().model, 0.9)
    with NoAnswers():
        passes()
        average.after_update()
    assert FastGradientMethod.capturable
    assert AverageWeights.capturable


def test_frozen_embeddings_are_refused(tmp_path):
    task = classification_task()
    task.model.encoders[0].model.get_input_embeddings().weight.requires_grad_(False)
    with pytest.raises(UserError, match="--adversarial_epsilon .*: expected them to be trained, got frozen ones"):
        trained(tmp_path, task, classification_data(9), adversarial_epsilon=1.0)


@pytest.mark.parametrize("found", [NotImplementedError, None])
def test_an_encoder_without_word_embeddings_is_refused(found, monkeypatch):
    task = classification_task()
    encoder = task.model.encoders[0].model

    def get_input_embeddings():
        if found is not None:
            raise found
        return nn.Identity()

    monkeypatch.setattr(encoder, "get_input_embeddings", get_input_embeddings)
    with pytest.raises(UserError, match="expected an encoder with a matrix of them, got BertModel"):
        FastGradientMethod(task.model, 1.0)
