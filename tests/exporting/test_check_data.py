"""What an export is checked on."""

import json
import shutil

import numpy as np
import pytest

from bertorch.data.fingerprint import content_digest
from bertorch.errors import UserError
from bertorch.exporting.check_data import BUILT_IN, check_data, longest_examples, varied_texts
from bertorch.training.drawn_examples import DRAWN
from bertorch.training.run_folder import DATA_FILES, RECORD
from tests.conftest import NER, REVIEWS, SENTENCES, STS
from tests.exports import small_task


@pytest.fixture(scope="module")
def classifier():
    return small_task("classification")


def remember(folder, option, path, **others) -> None:
    """The record of a run."""
    options = {f"content of {option}": content_digest(str(path)), "--on_bad_line": "stop"}
    (folder / RECORD).write_text(json.dumps({"options": options, DATA_FILES: {option: str(path)}} | others))


def test_texts_of_all_lengths():
    texts = varied_texts(128, 512)
    assert texts == varied_texts(128, 512)
    assert len(texts) == 128
    lengths = [len(text) for text in texts]
    assert min(lengths) == 1
    assert max(lengths) == 5 * 512
    assert len(set(lengths)) > 40
    assert all(text.strip() for text in texts)


def test_tokens_from_the_fewest_to_what_the_model_takes(classifier):
    examples = longest_examples(classifier)
    assert examples.lengths.min() == 3  # a token, [CLS] and [SEP]
    assert examples.lengths.max() == classifier.model.encoder.max_length == 512
    assert classifier.max_seq_length == 32


def test_without_a_record_the_texts_are_built_in(classifier, tmp_path):
    data = check_data(classifier, str(tmp_path), None)
    assert (data.name, data.examples, len(data.inputs)) == (BUILT_IN, None, 256)


def test_the_dev_file_of_the_run(classifier, tmp_path):
    remember(tmp_path, "--dev_data_file", REVIEWS / "dev.txt")
    data = check_data(classifier, str(tmp_path), None)
    assert data.name == "dev.txt"
    assert len(data.examples) == len((REVIEWS / "dev.txt").read_text().splitlines())


def test_a_dev_file_that_has_changed_is_not_taken(classifier, tmp_path, log_lines):
    dev = tmp_path / "dev.txt"
    shutil.copy(REVIEWS / "dev.txt", dev)
    remember(tmp_path, "--dev_data_file", dev)
    dev.write_text("好\tpositive\n")
    assert check_data(classifier, str(tmp_path), None).name == BUILT_IN
    assert any("is gone or has another content than in the run" in line for line in log_lines)


def test_the_examples_that_dev_ratio_drew(classifier, tmp_path):
    remember(tmp_path, "--train_data_file", REVIEWS / "train.txt")
    (tmp_path / DRAWN).write_text(json.dumps({"examples": [2, 7, 30]}))
    data = check_data(classifier, str(tmp_path), None)
    _, all_of_them = classifier.read_labelled(str(REVIEWS / "train.txt"), "stop")
    assert data.name == "train.txt, the 3 examples of --dev_ratio"
    found, expected = data.examples.batch(np.arange(3)), all_of_them.batch(np.array([1, 6, 29]))
    assert found.input_ids.tolist() == expected.input_ids.tolist()


def test_a_run_of_an_earlier_version_does_not_say_where_its_file_was(classifier, tmp_path):
    remember(tmp_path, "--dev_data_file", REVIEWS / "dev.txt", **{DATA_FILES: {}})
    assert check_data(classifier, str(tmp_path), None).name == BUILT_IN


@pytest.mark.parametrize(
    ("kind", "labelled", "bare"),
    [
        ("classification", REVIEWS / "dev.txt", "好\n不好\n一般\n"),
        ("embedding", STS, "".join(SENTENCES.read_text().splitlines(keepends=True)[:3])),
        ("CRF", NER / "dev.json", "他在北京。\n她在上海。\n他\n"),
    ],
)
def test_a_file_that_is_named(kind, labelled, bare, tmp_path, log_lines):
    task = small_task(kind)
    if kind == "CRF":  # with its own tags
        lines = [{"text": ["他", "在", "京"], "label": ["O", "O", "B-LOC"]}] * 2
        labelled = tmp_path / "labelled.json"
        labelled.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert check_data(task, str(tmp_path), str(labelled)).examples is not None
    path = tmp_path / "bare.txt"
    path.write_text(bare)
    data = check_data(task, str(tmp_path), str(path))
    assert (data.examples, len(data.inputs)) == (None, 3)
    assert f"{path}: is read as inputs without labels" in log_lines
    assert not any("malformed" in line for line in log_lines)


def test_a_file_that_is_neither_gives_the_error_of_labelled_ones(classifier, tmp_path):
    path = tmp_path / "wrong.txt"
    path.write_text("好\tpositive\n差\tbad\n")
    with pytest.raises(UserError, match="wrong.txt:2"):
        check_data(classifier, str(tmp_path), str(path))


def test_one_wrong_line_does_not_make_a_labelled_file_one_without_labels(tmp_path):
    """Of a tagger, whose inputs may have labels, which are then left out."""
    lines = [{"text": ["他", "在", "京"], "label": ["O", "O", "B-LOC"]}] * 3
    lines[1] = lines[1] | {"label": ["O", "O"]}
    path = tmp_path / "labelled.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="labelled.json:2"):
        check_data(small_task("CRF"), str(tmp_path), str(path))


def test_one_input_is_too_few(classifier, tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("好\n")
    with pytest.raises(UserError, match="one.txt: expected two inputs or more to compare, got 1"):
        check_data(classifier, str(tmp_path), str(path))
