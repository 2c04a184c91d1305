import numpy as np
import pytest

from bertorch import label_issues
from bertorch.confident_learning import find_label_issues
from bertorch.data.out_of_fold import OutOfFold, write_out_of_fold
from tests.test_confident_learning import noisy

NAMES = ["差", "中", "好"]


def written(path, *, tokens: bool = False, count: int = 240) -> OutOfFold:
    _, labels, probabilities = noisy(count, 3, seed=1)
    texts = [f"text {index}" for index in range(count)]
    numbers = np.arange(count) // 8 + 1 if tokens else np.arange(count) + 1
    rows = OutOfFold(NAMES, numbers, labels, np.arange(count) % 5 + 1, probabilities.round(6), {"text": texts})
    if tokens:
        rows = OutOfFold(NAMES, numbers, labels, rows.folds, rows.probabilities, {"token": texts})
    write_out_of_fold(str(path), rows, overwrite=False)
    return rows


def run(folder, *more: str) -> list[list[str]]:
    output = folder / "issues.tsv"
    label_issues.main([str(folder / "out_of_fold.tsv"), "--output_file", str(output), *more])
    return [line.split("\t") for line in output.read_text().splitlines()]


def test_examples(tmp_path, log_lines):
    rows = written(tmp_path / "out_of_fold.tsv")
    header, *lines = run(tmp_path)
    assert header == ["number", "label", "suggested", "probability", "text"]
    found = np.flatnonzero(find_label_issues(rows.labels, rows.probabilities))
    assert {int(line[0]) for line in lines} == set((found + 1).tolist())
    assert len(lines) == len(found) > 10
    for number, label, suggested, probability, text in lines:
        index = int(number) - 1
        assert label == NAMES[rows.labels[index]] != suggested == NAMES[rows.probabilities[index].argmax()]
        assert float(probability) == pytest.approx(rows.probabilities[index, rows.labels[index]], abs=1e-5)
        assert text == f"text {index}"
    confidence = [float(line[3]) for line in lines]
    assert confidence == sorted(confidence)
    for label, name in enumerate(NAMES):
        told = [line for line in log_lines if line.startswith(f"{name}: ")]
        assert told[0].startswith(f"{name}: {(rows.labels[found] == label).sum()} of {(rows.labels == label).sum()} ")
    assert log_lines[-1] == f"{tmp_path / 'issues.tsv'}: {len(found)} of 240 examples"


def test_sentences(tmp_path, log_lines):
    rows = written(tmp_path / "out_of_fold.tsv", tokens=True)
    header, *lines = run(tmp_path)
    assert header == ["number", "label", "suggested", "probability", "token", "tokens"]
    found = np.flatnonzero(find_label_issues(rows.labels, rows.probabilities))
    assert {int(line[0]) for line in lines} == set(rows.numbers[found].tolist())
    for number, label, _, probability, token, tokens in lines:
        members = [index for index in found if rows.numbers[index] == int(number)]
        worst = min(members, key=lambda index: rows.probabilities[index, rows.labels[index]])
        assert token == f"{worst % 8 + 1} text {worst}"
        assert label == NAMES[rows.labels[worst]]
        assert float(probability) == pytest.approx(rows.probabilities[worst, rows.labels[worst]], abs=1e-5)
        first = (int(number) - 1) * 8
        assert tokens == " ".join(f"text {index}" for index in range(first, first + 8))
    confidence = [float(line[3]) for line in lines]
    assert confidence == sorted(confidence)
    assert log_lines[-1].endswith(f": {len(lines)} of 30 sentences")


def test_mistakes(tmp_path, log_lines):
    written(tmp_path / "out_of_fold.tsv")
    run(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path)
    assert exit_.value.code == 2
    assert "expected no file of this name, got one" in log_lines[-1]
    run(tmp_path, "--overwrite")
    with pytest.raises(SystemExit) as exit_:
        label_issues.main([str(tmp_path / "nowhere"), "--output_file", str(tmp_path / "new")])
    assert exit_.value.code == 2
    assert "nowhere: expected a readable text file, got: No such file" in log_lines[-1]
