"""What a run says of its data before the first step, and of its predictions after the first evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bertorch.config import ClassifierConfig, TrainingConfig
from bertorch.data.dataset import Dataset, Subset, TextRows, split_off
from bertorch.data.load import load_examples
from bertorch.data.readers import read_label_names
from bertorch.data.spans import SpanFinder
from bertorch.data.tags import TagSet
from bertorch.data.tokens import TokenStore
from bertorch.errors import InterruptedRunError, UserError
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.metrics import ClassificationMetric
from bertorch.tasks.span_metric import SpanMetric
from bertorch.tasks.tagging import tagged_sentences
from bertorch.training.data_report import count_shared, log_data_report
from tests.conftest import NER, TINY
from tests.short_runs import config, fit, stop_after
from tests.small_tasks import (
    classification_data,
    classification_task,
    contrastive_data,
    contrastive_task,
    global_pointer_task,
    multi_label_task,
    siamese_task,
    tagged_data,
    tagging_task,
)

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def options(max_length: int = 16) -> TrainingConfig:
    return TrainingConfig(train_data_file="t", max_seq_length=max_length)


def dataset(tokenizer, texts: list[str], labels: list[int], max_length: int = 16) -> Dataset:
    return Dataset.of_sequences(tokenizer, [texts], np.array(labels), max_length=max_length)


def named_task(names: list[str]) -> ClassificationTask:
    task = classification_task()
    task.label_names = names
    return task


def test_the_block_of_a_classifier(tokenizer, log_lines):
    train = dataset(tokenizer, ["好", "好吃", "天" * 14, "天" * 15], [0, 0, 0, 1])
    dev = dataset(tokenizer, ["好吃", "天" * 40, "坏"], [1, 1, 1])
    log_data_report(options(), named_task(NAMES), train, dev)
    assert log_lines == [
        "data: train: labels: a 3, b 1, c 0",
        "data: dev: labels: b 3, a 0, c 0",
        "data: cut at --max_seq_length 16: train 1 of 4 (25.0%), dev 1 of 3 (33.3%)",
        "data: train: no example of 1 of 3 labels: c",
        "data: dev: the only label is b: there is nothing to tell apart",
        # also the two that are equal once they are cut
        "data: dev: 2 of 3 (66.7%) stand in the training examples too, as tokens, and make the metric too good; "
        "python -m bertorch.prepare dedupe takes those that are equal to the last character out of files of columns "
        "(--texts 2 for pairs, where a file has no labels)",
    ]


def test_without_dev_examples_and_without_fault(tokenizer, log_lines):
    log_data_report(options(), named_task(["a", "b"]), dataset(tokenizer, ["好", "坏"], [0, 1]), None)
    assert log_lines == [
        "data: train: labels: a 1, b 1",
        "data: cut at --max_seq_length 16: train 0 of 2 (0.0%)",
    ]


def test_facts_and_faults_have_their_levels(tokenizer):
    from loguru import logger

    levels = []
    sink = logger.add(lambda message: levels.append(message.record["level"].name))
    log_data_report(options(), named_task(NAMES), dataset(tokenizer, ["好", "坏"], [0, 1]), None)
    logger.remove(sink)
    assert levels == ["INFO", "INFO", "WARNING"]


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([1, 0, 1], "no example of 2 of 3 labels: b, c"),
        ([1, 1, 1], "the only label is a: there is nothing to tell apart"),
    ],
)
def test_one_of_several_labels_can_be_told_from_none(held, expected, tokenizer, log_lines):
    task = multi_label_task()
    task.label_names = NAMES
    labels = np.array([held, [0] * 3, [0] * 3], np.uint8).T  # (examples, C)
    train = Dataset.of_sequences(tokenizer, [["好", "坏", "吃"]], labels, max_length=16)
    log_data_report(options(), task, train, None)
    assert log_lines[-1] == f"data: train: {expected}"


def test_many_labels_are_shortened(log_lines):
    names = [f"label{index}" for index in range(50)]
    counts = np.array([*range(1, 49), 0, 0])
    data = classification_data(int(counts.sum()))
    train = Dataset(data.store, data.sentences, np.repeat(np.arange(50), counts))
    log_data_report(options(), named_task(names), train, None)
    frequent = ", ".join(f"label{index} {index + 1}" for index in range(47, 37, -1))
    assert log_lines[0] == f"data: train: labels: {frequent}, and 40 more with 0 to 38"
    assert log_lines[-1] == "data: train: no example of 2 of 50 labels: label48, label49"


def test_what_has_no_labels_leaves_them_out(log_lines):
    log_data_report(options(), contrastive_task(), contrastive_data(6), None)
    assert log_lines == ["data: cut at --max_seq_length 16: train 0 of 6 (0.0%)"]


def test_pairs_that_are_encoded_apart_are_cut_if_one_is(tokenizer, log_lines):
    columns = [["好", "天" * 20, "天" * 20, "坏"], ["天" * 20, "好", "天" * 20, "好"]]
    train = Dataset.of_sentences(tokenizer, columns, np.array([0, 1, 2, 0]), max_length=16)
    log_data_report(options(), siamese_task(), train, None)
    assert log_lines == [
        "data: train: labels: a 2, b 1, c 1",
        "data: cut at --max_seq_length 16: train 3 of 4 (75.0%)",
    ]


def test_both_parts_of_one_file(tokenizer, log_lines):
    texts = [f"{'天' * (index % 7 + 10)}{index % 5}" for index in range(60)]
    whole = dataset(tokenizer, texts, [index % 3 for index in range(60)])
    train, dev = split_off(whole, 0.3, seed=1)
    log_data_report(options(), named_task(NAMES), train, dev)
    labels = [[index % 3 for index in part.chosen] for part in (train, dev)]
    cut = [sum(len(tokenizer(texts[index])["input_ids"]) > 16 for index in part.chosen) for part in (train, dev)]
    for name, line, found in zip(("train", "dev"), log_lines, labels, strict=False):
        assert line.startswith(f"data: {name}: labels: ")
        assert all(f"{NAMES[label]} {found.count(label)}" in line for label in range(3))
    assert f"train {cut[0]} of 42 " in log_lines[2]
    assert f"dev {cut[1]} of 18 " in log_lines[2]
    tokens = [tuple(tokenizer(text, truncation=True, max_length=16)["input_ids"]) for text in texts]
    seen = {tokens[index] for index in train.chosen}
    assert f"dev: {sum(tokens[index] in seen for index in dev.chosen)} of 18 " in log_lines[-1]


def test_the_tags_of_entities(tokenizer, log_lines):
    """Counted by plain loops over the file; also of a part of it, and of sentences of several windows."""
    tags = TagSet(read_label_names(str(NER / "labels.txt")), "bios", "labels.txt")
    path = str(NER / "dev.json")
    whole = tagged_sentences(
        path,
        tokenizer=tokenizer,
        max_length=32,
        tags=tags,
        strict=False,
        on_bad_line="stop",
        split="characters",
        as_spans=False,
    )
    chosen = np.arange(5, 60)
    lines = [json.loads(line)["label"] for line in (NER / "dev.json").read_text().splitlines()]
    begins = [[tag[2:] for tag in line if tag[0] in "BS"] for line in lines]
    task = tagging_task(use_crf=False)
    task.span_model.tags, task.span_model.find_spans = tags, SpanFinder(tags)
    for part, found in ((whole, begins), (Subset(whole, chosen), begins[5:60])):
        counts = task.label_counts(part)
        flat = [type_ for types in found for type_ in types]
        assert counts.counts.tolist() == [flat.count(type_) for type_ in tags.types]
        assert counts.unlabelled == sum(not types for types in found)
    assert (np.diff(whole.examples) > 1).any()
    log_data_report(options(32), task, whole, whole)
    assert log_lines[0].startswith("data: train: entities: ")
    assert log_lines[0].endswith(f"; examples without: {sum(not types for types in begins)}")
    none = f"0 of {len(lines)} (0.0%)"
    assert log_lines[2] == f"data: cut at --max_seq_length 32: train {none}, dev {none}"
    assert log_lines[3].startswith(f"data: dev: {len(lines)} of {len(lines)} (100.0%) stand in the training examples")


def test_entities_of_which_there_are_none(log_lines):
    data = tagged_data(4)
    data.tags[:] = 0
    log_data_report(options(), tagging_task(use_crf=False), data, None)
    assert log_lines[-1] == "data: train: no entities at all"


# Which dev examples are training examples


def random_rows(size: int, width: int, seed: int) -> TextRows:
    """Rows of short sentences of two tokens in all orders, many of them equal; some differ in an empty end alone."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 5, size * width)
    tokens = generator.integers(0, 2, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], lengths]).cumsum()
    store = TokenStore(tokens, np.zeros(len(tokens), np.int8), offsets, np.zeros(len(lengths), np.bool_))
    return TextRows(store, np.arange(size * width).reshape(size, width))


