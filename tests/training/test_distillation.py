"""Distillation against plain loops: scipy's KL over examples and classes, distances of normalised vectors."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from bertorch.config import ClassifierConfig, ContrastiveConfig
from bertorch.data.teacher import TaughtExamples, TeacherRows
from bertorch.errors import InterruptedRunError, UserError
from bertorch.precision import Precision
from bertorch.tasks.losses import teacher_distance, teacher_divergence
from bertorch.training.acceleration import graph_obstacle
from bertorch.training.distillation import distillation
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
    cosent_task,
    own_positives,
    pair_data,
    scored_pair_data,
    siamese_task,
    weighted_task,
    windowed_data,
    windowed_task,
)
from tests.teachers import class_teacher, random_rows, vector_teacher
from tests.training.test_graphs import PretendedCapture

ALPHA, T, E = 0.3, 2.5, 8
CLASSES = {
    "classifier": (classification_task, partial(classification_data, 29)),
    "unequal classes": (weighted_task, partial(classification_data, 29)),
    "windows": (windowed_task, partial(windowed_data, 29)),
    "sentence-bert": (siamese_task, pair_data),
}
# Rows of a teacher for each example, and their width.
VECTORS = {
    "pairs": (contrastive_task, partial(contrastive_data, 23), 2, E),
    "triples, wider": (partial(contrastive_task, gather=True), partial(contrastive_data, 23, width=3), 3, 12),
    "twice, narrower": (contrastive_task, partial(own_positives, 23), 1, 5),
    "scored pairs": (cosent_task, partial(scored_pair_data, 23), 2, 5),
    "several widths": (partial(contrastive_task, matryoshka=(5, 2)), partial(contrastive_data, 23), 2, E),
}
CLASSIFIER = {"kind": ClassifierConfig, "label_file": "-", "teacher_weight": ALPHA, "teacher_temperature": T}
CONTRASTIVE = {"kind": ContrastiveConfig, "teacher_weight": ALPHA}


def taught(name: str, folder: Path):
    """A maker of a task, its examples with a random teacher, the same for all, and the options of the run."""
    if name in CLASSES:
        make_task, make_train = CLASSES[name]
        train, options = make_train(), CLASSIFIER
        rows, write, count = random_rows(len(train), 3), class_teacher, 1
    else:
        make_task, make_train, count, width = VECTORS[name]
        train, options = make_train(), CONTRASTIVE
        rows, write = random_rows(len(train) * count, width), vector_teacher
    path = folder / "teacher.npy"
    examples = TaughtExamples(train, rows.reshape(len(train), count, -1))
    return make_task, examples, options | {"teacher": write(path, rows)}


def hook_of(task, options, folder):
    settings = config(folder, **options)
    return distillation(settings, task, TeacherRows.of(settings))


def expected_distance(task, outputs, teacher: np.ndarray, temperature=T) -> float:
    """Of the outputs for a batch, in plain loops over examples; teacher (examples, R, K)."""
    total, teacher = 0.0, teacher.astype(np.float64)
    if task.label_names:
        logits = task.siamese.classify(outputs) if hasattr(task, "siamese") else outputs
        for (row,), student in zip(teacher, logits.detach().numpy(), strict=True):
            total += temperature**2 * rel_entr(softmax(row / temperature), softmax(student / temperature)).sum()
        return total
    vectors = outputs.detach().numpy()
    projection = getattr(task.model, "teacher_projection", None)
    if projection is not None:
        vectors = vectors @ projection.weight.detach().numpy().T
    texts = len(vectors) // len(teacher)
    for index, rows in enumerate(teacher):
        for place in range(texts):
            s, t = vectors[index * texts + place], rows[min(place, len(rows) - 1)]
            total += ((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2).sum() / texts
    return total


@pytest.mark.parametrize("name", [*CLASSES, *VECTORS])
def test_the_loss_of_a_step_is_that_of_plain_loops(name, tmp_path):
    """Over two batches of different size; the distance is a mean over all examples, however these weigh in the loss."""
    make_task, train, options = taught(name, tmp_path)
    task = make_task(**NO_DROPOUT)
    task.model.double().train()
    hook, seen = hook_of(task, options, tmp_path), {}

    class Watching(ClipGradients):
        def before_update(self, parameters, norm):
            seen.update({each: each.grad.clone() for each in parameters})
            return {}

    parts = [np.arange(4), np.arange(4, 13)]
    batches = [train.batch(part) for part in parts]
    weight = sum(task.loss_weight(train, part) for part in parts)
    loss = distance = 0.0
    for batch in batches:
        outputs = task.outputs(batch)
        loss = loss + task.losses_of(outputs, batch)["loss"] / weight
        of_batch = hook._distance(outputs, batch.teacher)
        assert of_batch.item() == pytest.approx(expected_distance(task, outputs, batch.teacher.numpy()), rel=1e-9)
        distance = distance + of_batch / 13
    expected = (1 - ALPHA) * loss + ALPHA * distance
    parameters = dict(task.model.named_parameters())
    gradients = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    step = step_of(task, [hook, Watching(1.0)])
    reported = step([step.prepared(batch) for batch in batches], 13, weight)
    assert reported[0].item() == pytest.approx(expected.item(), rel=1e-9)
    moved = 0
    for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(seen[parameter], gradient, rtol=1e-8, atol=1e-12, msg=key)
            moved += 1
    assert moved > 20
    assert ("teacher_projection.weight" in parameters) == (train.teacher.shape[2] != E and name in VECTORS)


def step_of(task, hooks, capture=None):
    optimizer = build_optimizer(task.model, learning_rate=1e-3, weight_decay=0.0)
    scheduler = build_scheduler("constant", optimizer, warmup_proportion=0, total_steps=9)
    return OptimizationStep(
        task.model, task.losses, optimizer, scheduler, Precision("fp32", "cpu"),
        loss_parts=task.loss_parts, hooks=hooks, capture=capture,
    )  # fmt: skip


def test_the_direction_and_the_scale_of_the_divergence():
    """KL(teacher‖student) is not KL(student‖teacher); its gradient on logits is T·(q − p)."""
    teacher, student = torch.from_numpy(np.random.default_rng(0).normal(scale=3, size=(2, 7, 5)))
    for temperature in (0.5, 1.0, 4.0):
        p, q = (softmax(each.numpy() / temperature, axis=1) for each in (teacher, student))
        got = teacher_divergence(student, teacher, temperature).item()
        assert got == pytest.approx(temperature**2 * rel_entr(p, q).sum(), rel=1e-12)
        assert got != pytest.approx(temperature**2 * rel_entr(q, p).sum(), rel=1e-3)
        logits = student.clone().requires_grad_()
        teacher_divergence(logits, teacher, temperature).backward()
        np.testing.assert_allclose(logits.grad, temperature * (q - p), atol=1e-12)
        shifted = teacher_divergence(student.log_softmax(-1), teacher.log_softmax(-1), temperature).item()
        assert shifted == pytest.approx(got, rel=1e-12)
    torch.autograd.gradcheck(lambda logits: teacher_divergence(logits, teacher, 2.0), student.requires_grad_())


def test_the_distance_does_not_depend_on_lengths():
    vectors, teacher = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    expected = teacher_distance(vectors, teacher)
    assert teacher_distance(vectors * 7, teacher / 3).item() == pytest.approx(expected.item(), rel=1e-12)
    cosines = torch.nn.functional.cosine_similarity(vectors, teacher, dim=-1)
    assert expected.item() == pytest.approx((2 - 2 * cosines).mean(dim=1).sum().item(), rel=1e-12)
    assert teacher_distance(vectors[:0], teacher[:0]) == 0
    assert teacher_distance(teacher, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["pairs", "triples, wider", "twice, narrower"])
def test_a_process_without_examples_adds_nothing(name, tmp_path):
    """Where all processes compute the loss together, one of them may have none in the last batch of an epoch."""
    make_task, train, options = taught(name, tmp_path)
    hook = hook_of(make_task(), options, tmp_path)
    batch = train.batch(np.arange(0))
    losses = hook.mixed({"loss": torch.tensor(2.0)}, torch.zeros(0, E), batch, 1.0)
    assert losses["loss"].item() == pytest.approx((1 - ALPHA) * 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["unequal classes", pytest.param("sentence-bert", marks=pytest.mark.slow), "triples, wider", "scored pairs"]
)
def test_several_processes_and_accumulation(name, tmp_path):
    make_task, train, options = taught(name, tmp_path)
    options |= {"batch_size": 3, "epochs": 1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    options |= {"adversarial_epsilon": 0.5} | ({"r_drop": 2.0} if name in CLASSES else {})
    if name in VECTORS:
        options |= {"gather_negatives": True}
    assert_same_as_one_process(tmp_path, 2, partial(make_task, **NO_DROPOUT), train, options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "twice, narrower"])
def test_a_stopped_run_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    """Among other techniques; with the projection, which is in the checkpoint and not in the folder."""
    make_task, train, options = taught(name, tmp_path)
    options |= {"ema_decay": 0.9, "adversarial_epsilon": 0.5} | ({"r_drop": 2.0} if name in CLASSES else {})

    def run(folder, **settings):
        return trained(tmp_path / folder, make_task(**DROPOUT), train, **options, **settings)

    expected = run("whole")
    stop_after(monkeypatch, 4)
    with pytest.raises(InterruptedRunError):
        run("parts")
    monkeypatch.undo()
    assert (tmp_path / "parts" / "checkpoint-4" / "VectorDistillation.safetensors").exists() == (name in VECTORS)
    assert_equal(run("parts", resume=True), expected)
    saved = [torch.load(tmp_path / folder / "pytorch_model.bin") for folder in ("parts", "whole")]
    assert_equal(*saved)
    start = make_task().model.weights.state_dict()
    assert saved[0].keys() == start.keys()
    assert any((expected[key] - each).abs().max() > 1e-4 for key, each in start.items())
    other = options["teacher"]
    np.save(other, np.load(other) + 1)
    with pytest.raises(UserError, match="content of --teacher: .* there, .* now"):
        run("parts", resume=True)


@pytest.mark.parametrize("name", VECTORS)
def test_micro_batches_give_the_same_gradients(name, tmp_path):
    make_task, train, options = taught(name, tmp_path)
    gradients = []
    for size in (None, 3):
        task = make_task(micro_batch_size=size, **NO_DROPOUT)
        task.model.double().train()
        mix = partial(hook_of(task, options, tmp_path).mixed, weight=1.0)
        task.losses(train.batch(np.arange(8)), [mix])["loss"].backward()
        gradients.append({key: each.grad for key, each in task.model.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-9, atol=1e-12, msg=key)


def test_with_r_drop_both_dropouts_learn_from_the_teacher(tmp_path):
    make_task, train, options = taught("classifier", tmp_path)
    task = make_task(**NO_DROPOUT)
    task.model.double().train()
    batch = RDrop(3.0).prepared(train.batch(np.arange(6)))
    noise = torch.randn(12, 3, dtype=torch.float64)  # the halves differ, as under dropout
    outputs = task.outputs
    task.outputs = lambda batch: outputs(batch) + noise
    mix = partial(hook_of(task, options, tmp_path).mixed, weight=1.0)
    got = RDrop(3.0).around_loss(partial(task.losses, batch, [mix]), batch)["loss"].item()
    logits = task.outputs(batch)
    parts = task.losses(batch)
    distance = expected_distance(task, logits, np.concatenate([train.teacher[:6]] * 2))
    expected = ((1 - ALPHA) * parts["loss"] + ALPHA * distance + 3.0 * parts["divergence"]) / 2
    assert got == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["unequal classes", "triples, wider"])
def test_its_steps_may_be_graphs(name, tmp_path):
    """Replays on static memory, which the teacher's rows are copied into, train as eager steps do."""
    make_task, train, options = taught(name, tmp_path)
    capture, ends = PretendedCapture(), []
    for each in (capture, None):
        task = make_task(**NO_DROPOUT)
        task.model.double().train()
        hook = hook_of(task, options, tmp_path)
        assert graph_obstacle(config(tmp_path), task, Precision("bf16", "cuda"), [hook]) is None
        step, reported = step_of(task, [hook], each), []
        for number in range(4):
            indices = np.arange(number, number + 5)
            batch = step.prepared(train.batch(indices))
            filled = batch if batch.has_filler else batch.filled(MULTIPLE)
            reported.append(step([filled], 5, task.loss_weight(train, indices)))
        ends.append((torch.stack(reported), task.model.state_dict()))
    assert capture.replayed >= 2
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-6, atol=0)
    for key, expected in ends[1][1].items():
        torch.testing.assert_close(ends[0][1][key], expected, rtol=1e-5, atol=1e-7, msg=key)


def test_a_student_comes_close_to_its_teacher(tmp_path):
    """With α = 1 the labels, which say something else, do not count."""
    _, train, options = taught("classifier", tmp_path)
    options |= {"teacher_weight": 1.0, "teacher_temperature": 1.0, "learning_rate": 1e-2}
    options |= {"batch_size": 29, "epochs": 40, "save_steps": 99}
    task = classification_task(**NO_DROPOUT)
    batch, distances = train.batch(np.arange(29)), []
    for trains in (False, True):
        if trains:
            trained(tmp_path / "run", task, train, **options)
        task.model.eval()
        with torch.no_grad():
            distances.append(expected_distance(task, task.outputs(batch), batch.teacher.numpy(), temperature=1.0))
    assert distances[1] < 0.1 * distances[0]
