"""The rows of a teacher beside the lines of a training file: which they are, and what is refused."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bertorch.config import BatchNegConfig, ClassifierConfig, ContrastiveConfig
from bertorch.data import mapped
from bertorch.data.dataset import Subset
from bertorch.data.load import load_examples
from bertorch.data.prompts import Prompts
from bertorch.data.teacher import TaughtExamples, TeacherRows, TextsDigest
from bertorch.errors import UserError
from bertorch.tasks.contrastive import LOSSES
from bertorch.tasks.in_batch_negatives import sentences_twice
from bertorch.tasks.scored_pairs import scored_pairs
from bertorch.tasks.sentence_bert import labelled_pairs
from bertorch.tasks.sequence_task import reader
from run_sentencebert import SentenceBertConfig
from run_simcse import SimCSEConfig
from tests.conftest import TINY
from tests.small_tasks import classification_data
from tests.teachers import class_teacher, random_rows, vector_teacher

NAMES = ["a", "b", "c"]
PROMPTS = Prompts.of_roles("问：", "")  # of the student; the digest is of the texts without
LABELLED = "".join(f"第{number}条\t{NAMES[number % 3]}\n" for number in range(20))
TEXTS = [f"第{number}条" for number in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def examples_of(config, tokenizer):
    if isinstance(config, ClassifierConfig):
        read = reader(config, label_names=NAMES, num_texts=config.num_texts)
        return load_examples(config, tokenizer, read, read)
    if isinstance(config, SentenceBertConfig):
        read = partial(labelled_pairs, label_names=NAMES)
        return load_examples(config, tokenizer, read, read)
    if isinstance(config, SimCSEConfig):
        return load_examples(config, tokenizer, sentences_twice, scored_pairs)
    read = LOSSES[config.loss].from_config(config).reader(PROMPTS)
    return load_examples(config, tokenizer, read, scored_pairs)


def classifier(folder: Path, content: str = LABELLED, **settings) -> ClassifierConfig:
    train = folder / "train.txt"
    train.write_text(content)
    settings = {"label_file": "-", "teacher": str(folder / "teacher.npy")} | settings
    return ClassifierConfig(train_data_file=str(train), **settings)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("windows", [1, 3])
def test_the_rows_stay_with_their_lines(cached, windows, tokenizer, tmp_path, monkeypatch):
    """Also where some lines are split off to evaluate on, and where the file is large."""
    monkeypatch.setattr(mapped, "SMALL", 0)
    rows = random_rows(20, 3)
    class_teacher(tmp_path / "teacher.npy", rows, NAMES, TEXTS)
    settings = {"cache_dir": str(tmp_path / "cache")} if cached else {}
    train, dev = examples_of(classifier(tmp_path, dev_ratio=0.3, windows=windows, **settings), tokenizer)
    assert (len(train), len(dev)) == (14, 6)
    batch = train.batch(np.array([5, 0, 3]))
    np.testing.assert_array_equal(batch.teacher, rows[train.chosen[[5, 0, 3]]][:, None])
    assert batch.labels.tolist() == [number % 3 for number in train.chosen[[5, 0, 3]]]
    assert batch.twice().teacher.shape == (6, 1, 3)
    assert batch.filled(128).to(torch.device("cpu")).teacher.shape == (3, 1, 3)


# Of each form of lines: the options, the file, its texts, and how many lines and rows of each there are.
CLASSES = {"label_file": "-"}
FORMS = {
    "JSON": (
        *(ClassifierConfig, CLASSES, '{"text": "甲", "label": "a", "id": 3}\n{"label": "b", "text": "乙"}\n'),
        *("甲乙", (2, 1)),
    ),
    "pairs": (
        *(ClassifierConfig, CLASSES | {"is_text_pair": True}, "甲\t乙\ta\r\n丙\t丁\tb\r\n\n"),
        *("甲乙丙丁", (2, 1)),
    ),
    "JSON of pairs": (
        *(SentenceBertConfig, CLASSES | {"is_nli": True}, '{"text_a": "甲", "text_b": "乙", "label": "a"}\n'),
        *("甲乙", (1, 1)),
    ),
    "sentences": (SimCSEConfig, {}, '\ufeff{"x": "甲"}\n乙\n', ['{"x": "甲"}', "乙"], (2, 1)),
    "rows of three": (BatchNegConfig, {}, "甲\t乙\t丙\n丁\t戊\t己\n", "甲乙丙丁戊己", (2, 3)),
    "pairs with scores": (BatchNegConfig, {"loss": "cosent"}, "甲\t乙\t1\n丁\t戊\t0\n", "甲乙丁戊", (2, 2)),
    "JSON of pairs with scores": (
        *(BatchNegConfig, {"loss": "cosine_mse"}),
        '{"text_a": "甲", "text_b": "乙", "score": 1}\n{"text_a": "丁", "text_b": "戊", "score": 0.5}\n',
        *("甲乙丁戊", (2, 2)),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_texts_of_each_form_of_lines(name, tokenizer, tmp_path):
    kind, settings, content, texts, (lines, count) = FORMS[name]
    (tmp_path / "train.txt").write_text(content)
    path = tmp_path / "teacher.npy"
    config = kind(train_data_file=str(tmp_path / "train.txt"), teacher=str(path), **settings)
    rows = random_rows(lines * count, 3).astype(np.float16)
    write = vector_teacher if issubclass(kind, ContrastiveConfig) else partial(class_teacher, names=NAMES)
    write(path, rows, texts=texts)
    train, _ = examples_of(config, tokenizer)
    batch = train.batch(np.arange(lines))
    assert batch.teacher.dtype == torch.float32
    np.testing.assert_array_equal(batch.teacher, rows.reshape(lines, count, 3))
    write(path, rows, texts=[*texts[:-1], "x"])
    with pytest.raises(UserError, match=r"teacher.npy: expected rows of the texts of .*train.txt, in their order, got"):
        examples_of(config, tokenizer)


def test_a_teacher_that_does_not_suit_the_file(tokenizer, tmp_path):
    config = classifier(tmp_path)
    path = Path(config.teacher)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            examples_of(config, tokenizer)

    refused(
        "teacher.npy: expected an array .* in a .npy file; write it with bertorch.predict --logits, for classes, or"
    )
    path.write_text("label\ta\tb\tc\na\t0.1\t0.2\t0.3\n")
    refused("--teacher .*teacher.npy: expected an array .*; got: the magic string is not correct")
    np.save(path, np.zeros(20))
    refused(r"expected an array \(rows, columns\) of numbers .*; got float64 \(20,\)$")
    np.save(path, np.asfortranarray(random_rows(20, 3)))
    refused(r"; got float32 \(20, 3\) column by column$")
    np.save(path, random_rows(20, 3))
    refused("teacher.npy.json: expected the hash of the texts of --teacher .*, got no file; write it with")
    Path(f"{path}.json").write_text(json.dumps({"made_of": {}, "done": 20}))  # of encode before there were teachers
    refused("teacher.npy.json: expected the hash of the texts of --teacher beside it, got KeyError: 'texts'; write")
    class_teacher(path, random_rows(19, 3), NAMES, TEXTS[:19])
    refused(r"expected 20 rows, one for each line of .*train.txt, got 19$")
    class_teacher(path, random_rows(20, 3), NAMES, [*TEXTS[1:], TEXTS[0]])
    refused("expected rows of the texts of .*train.txt, in their order, got those of others; write it again")
    class_teacher(path, random_rows(20, 3), NAMES, TEXTS)
    examples_of(config, tokenizer)


def test_vectors_are_counted_by_text(tokenizer, tmp_path):
    (tmp_path / "train.txt").write_text("甲\t乙\n丙\t丁\n")
    teacher = vector_teacher(tmp_path / "teacher.npy", random_rows(2, 3), "甲丙")
    config = BatchNegConfig(train_data_file=str(tmp_path / "train.txt"), teacher=teacher)
    with pytest.raises(UserError, match=r"expected 4 rows, one for each text of .*train.txt, got 2$"):
        examples_of(config, tokenizer)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["c", "b", "a"],
            "expected logits of the labels a, b, c, in the order of the label file, got .* in another order",
        ),
        (
            ["a", "b"],
            "expected logits of the labels a, b, c, in the order of the label file, got those of a, b; train the",
        ),
        (None, "expected logits of bertorch.predict --logits, got vectors$"),
    ],
)
def test_the_labels_are_those_of_the_student(names, message, tmp_path):
    path = tmp_path / "teacher.npy"
    if names is None:
        vector_teacher(path, random_rows(4, 3))
    else:
        class_teacher(path, random_rows(4, len(names)), names)
    with pytest.raises(UserError, match=message):
        TeacherRows.open(str(path)).require_labels(NAMES)


def test_vectors_are_no_logits(tmp_path):
    class_teacher(tmp_path / "teacher.npy", random_rows(4, 3))
    with pytest.raises(UserError, match="expected vectors of bertorch.encode, got logits of classes$"):
        TeacherRows.open(str(tmp_path / "teacher.npy")).require_labels(())
    class_teacher(tmp_path / "teacher.npy", random_rows(4, 2))
    with pytest.raises(UserError, match="expected 3 columns, a label each, got 2$"):
        TeacherRows.open(str(tmp_path / "teacher.npy")).require_labels(NAMES)


def test_all_else_is_as_without_a_teacher():
    whole = classification_data(9)
    taught = Subset(TaughtExamples(whole, random_rows(9, 3)[:, None]), np.array([8, 2, 5]))
    chosen, numbers = np.array([2, 0]), np.array([5, 8])
    assert (len(taught), taught.label_count(chosen)) == (3, 2)
    assert np.array_equal(taught.lengths, whole.lengths[[8, 2, 5]])
    for name in ("labels_of", "cut", "hashes"):
        assert np.array_equal(getattr(taught, name)(chosen), getattr(whole, name)(numbers))
    ours, theirs = vars(taught.batch(chosen)), vars(whole.batch(numbers))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items() if isinstance(value, torch.Tensor))


def test_the_digest_knows_where_a_text_ends():
    digests = []
    for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"]):
        digest = TextsDigest()
        for text in texts:
            digest.update([text])
        assert digest.count == len(texts)
        digests.append(digest.value)
    assert len(set(digests)) == 4
