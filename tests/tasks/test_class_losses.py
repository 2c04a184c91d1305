"""Unequal classes: against torch's own cross-entropy in float64 over the whole step, and against plain loops."""

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bertorch import evaluate, load
from bertorch.config import ClassifierConfig
from bertorch.data.dataset import Dataset, Subset
from bertorch.data.model_digests import ModelDigests
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.errors import UserError
from bertorch.tasks.base import Negatives
from bertorch.tasks.class_losses import (
    ClassLoss,
    Constant,
    balanced_weights,
    class_loss,
    effective_weights,
    loss_notes,
    loss_record,
    positive_weights,
    read_class_weights,
)
from bertorch.tasks.classification import ClassificationTask
from bertorch.training import loop
from bertorch.training.hooks import StopIfNotFinite
from bertorch.training.run_options import describe_run
from bertorch.training.start import started
from tests.architectures import small_classifier
from tests.conftest import REVIEWS
from tests.short_runs import assert_same_as_one_process, config
from tests.small_tasks import NO_DROPOUT, classification_data, classification_task

NAMES = ["a", "b", "c"]
WEIGHTS = np.array([0.25, 1.5, 4.0])
LOSSES = {
    "weights": ClassLoss(weights=WEIGHTS),
    "weights and smoothing": ClassLoss(weights=WEIGHTS, smoothing=0.1),
    "focal": ClassLoss(weights=WEIGHTS, gamma=2.0),
    "adjustment": ClassLoss(adjustment=np.log([0.7, 0.2, 0.1])),
}


def options(**settings) -> ClassifierConfig:
    return ClassifierConfig(**({"train_data_file": "t", "label_file": "l"} | settings))


