import json
import math
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from torch.nn import functional as F
from transformers import AutoTokenizer, pipeline

from bertorch import load
from bertorch.config import ClassifierConfig
from bertorch.data.load import load_examples
from bertorch.data.readers import read_label_names
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.tasks.metadata import KEY
from bertorch.tasks.multi_label import LOSSES, MultiLabelTask, binary_cross_entropies, foreign_separator, zlpr_losses
from bertorch.tasks.multi_label_metric import MultiLabelMetric
from bertorch.tasks.thresholds import Thresholds
from bertorch.training.eval_loop import evaluate
from tests.architectures import random_batch, small_classifier
from tests.conftest import TINY, TOPICS, run_processes
from tests.short_runs import assert_same_as_one_process
from tests.small_tasks import NO_DROPOUT, multi_label_data, multi_label_task

NAMES = ["a", "b", "c", "d"]
CPU = torch.device("cpu")


def cells(size: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in double and labels, (size, C); the first example has no label, the second all."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, len(NAMES), generator=generator, dtype=torch.float64)
    labels = (torch.rand(size, len(NAMES), generator=generator) < 0.4).to(torch.uint8)
    labels[0], labels[1] = 0, 1
    return logits, labels


# By plain loops, from their formulas.


def plain_bce(row: list[float], labels: list[int]) -> float:
    chances = [1 / (1 + math.exp(-score)) for score in row]
    return -sum(math.log(p if y else 1 - p) for p, y in zip(chances, labels, strict=True)) / len(row)


def plain_zlpr(row: list[float], labels: list[int]) -> float:
    negatives = sum(math.exp(score) for score, y in zip(row, labels, strict=True) if not y)
    positives = sum(math.exp(-score) for score, y in zip(row, labels, strict=True) if y)
    return math.log(1 + negatives) + math.log(1 + positives)


PLAIN = {"bce": plain_bce, "zlpr": plain_zlpr}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_each_example(name):
    logits, labels = cells()
    expected = [PLAIN[name](*rows) for rows in zip(logits.tolist(), labels.tolist(), strict=True)]
    assert LOSSES[name](logits, labels).tolist() == pytest.approx(expected, rel=1e-12)


def test_binary_cross_entropy_is_torchs_mean_over_the_cells():
    logits, labels = cells()
    expected = torch.nn.BCEWithLogitsLoss()(logits, labels.double())
    torch.testing.assert_close(binary_cross_entropies(logits, labels).mean(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_formula(name):
    logits, labels = cells()
    ours = logits.clone().requires_grad_()
    LOSSES[name](ours, labels).sum().backward()
    for row, held, gradient in zip(logits.tolist(), labels.tolist(), ours.grad.tolist(), strict=True):
        for index, value in enumerate(gradient):
            step = 1e-6
            above, below = (PLAIN[name]([*row[:index], row[index] + d, *row[index + 1 :]], held) for d in (step, -step))
            assert value == pytest.approx((above - below) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits_overflow_nowhere(name, size):
    logits = torch.tensor([[size, -size, size, -size]], requires_grad=True)
    labels = torch.tensor([[1, 0, 0, 1]], dtype=torch.uint8)
    loss = LOSSES[name](logits, labels).sum()
    loss.backward()
    assert loss.item() == pytest.approx({"bce": size / 2, "zlpr": 2 * size}[name])
    assert logits.grad.isfinite().all()
    right = torch.tensor([[1, 0, 1, 0]], dtype=torch.uint8)
    assert LOSSES[name](logits, right).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_has_the_sum_in_fp32_and_no_accuracy(name):
    task = multi_label_task(name)
    logits, labels = cells()
    batch = replace(random_batch([3] * len(labels)), labels=labels)
    losses = task.losses_of(logits.bfloat16(), batch)
    assert losses.keys() == {"loss"}
    assert task.loss_parts == ("loss",)
    assert losses["loss"].dtype == torch.float32
    expected = [PLAIN[name](*rows) for rows in zip(logits.bfloat16().tolist(), labels.tolist(), strict=True)]
    assert losses["loss"].item() == pytest.approx(sum(expected), rel=1e-5)
    assert task.loss_weight(multi_label_data(9), np.arange(9)) == 9  # so the step has the mean over examples


@pytest.mark.parametrize("name", ["bce", pytest.param("zlpr", marks=pytest.mark.slow)])
def test_several_processes_train_as_one(name, tmp_path):
    make_task = partial(multi_label_task, name, **NO_DROPOUT)
    assert_same_as_one_process(tmp_path, 2, make_task, multi_label_data(21), {"batch_size": 4, "epochs": 1})


# The metric


def metric_of(order: list[int], batch_size: int, thresholds: Thresholds | None = None, **settings) -> MultiLabelMetric:
    logits, labels = cells(40)
    metric = MultiLabelMetric(CPU, NAMES, zlpr_losses, thresholds or Thresholds.default(len(NAMES)), **settings)
    for start in range(0, len(order), batch_size):
        chosen = np.array(order[start : start + batch_size])
        metric.update(logits[chosen], SimpleNamespace(labels=labels[chosen]), chosen)
    metric.reduce()
    return metric


def test_balanced_weights_of_the_labels_that_hold(tmp_path):
    """torch's own `pos_weight`, as a mean over the cells; the folder keeps what was used, not the weights."""
    write(tmp_path, ["好\t价格", "很好\t价格,物流", "坏\t质量", "不好\t", "快\t物流,质量"])
    config = options(tmp_path, class_weights="balanced", pretrained_model_name_or_path=str(TINY))
    train, _ = examples_of(config)
    task = MultiLabelTask.from_config(
        config, AutoTokenizer.from_pretrained(TINY), read_label_names(config.label_file), train
    )
    logits, labels = cells()
    held = torch.from_numpy(train.labels).double().sum(dim=0)  # (C,)
    expected = F.binary_cross_entropy_with_logits(
        logits[:, : len(held)], labels[:, : len(held)].double(), pos_weight=(len(train) - held) / held
    )
    batch = replace(random_batch([3] * len(logits)), labels=labels[:, : len(held)].to(torch.uint8))
    loss = task.losses_of(logits[:, : len(held)], batch)["loss"] / len(logits)
    torch.testing.assert_close(loss, expected)
    assert task.settings()["loss"] == {"class_weights": "balanced"}
    assert "class weights (balanced)" in task.notes()[0]


def test_what_the_log_says_of_labels_and_predictions():
    task, examples = multi_label_task(), multi_label_data(20)
    counts = task.label_counts(examples)
    assert counts.counts.tolist() == examples.labels.sum(axis=0).tolist()
    assert counts.unlabelled == (examples.labels.sum(axis=1) == 0).sum()
    metric = MultiLabelMetric(torch.device("cpu"), ["a", "b"], LOSSES["bce"], Thresholds.default(2))
    labels = torch.tensor([[1, 0], [0, 1], [0, 0]], dtype=torch.uint8)
    metric.update(torch.full((3, 2), -1.0), SimpleNamespace(labels=labels), np.arange(3))
    metric.reduce()
    (warning,) = metric.warnings()
    assert warning.startswith("all 3 predictions are without a label; ")
    metric.predicted[1] = True
    assert metric.warnings() == ()


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_metric_is_that_of_scikit_learn(batch_size):
    logits, labels = cells(40)
    metric = metric_of(np.random.default_rng(0).permutation(40).tolist(), batch_size)
    gold, predicted = labels.numpy(), (logits > 0).numpy()
    micro, macro = (f1_score(gold, predicted, average=average) for average in ("micro", "macro"))
    loss = np.mean([PLAIN["zlpr"](*rows) for rows in zip(logits.tolist(), labels.tolist(), strict=True)])
    assert metric.line() == f"eval loss: {loss:.5f}, micro F1: {micro:.5f}, macro F1: {macro:.5f}"
    assert metric.value == pytest.approx(micro, rel=1e-12)
    numbers = {"micro_F1": micro, "macro_F1": macro, "exact_match": accuracy_score(gold, predicted), "loss": loss}
    assert metric.numbers() == pytest.approx(numbers, rel=1e-12)
    assert next(iter(metric.numbers())) == metric.name.replace(" ", "_")
    report = metric.report()
    assert report["exact_match"] == pytest.approx(numbers["exact_match"])
    columns = precision_recall_fscore_support(gold, predicted)
    for index, name in enumerate(NAMES):
        row = dict(zip(("precision", "recall", "f1", "support"), (column[index] for column in columns), strict=True))
        assert report["labels"][name] == pytest.approx(row | {"threshold": 0.0})
    assert "without_thresholds" not in report


def test_a_label_that_never_occurs_counts_in_the_macro_f1_but_not_among_those_present():
    metric = MultiLabelMetric(CPU, NAMES, zlpr_losses, Thresholds.default(4))
    labels = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.uint8)
    metric.update(torch.where(labels > 0, 1.0, -1.0), SimpleNamespace(labels=labels), np.arange(2))
    metric.reduce()
    report = metric.report()
    assert (report["macro_f1"], report["macro_f1_present"], report["micro_f1"]) == (0.5, 1.0, 1.0)


def test_nothing_predicted_and_nothing_gold_is_no_error():
    metric = MultiLabelMetric(CPU, NAMES, binary_cross_entropies, Thresholds.default(4))
    empty = torch.zeros(2, 4, dtype=torch.uint8)
    metric.update(torch.full((2, 4), -1.0), SimpleNamespace(labels=empty), np.arange(2))
    metric.reduce()
    report = metric.report()
    assert (report["micro_f1"], report["macro_f1_present"], report["exact_match"]) == (0.0, 0.0, 1.0)


def test_with_thresholds_the_report_also_has_what_there_is_without():
    tuned = Thresholds(np.array([0.5, -0.5, 1.0, 0.0]), "micro", "digest")
    logits, labels = cells(40)
    report = metric_of(list(range(40)), 8, tuned, tuned_here=True).report()
    predicted = logits.numpy() > tuned.values
    assert report["micro_f1"] == pytest.approx(f1_score(labels.numpy(), predicted, average="micro"))
    assert report["without_thresholds"] == pytest.approx(
        {name: metric_of(list(range(40)), 8).report()[name] for name in report["without_thresholds"]}
    )
    assert report["thresholds"] == {"tuned_for": "micro", "tuned_on_these_examples": True}
    assert [row["threshold"] for row in report["labels"].values()] == tuned.values.tolist()


def evaluate_in_double(folder, batch_size) -> None:
    task = multi_label_task("zlpr")
    task.model.double()
    metric = evaluate(task, multi_label_data(23), batch_size, Precision("fp32", "cpu"))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "one"
    (folder / f"{rank}.txt").write_text(f"{metric.line()} {metric.value!r}")


@pytest.mark.slow
def test_evaluation_does_not_depend_on_processes_or_batch_size(tmp_path):
    evaluate_in_double(tmp_path, 32)
    expected = (tmp_path / "one.txt").read_text()
    evaluate_in_double(tmp_path, 5)
    run_processes(2, evaluate_in_double, tmp_path, 7)
    assert [path.read_text() for path in tmp_path.iterdir()] == [expected] * 3


# Lines


def options(folder, **settings) -> ClassifierConfig:
    files = {"train_data_file": "train.txt", "dev_data_file": "dev.txt", "label_file": "labels.txt"}
    paths = {name: str(folder / file) for name, file in files.items()}
    return ClassifierConfig(**(paths | {"problem_type": "multi_label", "max_seq_length": 32} | settings))


def examples_of(config: ClassifierConfig):
    readers = MultiLabelTask.readers(config, read_label_names(config.label_file))
    return load_examples(config, AutoTokenizer.from_pretrained(TINY), *readers)


def write(folder, lines: list[str], labels: tuple[str, ...] = ("价格", "物流", "质量")) -> None:
    (folder / "labels.txt").write_text("\n".join(labels))
    for name in ("train.txt", "dev.txt"):
        (folder / name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("is_text_pair", [False, True])
def test_lines_have_any_number_of_labels_in_any_order(is_text_pair, tmp_path):
    text = "甲\t乙" if is_text_pair else "甲"
    write(tmp_path, [f"{text}\t质量|价格", f"{text}\t", f"{text}\t物流", f"{text}\t 价格 | 质量 "])
    train, dev = examples_of(options(tmp_path, label_separator="|", is_text_pair=is_text_pair))
    assert dev is not None
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert train.batch(np.arange(4)).labels.tolist() == dev.batch(np.arange(4)).labels.tolist() == expected


def test_a_space_separates_labels_but_not_at_the_ends(tmp_path):
    write(tmp_path, ["甲\t质量 价格 ", "甲\t "])
    train, _ = examples_of(options(tmp_path, label_separator=" "))
    assert train.batch(np.arange(2)).labels.tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("甲\t价格,快递", "train.txt:2: expected labels of the label file (价格, 物流, 质量), got '快递'"),
        ("甲\t价格|物流", "train.txt:2: expected labels of the label file (价格, 物流, 质量), got '价格|物流'"),
        ("甲\t价格,", "train.txt:2: expected labels of the label file (价格, 物流, 质量), got ''"),
        (" \t价格", "train.txt:2: expected no empty column (text⇥labels)"),
        ("甲", "(text⇥labels), got 1: '甲'; a line whose last column is empty ends with the tab"),
        ("甲\t乙\t价格", "(text⇥labels), got 3: '甲\\t乙\\t价格'; lines of a⇥b⇥labels need --is_text_pair"),
    ],
)
def test_a_wrong_line_is_told(line, message, tmp_path):
    write(tmp_path, ["甲\t价格", line])
    with pytest.raises(UserError) as error:
        examples_of(options(tmp_path))
    assert message in str(error.value)


def test_a_label_with_the_separator_is_told_by_its_line(tmp_path):
    write(tmp_path, ["甲\t价格"], labels=("价格", "快,准"))
    with pytest.raises(UserError, match=r"labels.txt:2: expected a label without ',', .* choose another --label_sep"):
        examples_of(options(tmp_path))
    examples_of(options(tmp_path, label_separator="|"))


def test_so_is_one_whose_end_and_the_separator_are_ambiguous(tmp_path):
    """`好-` and `快` would be `好---快`, which is `好` and `-快`."""
    write(tmp_path, ["甲\t好--快"], labels=("好", "好-", "-快", "快"))
    with pytest.raises(UserError, match=r"labels.txt:2: expected a label that does not end as '--' begi.*, got '好-'"):
        examples_of(options(tmp_path, label_separator="--"))
    write(tmp_path, ["甲\t-快--快"], labels=("好", "-快", "快"))
    train, _ = examples_of(options(tmp_path, label_separator="--"))
    assert train.batch(np.arange(1)).labels.tolist() == [[0, 1, 1]]


def test_the_cache_gives_the_same_examples(tmp_path):
    plain, _ = examples_of(options(TOPICS))
    for _ in range(2):
        cached, _ = examples_of(options(TOPICS, cache_dir=str(tmp_path)))
        everything = np.arange(len(plain))
        ours, expected = cached.batch(everything), plain.batch(everything)
        assert torch.equal(ours.labels, expected.labels)
        assert torch.equal(ours.input_ids, expected.input_ids)
    write(tmp_path, ["甲\t价格,物流"], labels=("价格", "物流", "价格,物流"))
    other, _ = examples_of(options(tmp_path, cache_dir=str(tmp_path), label_separator="|"))
    assert other.batch(np.arange(1)).labels.tolist() == [[0, 0, 1]]
    write(tmp_path, ["甲\t价格,物流"], labels=("价格", "物流", "快"))
    other, _ = examples_of(options(tmp_path, cache_dir=str(tmp_path)))
    assert other.batch(np.arange(1)).labels.tolist() == [[1, 1, 0]]


# The saved folder

LINES = [line.split("\t") for line in (TOPICS / "dev.txt").read_text().splitlines()]
TEXTS = [text for text, _ in LINES]
LABELS = (TOPICS / "labels.txt").read_text().split()


def table(predictions) -> list[list[float]]:
    return [list(prediction.probabilities.values()) for prediction in predictions]


@pytest.mark.slow
def test_the_folder_says_what_it_is(folders):
    config = json.loads((folders["several labels"] / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config[KEY] == {
        "task": "multi_label",
        "head": "linear",
        "max_seq_length": 32,
        "text_pair": False,
        "multi_label_loss": "zlpr",
        "label_separator": ",",
    }


@pytest.mark.slow
def test_a_pipeline_gives_the_same_probabilities(folders):
    predictions = load(folders["several labels"]).predict(TEXTS)
    classify = pipeline("text-classification", model=str(folders["several labels"]), top_k=None, device="cpu")
    for text, prediction in zip(TEXTS, predictions, strict=True):
        expected = {each["label"]: each["score"] for each in classify([text])[0]}
        assert prediction.probabilities == pytest.approx(expected, abs=1e-5)
        assert prediction.labels == tuple(name for name in LABELS if expected[name] > 0.5)
        assert prediction.label is None
        assert prediction.probability is None
    assert len({len(prediction.labels) for prediction in predictions}) > 2  # none, one, several


def changed(folder, target, change):
    """A copy of a folder with another config."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_thresholds_of_the_folder_decide(folders, tmp_path):
    values = [-50.0, 50.0, 0.0, 1.5]
    stored = {"values": values, "average": "macro", "data": "none"}
    tuned = changed(folders["several labels"], tmp_path / "tuned", lambda config: config[KEY].update(thresholds=stored))
    plain = load(folders["several labels"]).predict(TEXTS)
    model = load(tuned)
    assert table(model.predict(TEXTS)) == table(plain)
    for prediction in model.predict(TEXTS):
        logits = {name: math.log(p / (1 - p)) for name, p in prediction.probabilities.items()}
        assert prediction.labels == tuple(
            name for name, threshold in zip(LABELS, values, strict=True) if logits[name] > threshold
        )
        assert "价格" in prediction.labels
        assert "物流" not in prediction.labels
    assert model.task.settings()["thresholds"] == stored


def test_a_plain_folder_gives_the_same(folders, tmp_path):
    plain = load(changed(folders["several labels"], tmp_path / "plain", lambda config: config.pop(KEY)))
    own = load(folders["several labels"])
    assert type(plain.task) is MultiLabelTask
    assert plain.predict(TEXTS) == own.predict(TEXTS)
    assert len(plain.predict([("甲", "乙")])) == 1


def test_a_plain_folder_with_commas_in_its_labels_has_another_separator(folders, tmp_path):
    names = {"0": "a, b", "1": "c", "2": "d", "3": "e"}
    folder = changed(
        folders["several labels"], tmp_path / "plain", lambda config: config.pop(KEY) and config.update(id2label=names)
    )
    assert load(folder).task.label_separator == "|"
    assert foreign_separator(["a", "b|c"]) == ","
    with pytest.raises(UserError, match="expected labels without one of"):
        foreign_separator([",|;/"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multi_label_loss": "hinge"}, "multi_label_loss: expected one of (None, 'bce', 'zlpr'), got 'hinge'"),
        ({"label_separator": 3}, "label_separator: expected a text, got 3"),
        ({"thresholds": [0.0]}, "thresholds: expected 4 finite numbers as values, average and data, got [0.0]"),
        ({"thresholds": {"values": [0.0], "average": "micro", "data": ""}}, "thresholds: expected 4 finite numbers"),
        ({"thresholds": {"values": [0, 1, 2, math.nan], "average": "micro", "data": ""}}, "expected 4 finite numbers"),
        ({"thresholds": {"values": [0, 1, 2, "x"], "average": "micro", "data": ""}}, "expected 4 finite numbers"),
    ],
)
def test_a_broken_folder_is_told(settings, message, folders, tmp_path):
    with pytest.raises(UserError) as error:
        load(changed(folders["several labels"], tmp_path / "broken", lambda config: config[KEY].update(settings)))
    assert f"{tmp_path}/broken/config.json: bertorch: " in str(error.value)
    assert message in str(error.value)


def test_the_model_card_shows_all_labels(folders):
    text = (folders["several labels"] / "README.md").read_text()
    assert "predict(['房间干净，早餐也丰富。'])[0].labels)" in text
    assert ", top_k=None)('房间干净，早餐也丰富。'))" in text
    assert "| step | dev_micro_F1 | dev_macro_F1 | dev_exact_match | dev_loss |" in text


def test_a_constructor_takes_another_loss():
    task = MultiLabelTask(
        SequenceClassifier(small_classifier("bert")), ["a", "b", "c"], losses=lambda s, y: 2 * zlpr_losses(s, y)
    )
    logits, labels = cells()
    batch = replace(random_batch([3] * 9), labels=labels)
    expected = 2 * zlpr_losses(logits, labels).sum()
    torch.testing.assert_close(task.losses_of(logits, batch)["loss"], expected)
