"""R-Drop against plain loops: two forward passes under the same dropout masks, and scipy's KL."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn

from bertorch.data.tagged_dataset import FILLER_TAG
from bertorch.encoder import cpu
from bertorch.errors import InterruptedRunError, UserError
from bertorch.precision import Precision
from bertorch.tasks.base import DIVERGENCE
from bertorch.tasks.losses import twin_divergence
from bertorch.training.acceleration import graph_obstacle
from bertorch.training.graphs import MULTIPLE
from bertorch.training.hooks import ClipGradients
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.r_drop import RDrop
from bertorch.training.step import OptimizationStep
from tests.short_runs import assert_equal, assert_same_as_one_process, config, stop_after, trained
from tests.small_tasks import (
    DROPOUT,
    NO_DROPOUT,
    classification_data,
    classification_task,
    contrastive_data,
    contrastive_task,
    pair_data,
    siamese_task,
    tagged_data,
    tagging_task,
    weighted_task,
    windowed_data,
    windowed_task,
)
from tests.training.test_graphs import PretendedCapture

ALPHA = 3.0
# Dropout of attention has no module whose mask could be given.
HIDDEN_DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.4}
TASKS = {
    "classifier": (classification_task, partial(classification_data, 29)),
    "unequal classes": (weighted_task, partial(classification_data, 29)),
    "windows": (windowed_task, partial(windowed_data, 29)),
    "sentence-bert": (siamese_task, pair_data),
    "linear tagger": (partial(tagging_task, use_crf=False), partial(tagged_data, 29)),
    "crf tagger": (partial(tagging_task, use_crf=True), partial(tagged_data, 29)),
    "tagger, windows": (partial(tagging_task, use_crf=True), partial(tagged_data, 12, windows=2)),
}
EVERY_TASK = pytest.mark.parametrize("name", TASKS)


class Masks:
    """Masks of all dropout layers: drawn for the two halves of a batch, and given again to one half alone."""

    def __init__(self, monkeypatch) -> None:
        self._drawn: list[torch.Tensor] = []
        self._half: int | None = None
        for kind in (nn.Dropout, cpu.Dropout):
            monkeypatch.setattr(kind, "forward", self._forward)

    def draw(self) -> None:
        self._drawn, self._half = [], None

    def replay(self, half: int) -> None:
        self._half, self._call = half, 0

    @property
    def _forward(self):
        def forward(module, values):
            return values * self._mask(values, module.p) if module.training and module.p else values

        return forward

    def _mask(self, values: torch.Tensor, probability: float) -> torch.Tensor:
        if self._half is None:
            keep = torch.rand(
                values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(len(self._drawn))
            )
            self._drawn.append((keep >= probability) / (1 - probability))
            return self._drawn[-1]
        both = self._drawn[self._call]
        self._call += 1
        (doubled,) = (
            axis for axis, size in enumerate(both.shape) if size == 2 * values.shape[axis] > values.shape[axis]
        )
        return both.chunk(2, dim=doubled)[self._half]


def step_of(task, hooks, capture=None):
    optimizer = build_optimizer(task.model, learning_rate=1e-3, weight_decay=0.0)
    scheduler = build_scheduler("constant", optimizer, warmup_proportion=0, total_steps=9)
    precision = Precision("fp32", "cpu")
    return OptimizationStep(
        task.model, task.losses, optimizer, scheduler, precision,
        loss_parts=task.loss_parts, hooks=hooks, capture=capture,
    )  # fmt: skip


def logits_of(task, outputs: torch.Tensor) -> torch.Tensor:
    return task.siamese.classify(outputs) if hasattr(task, "siamese") else outputs


@EVERY_TASK
def test_it_is_a_plain_loop_with_two_forward_passes_under_the_same_masks(name, monkeypatch):
    make_task, make_train = TASKS[name]
    masks = Masks(monkeypatch)
    task = make_task(**HIDDEN_DROPOUT)
    task.model.double().train()
    batch = make_train().batch(np.array([3, 1, 7, 4, 5]))
    masks.draw()
    hook = RDrop(ALPHA)
    doubled = hook.prepared(batch)
    losses = hook.around_loss(partial(task.losses, doubled), doubled)
    losses["loss"].backward()
    gradients = {key: each.grad.clone() for key, each in task.model.named_parameters() if each.grad is not None}
    task.model.zero_grad()

    parts, logits = [], []
    for half in range(2):
        masks.replay(half)
        outputs = task.outputs(batch)
        parts.append(task.losses_of(outputs, batch))
        logits.append(logits_of(task, outputs))
    divergence = 0.0
    weights = [(0.25, 1.5, 4.0)[label] if name == "unequal classes" else 1.0 for label in batch.labels.tolist()]
    for first, second, weight in zip(*logits, weights[: len(logits[0])], strict=True):  # labels
        p, q = first.softmax(0), second.softmax(0)  # (C,) each
        divergence = divergence + weight * ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    assert divergence > 1e-6
    torch.testing.assert_close(losses[DIVERGENCE], divergence, rtol=1e-8, atol=0)
    expected = (parts[0]["loss"] + parts[1]["loss"]) / 2 + ALPHA * divergence
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-10, atol=0)
    for part in set(parts[0]) - {"loss"}:
        assert losses[part] == (parts[0][part] + parts[1][part]) / 2
    expected.backward()
    assert gradients
    for key, parameter in task.model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-8, atol=1e-12, msg=key)


def test_the_divergence_is_that_of_scipy():
    generator = np.random.default_rng(0)
    first, second = generator.normal(scale=4, size=(2, 7, 5))
    rows = torch.from_numpy(log_softmax(np.concatenate([first, second, first[:2]]), axis=1)).requires_grad_()
    twins = torch.tensor([*range(7, 14), *range(7), 14, 15])  # the last two rows are their own
    p, q = softmax(first, axis=1), softmax(second, axis=1)
    expected = rel_entr(p, q).sum() + rel_entr(q, p).sum()
    assert twin_divergence(rows, twins).item() == pytest.approx(expected, rel=1e-12)
    torch.autograd.gradcheck(lambda rows: twin_divergence(rows, twins), rows)
    assert twin_divergence(rows.detach().float(), twins).item() == pytest.approx(expected, rel=1e-5)
    weights = torch.rand(16, dtype=torch.float64)
    weights[7:14] = weights[:7]
    weighted = (rel_entr(p, q) + rel_entr(q, p)).sum(axis=1) @ weights[:7].numpy()
    assert twin_divergence(rows, twins, weights).item() == pytest.approx(weighted, rel=1e-12)
    assert twin_divergence(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)) == 0


@EVERY_TASK
def test_a_batch_twice_is_the_batch_of_the_examples_twice(name):
    data = TASKS[name][1]()
    indices = np.array([2, 9, 4])
    twice, expected = data.batch(indices).twice(), data.batch(np.concatenate([indices, indices]))
    for field, value in vars(expected).items():
        got = getattr(twice, field)
        if isinstance(value, torch.Tensor):
            assert torch.equal(got, value), field
            assert got.dtype == value.dtype, field
        elif field != "is_twice":
            assert got == value, field
    half = len(twice.labels) // 2
    assert twice.twins.tolist() == [*range(half, 2 * half), *range(half)]
    for batch in (twice, twice.filled(128)):
        with pytest.raises(ValueError, match="with each example once"):
            batch.twice()


def test_words_of_filler_are_their_own_twins():
    batch = tagged_data(9).batch(np.arange(4)).twice().filled(128)
    words = int(batch.cu_words[-1])
    assert len(batch.labels) > words
    assert (batch.labels[words:] == FILLER_TAG).all()
    expected = [*range(words // 2, words), *range(words // 2), *range(words, len(batch.labels))]
    assert batch.twins.tolist() == expected


@EVERY_TASK
def test_filler_changes_nothing(name):
    """A step as a CUDA graph takes filled batches."""
    make_task, make_train = TASKS[name]
    task = make_task(**NO_DROPOUT)
    task.model.double().train()
    batch = make_train().batch(np.arange(6)).twice()
    noise = torch.randn(999, *task.outputs(batch).shape[1:], dtype=torch.float64)  # the halves differ, as under dropout

    def noisy(outputs):
        return outputs + noise[: len(outputs)]

    outputs = task.outputs
    task.outputs = lambda batch: noisy(outputs(batch))
    expected, filled = task.losses(batch), task.losses(batch.filled(128))
    assert expected[DIVERGENCE] > 1e-3
    for part, value in expected.items():
        torch.testing.assert_close(filled[part], value, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "classifier",
        "unequal classes",
        "windows",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sentence-bert", "linear tagger")),
        "tagger, windows",
    ],
)
def test_without_dropout_it_changes_nothing(name, tmp_path):
    make_task, make_train = TASKS[name]
    weights = []
    for r_drop in (None, ALPHA):
        task = make_task(**NO_DROPOUT)
        task.model.double()
        weights.append(trained(tmp_path / str(r_drop), task, make_train(), r_drop=r_drop))
    for key, expected in weights[0].items():
        torch.testing.assert_close(weights[1][key], expected, rtol=0, atol=1e-9, msg=key)


def test_with_dropout_it_learns_something_else(tmp_path, log_lines):
    runs = [
        trained(tmp_path / str(r_drop), classification_task(**DROPOUT), classification_data(29), r_drop=r_drop)
        for r_drop in (None, 0.0, ALPHA)
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert any((runs[one][key] - runs[other][key]).abs().max() > 1e-4 for key in runs[0])
    assert any("accuracy" in line for line in log_lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "crf tagger"])
def test_several_processes_and_accumulation(name, tmp_path):
    make_task, make_train = TASKS[name]
    settings = {"batch_size": 3, "epochs": 1, "gradient_accumulation_steps": 2, "r_drop": ALPHA, "max_grad_norm": 0.1}
    assert_same_as_one_process(tmp_path, 2, partial(make_task, **NO_DROPOUT), make_train(), settings)


def test_the_step_is_the_mean_over_batches_and_processes_with_dropout(monkeypatch):
    """Two batches of a step, of different size, against one backward pass by hand under the same masks."""
    masks = Masks(monkeypatch)
    task = classification_task(**HIDDEN_DROPOUT)
    task.model.double().train()
    data = classification_data(20)
    batches = [data.batch(np.arange(3)), data.batch(np.arange(3, 10))]
    masks.draw()
    total = 0.0
    for batch in batches:
        losses = task.losses(batch.twice())
        total = total + losses["loss"] / 2 + ALPHA / 2 * losses[DIVERGENCE]
    expected = torch.autograd.grad(total / 10, list(task.model.parameters()), allow_unused=True)
    masks.draw()
    seen = {}

    class Watching(ClipGradients):
        def before_update(self, parameters, norm):
            seen.update({each: each.grad.clone() for each in parameters})
            return {}

    step = step_of(task, [RDrop(ALPHA), Watching(1.0)])
    reported = step([step.prepared(batch) for batch in batches], label_count=10)
    assert reported[0].item() == pytest.approx(total.item() / 10, rel=1e-9)
    assert 0 <= reported[1] <= 1
    for parameter, gradient in zip(task.model.parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(seen[parameter], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["classifier", pytest.param("linear tagger", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    make_task, make_train = TASKS[name]

    def run(folder, **settings):
        return trained(folder, make_task(**DROPOUT), make_train(), r_drop=ALPHA, **settings)

    expected = run(tmp_path / "whole")
    stop_after(monkeypatch, 5)
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "parts")
    monkeypatch.undo()
    assert_equal(run(tmp_path / "parts", resume=True), expected)
    with pytest.raises(UserError, match=r"--r_drop: 3.0 there, 0.0 now"):
        trained(tmp_path / "parts", make_task(), make_train(), r_drop=0.0, resume=True)


@pytest.mark.parametrize("name", ["classifier", "crf tagger"])
def test_its_steps_may_be_graphs(name, tmp_path):
    """Replays on static memory train as eager steps on filled batches do, with the same dropout."""
    make_task, make_train = TASKS[name]
    assert graph_obstacle(config(tmp_path), make_task(), Precision("bf16", "cuda"), [RDrop(1.0)]) is None
    data, capture, ends = make_train(), PretendedCapture(), []
    for each in (capture, None):
        task = make_task(**DROPOUT)
        task.model.double().train()
        step = step_of(task, [RDrop(ALPHA)], each)
        reported = []
        for number in range(4):
            indices = np.arange(number, number + 5)
            batch = step.prepared(data.batch(indices))
            torch.manual_seed(number)
            filled = batch if batch.has_filler else batch.filled(MULTIPLE)
            reported.append(step([filled], data.label_count(indices)))
        ends.append((torch.stack(reported), task.model.state_dict()))
    assert capture.replayed >= 2
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-6, atol=0)
    for key, expected in ends[1][1].items():
        torch.testing.assert_close(ends[0][1][key], expected, rtol=1e-6, atol=1e-8, msg=key)


def test_a_task_without_classes_is_refused():
    task = contrastive_task()
    batch = contrastive_data(4).batch(np.arange(4)).twice()
    assert torch.equal(batch.text_ids[:4], batch.text_ids[4:])
    with pytest.raises(UserError, match="--r_drop compares probabilities of classes, which the models of run_simcse"):
        task.losses(batch)