def some_logits(size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, 3, generator=generator, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.randint(0, 3, (size,), generator=generator)


def examples_of(counts: list[int]) -> Dataset:
    data = classification_data(sum(counts))
    return Dataset(data.store, data.sentences, np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_over_all_parts_is_that_of_torch_over_the_whole(weights, smoothing):
    """Torch divides by the weights of its own batch; here the parts of a step share one divisor."""
    logits, labels = some_logits()
    tensor = None if weights is None else torch.from_numpy(weights)
    expected = F.cross_entropy(logits, labels, tensor, label_smoothing=smoothing)
    loss_of = ClassLoss(weights=weights, smoothing=smoothing)
    parts = [slice(0, 3), slice(3, 25), slice(25, 40)]
    mean = sum(loss_of(logits[part], labels[part]) for part in parts) / sum(
        loss_of.weight_of(labels[part].numpy()) for part in parts
    )
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (mean, expected)))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_focal_loss_is_that_of_its_paper(weights, gamma):
    logits, labels = some_logits()
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        expected += (1 if weights is None else weights[label]) * -((1 - p) ** gamma) * math.log(p)
    ours = ClassLoss(weights=weights, gamma=gamma)(logits, labels)
    assert ours.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_sure_example_gives_the_focal_loss_no_infinite_gradient(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0], [20.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    ClassLoss(gamma=gamma)(logits, torch.tensor([0, 0, 2])).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[2].abs().max() > 0.1


def test_the_adjustment_is_in_the_loss_alone():
    logits, labels = some_logits()
    train = examples_of([70, 20, 10])
    loss_of = class_loss(options(logit_adjustment=1.5), NAMES, train)
    expected = F.cross_entropy(logits + 1.5 * torch.tensor([0.7, 0.2, 0.1]).log(), labels, reduction="sum")
    torch.testing.assert_close(loss_of(logits, labels).item(), expected.item())
    adjusted, plain = (classification_task(), classification_task())
    adjusted._class_loss = loss_of
    batch = train.batch(np.arange(6))
    torch.testing.assert_close(adjusted.probabilities(logits), plain.probabilities(logits))
    for task in (adjusted, plain):
        task.model.eval()
    assert adjusted.losses(batch)["accuracy"] == plain.losses(batch)["accuracy"]  # of what is predicted
    metric = adjusted.metric(torch.device("cpu"))
    metric.update(adjusted.outputs(batch).detach(), batch, np.arange(6))
    metric.reduce()
    assert metric.loss == pytest.approx(plain.losses(batch)["loss"].item() / 6, rel=1e-5)


def test_half_precision_is_summed_in_fp32():
    logits, labels = some_logits()
    for loss_of in LOSSES.values():
        half = loss_of(logits.bfloat16(), labels)
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(loss_of(logits.bfloat16().double(), labels).item(), rel=1e-5)


def test_the_constants_are_copied_once():
    logits, _ = some_logits()
    constant = Constant(WEIGHTS)
    assert constant.beside(logits) is constant.beside(logits)
    assert constant.beside(logits.bfloat16()).dtype == torch.bfloat16
    assert constant.beside(logits).tolist() == WEIGHTS.tolist()


def test_the_weights_of_the_issue():
    counts = np.array([60, 30, 10])
    assert balanced_weights(counts).tolist() == pytest.approx([100 / (3 * count) for count in (60, 30, 10)])
    expected = [(1 - 0.999) / (1 - 0.999**count) for count in (60, 30, 10)]
    assert effective_weights(counts).tolist() == pytest.approx(expected)
    assert effective_weights(np.array([10**6])).tolist() == pytest.approx([1e-3])
    assert positive_weights(counts, 120, NAMES).tolist() == pytest.approx([1.0, 3.0, 11.0])
    # so weighted, what has a label weighs what has it not
    assert (positive_weights(counts, 120, NAMES) * counts).tolist() == pytest.approx((120 - counts).tolist())


@pytest.mark.parametrize(
    "settings", [{"class_weights": "balanced"}, {"class_weights": "effective"}, {"logit_adjustment": 1.0}], ids=str
)
def test_a_class_without_training_examples_is_an_error(settings):
    with pytest.raises(UserError, match="expected training examples of each label, got none for 1 of 3: b; take them"):
        class_loss(options(**settings), NAMES, examples_of([5, 0, 3]))


def test_positive_weights_need_examples_with_and_without_each_label():
    with pytest.raises(UserError, match="of each label, got none for 1 of 3: c;"):
        positive_weights(np.array([1, 2, 0]), 9, NAMES)
    with pytest.raises(UserError, match="without the label, for each label, got none for 1 of 3: b;"):
        positive_weights(np.array([1, 9, 1]), 9, NAMES)


def test_the_weights_come_from_the_training_part_alone():
    whole = examples_of([60, 30, 10])
    part = Subset(whole, np.arange(40, 95))  # 20, 30 and 5
    loss_of = class_loss(options(class_weights="balanced"), NAMES, part)
    weights = [loss_of.weight_of(np.array([index])) for index in range(3)]
    assert weights == pytest.approx([55 / (3 * count) for count in (20, 30, 5)])
    task = classification_task()
    assert task.loss_weight(part, np.array([0, 25, 54])) == 3
    task._class_loss = loss_of
    assert task.loss_weight(part, np.array([0, 25, 54])) == pytest.approx(sum(weights))


def test_without_its_options_there_is_no_such_loss():
    assert class_loss(options(), NAMES, examples_of([5, 0, 3])) is None
    assert loss_record(options()) == {}


# A file of weights


def test_a_file_of_weights(tmp_path):
    file = tmp_path / "weights.tsv"
    file.write_text("c\t4\na\t0.25\nb\t1.5e0\n")
    assert read_class_weights(str(file), NAMES).tolist() == WEIGHTS.tolist()
    loss_of = class_loss(options(class_weights=str(file)), NAMES, examples_of([5, 0, 3]))
    assert [loss_of.weight_of(np.array([index])) for index in range(len(NAMES))] == WEIGHTS.tolist()
    assert loss_record(options(class_weights=str(file))) == {"class_weights": "file"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\t1\nb\t0\nc\t1\n", r"weights.tsv:2: expected a weight above 0 \(label⇥weight\), got '0'"),
        ("a\t1\nb\tnan\nc\t1\n", r"weights.tsv:2: expected a number as weight \(label⇥weight\), got 'nan'"),
        ("a\t1\nb\t1\nb\t1\nc\t1\n", "weights.tsv:3: expected each label once, got 'b' again"),
        ("a\t1\nb\t1\nd\t1\n", r"weights.tsv:3: expected one of the labels \(a, b, c\), got 'd'"),
        ("a 1\n", r"weights.tsv:1: expected 2 columns \(label⇥weight\), got 1"),
        ("a\t1\n", "weights.tsv: expected a weight for each label, got none for: b, c"),
        ("", "weights.tsv: expected one label and weight a line, got no line"),
    ],
)
def test_errors_in_it_name_the_line(content, message, tmp_path):
    file = tmp_path / "weights.tsv"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        ClassificationTask.readers(options(class_weights=str(file)), NAMES)