def tuples(rows: TextRows) -> list[tuple[tuple[int, ...], ...]]:
    bounds = rows.store.offsets
    sentences = [tuple(rows.store.input_ids[bounds[i] : bounds[i + 1]].tolist()) for i in range(len(rows.store))]
    return [tuple(sentences[index] for index in row) for row in rows.sentences.tolist()]


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("block", [7, 10_000])
def test_shared_examples_are_those_of_equal_tokens(width, block, monkeypatch):
    monkeypatch.setattr("bertorch.tasks.label_counts.blocks_of.__defaults__", (block,))
    train, dev = random_rows(30 * width, width, 0), random_rows(60 * width, width, 1)
    seen = set(tuples(train))
    expected = sum(row in seen for row in tuples(dev))
    assert 0 < expected < len(dev)
    assert count_shared(train, dev) == expected


def test_hashes_tell_sequences_apart():
    rows = random_rows(3000, 2, 2)
    hashes = [tuple(row) for row in rows.hashes(np.arange(3000)).tolist()]
    distinct = dict(zip(tuples(rows), hashes, strict=True))
    assert len(set(distinct.values())) == len(distinct) > 500
    assert [distinct[row] for row in tuples(rows)] == hashes
    for half in (0, 1):  # each by itself
        assert len({each[half] for each in distinct.values()}) == len(distinct)