def test_a_mistyped_kind_of_weights_is_no_file():
    expected = "--class_weights: expected none, balanced, effective or a file of label⇥weight, got 'balance'"
    with pytest.raises(UserError, match=expected):
        ClassificationTask.readers(options(class_weights="balance"), NAMES)


# Options that make no sense


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": "balanced", "logit_adjustment": 1.0}, "both make up for unequal classes"),
        ({"label_smoothing": 0.1, "focal_gamma": 2.0}, "the focal loss looks at the right class alone"),
        ({"focal_gamma": 2.0, "logit_adjustment": 1.0}, "the adjustment is right for cross-entropy alone"),
        ({"label_smoothing": 0.1, "logit_adjustment": 1.0}, "smoothed targets no longer have the classes' shares"),
        ({"problem_type": "score", "label_file": None, "focal_gamma": 2.0}, "--focal_gamma is for classes, and"),
        (
            {"problem_type": "ranking", "label_file": None, "class_weights": "balanced"},
            "--class_weights is for cl",
        ),
        ({"problem_type": "multi_label", "label_smoothing": 0.1}, "has only --class_weights balanced, got --label_smo"),
        ({"problem_type": "multi_label", "class_weights": "effective"}, "got --class_weights effective; leave it"),
        ({"problem_type": "multi_label", "class_weights": "balanced", "focal_gamma": 1.0}, "got --focal_gamma"),
        (
            {"problem_type": "multi_label", "class_weights": "balanced", "multi_label_loss": "zlpr"},
            "--class_weights is for --multi_label_loss bce: zlpr compares labels",
        ),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        options(**settings)


def test_options_that_go_together():
    options(class_weights="balanced", label_smoothing=0.1)
    options(class_weights="effective", focal_gamma=2.0)
    options(problem_type="multi_label", class_weights="balanced")


# The global step