# The first evaluation


def classified(gold: list[int], predicted: list[int]) -> ClassificationMetric:
    metric = ClassificationMetric(torch.device("cpu"), NAMES)
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 3).double()
    metric.update(logits, SimpleNamespace(labels=torch.tensor(gold)), np.arange(len(gold)))
    metric.reduce()
    return metric


def test_predictions_of_one_class_are_told():
    (warning,) = classified([0, 1, 2, 0], [1, 1, 1, 1]).warnings()
    assert warning.startswith("all 4 predictions are 'b'; usual causes: a --learning_rate that is too high or too low")
    assert "--class_weights and --logit_adjustment" in warning
    assert "a wrong column of labels" in warning
    assert classified([0, 1, 2, 0], [1, 1, 1, 0]).warnings() == ()
    assert classified([1, 1, 1], [1, 1, 1]).warnings() == ()  # there is nothing else


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (tagging_task(use_crf=False), "all tags are O: no entity is predicted, and there are 2; usual causes: "),
        (tagging_task(use_crf=True), "all tags are O: no entity is predicted, and there are 2; usual causes: "),
        (global_pointer_task(), "no entity is predicted, and there are 2; usual causes: "),
    ],
    ids=["linear", "crf", "global pointer"],
)
def test_a_tagger_without_entities_is_told(task, told):
    metric = SpanMetric(task.span_model, torch.device("cpu"))
    metric.gold, metric.predicted = {(0, 0, 1, 0), (1, 0, 2, 0)}, set()
    (warning,) = metric.warnings()
    assert warning.startswith(told)
    metric.predicted = {(0, 0, 1, 0)}
    assert metric.warnings() == ()
    metric.gold, metric.predicted = set(), set()
    assert metric.warnings() == ()


def test_it_is_told_once_in_a_run(tmp_path, monkeypatch, log_lines):
    """After the first evaluation, and not again when the run goes on."""
    monkeypatch.setattr(ClassificationMetric, "warnings", lambda self: ("all alike",))
    train = classification_data(29)
    stop_after(monkeypatch, 5)
    with pytest.raises(InterruptedRunError):
        fit(config(tmp_path), classification_task(), train, train)
    assert log_lines.count("all alike") == 1
    line = log_lines.index("all alike")
    assert log_lines[line - 1].startswith("eval loss: ")
    monkeypatch.setattr("bertorch.training.interruption.Interruption.requested", lambda self, step: False)
    fit(config(tmp_path, resume=True), classification_task(), train, train)
    assert log_lines.count("all alike") == 1
    assert sum(text.startswith("eval loss: ") for text in log_lines) == 3


def test_the_block_is_told_before_training(tmp_path, log_lines):
    train = classification_data(29)
    fit(config(tmp_path), classification_task(), train, train)
    told = [text.split(":")[0] for text in log_lines]
    assert told.index("train") < told.index("data") < told.index("global step")


# Without dev examples there is nothing to evaluate


@pytest.mark.parametrize(
    ("content", "on_bad_line", "message"),
    [
        ("", "stop", "dev.txt: expected one example a line, got no line"),
        ("\n \n", "skip", "dev.txt: expected one example a line, got no line"),
        ("one column\nx\ty\n", "skip", "dev.txt: expected one example a line, got no good line"),
    ],
)
def test_an_empty_dev_set_is_refused(content, on_bad_line, message, tmp_path, tokenizer):
    (tmp_path / "train.txt").write_text("好\ta\n坏\tb\n")
    (tmp_path / "dev.txt").write_text(content)
    settings = {name: str(tmp_path / f"{name.split('_')[0]}.txt") for name in ("train_data_file", "dev_data_file")}
    options = ClassifierConfig(label_file="l", on_bad_line=on_bad_line, **settings)
    with pytest.raises(UserError, match=message):
        load_examples(options, tokenizer, *ClassificationTask.readers(options, NAMES))


def test_a_share_of_few_examples_is_at_least_one(tmp_path, tokenizer):
    (tmp_path / "train.txt").write_text("好\ta\n坏\tb\n")
    options = ClassifierConfig(label_file="l", train_data_file=str(tmp_path / "train.txt"), dev_ratio=0.01)
    readers = ClassificationTask.readers(options, NAMES)
    train, dev = load_examples(options, tokenizer, *readers)
    assert (len(train), len(dev)) == (1, 1)
    (tmp_path / "train.txt").write_text("好\ta\n")
    with pytest.raises(UserError, match="--dev_ratio 0.01: expected more training examples than it takes, got 1"):
        load_examples(options, tokenizer, *readers)


def test_no_dev_examples_from_python(tmp_path):
    train = classification_data(29)
    with pytest.raises(UserError, match="expected dev examples to evaluate on, got none"):
        fit(config(tmp_path), classification_task(), train, Subset(train, np.zeros(0, np.int64)))