def task_with(name: str) -> ClassificationTask:
    model = SequenceClassifier(small_classifier("bert", **NO_DROPOUT))
    return ClassificationTask(model, NAMES, class_loss=LOSSES[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("weights and smoothing", {"gradient_accumulation_steps": 2}),
        pytest.param("focal", {}, marks=pytest.mark.slow),
        pytest.param("adjustment", {}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(name, settings, tmp_path):
    """29 examples: the last step has fewer, and the processes different classes."""
    settings = {"batch_size": 4, "epochs": 1, "save_steps": 100, **settings}
    assert_same_as_one_process(tmp_path, 2, partial(task_with, name), classification_data(29), settings)


def test_a_step_of_several_batches_takes_the_weighted_mean_over_all(tmp_path, monkeypatch):
    """One step, from batches of 3, 3 and 1 examples, against torch's cross-entropy of all seven at once."""
    train = classification_data(7)
    task = task_with("weights and smoothing")
    task.model.double().eval()
    batch = train.batch(np.arange(7))
    expected = F.cross_entropy(task.model(batch), batch.labels, torch.from_numpy(WEIGHTS), label_smoothing=0.1)
    gradients = torch.autograd.grad(expected, list(task.model.parameters()), allow_unused=True)
    norm = torch.stack([each.norm() for each in gradients if each is not None]).norm().item()
    settings = {"batch_size": 3, "gradient_accumulation_steps": 3, "epochs": 1, "logging_steps": 1, "save_steps": 1}
    run = config(tmp_path, dev_data_file=None, **settings)
    told = []
    monkeypatch.setattr(StopIfNotFinite, "inspect", lambda self, step, numbers, rate: told.append(numbers))
    with started(run):
        loop.fit(run, task, train, None)
    (step,) = told
    assert step["loss"] == pytest.approx(expected.item(), rel=1e-9)
    assert step["gradient_norm"] == pytest.approx(norm, rel=1e-9)


# What is kept


def test_the_content_of_the_weights_makes_a_run_another(tmp_path):
    for name, content in {"t": "x", "l": "x", "one": "a\t1\n", "two": "a\t2\n"}.items():
        (tmp_path / name).write_text(content)

    def described(**settings):
        files = {"train_data_file": str(tmp_path / "t"), "label_file": str(tmp_path / "l")}
        digests = ModelDigests(tmp_path / "run.json")
        return describe_run(
            ClassifierConfig(**files, **settings), digests, precision="fp32", processes=1, negatives=Negatives.NONE
        )

    plain, balanced, one, two = (
        described(**({} if kind is None else {"class_weights": str(kind)}))
        for kind in (None, "balanced", tmp_path / "one", tmp_path / "two")
    )
    assert not any("class_weights" in name for name in plain)  # as in the record of an earlier run
    assert balanced["--class_weights"] == "balanced"
    assert one["content of --class_weights"] != two["content of --class_weights"]
    assert described(focal_gamma=2.0)["--focal_gamma"] == 2.0


RECORD = {"class_weights": "balanced", "label_smoothing": 0.1}


def folder_with(folders, tmp_path, record):
    """A classifier's folder, as one that was trained with such a loss."""
    folder = tmp_path / "model"
    shutil.copytree(folders["classifier"], folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["bertorch"]["loss"] = record
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


def test_a_folder_keeps_what_it_was_trained_with():
    task = classification_task()
    assert "loss" not in task.settings()
    assert task.notes() == []
    task._loss_record = RECORD
    assert task.settings()["loss"] == RECORD
    assert len(task.notes()) == 2


@pytest.mark.slow
def test_the_report_says_what_the_loss_does_to_probabilities(folders, tmp_path, log_lines):
    folder = folder_with(folders, tmp_path, RECORD)
    assert load(folder).task.settings()["loss"] == RECORD
    files = {"input_file": str(REVIEWS / "dev.txt"), "output_dir": str(tmp_path / "report")}
    evaluate.run(evaluate.EvaluateConfig(model_dir=str(folder), **files))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["notes"] == loss_notes(RECORD)
    assert set(loss_notes(RECORD)) <= set(log_lines)
    evaluate.run(evaluate.EvaluateConfig(model_dir=str(folders["classifier"]), overwrite=True, **files))
    assert "notes" not in json.loads((tmp_path / "report" / "report.json").read_text())


@pytest.mark.parametrize("record", ["balanced", {"unheard": 1}, {"class_weights": 2}, {"focal_gamma": "2"}], ids=str)
def test_a_damaged_record_is_an_error(record, folders, tmp_path):
    with pytest.raises(UserError, match="bertorch: loss: expected options of the loss, got"):
        load(folder_with(folders, tmp_path, record))


def test_there_is_a_note_for_each_option():
    record = loss_record(options(class_weights="effective", focal_gamma=2.0))
    record |= loss_record(options(label_smoothing=0.1)) | loss_record(options(logit_adjustment=1.0))
    notes = loss_notes(record)
    assert len(notes) == 4
    assert all("probabilities" in note for note in notes)
