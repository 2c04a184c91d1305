import json

from bertorch.prepare.duplicates import overlap_report, report_lines, without_duplicates
from bertorch.prepare.examples import Example


def examples(*pairs: str) -> list[Example]:
    """From "text label" each."""
    rows = [pair.split() for pair in pairs]
    return [Example(number, f"{text}\t{label}", (text,), (label,)) for number, (text, label) in enumerate(rows, 1)]


TRAIN = examples("a 0", "b 1", "a 0", "c 1", "b 0", "d 1")
DEV = examples("b 1", "x 0", "d 1", "b 1")
TEST = examples("x 0", "c 0", "y 1")


def test_counts_and_places():
    report = overlap_report({"train": TRAIN, "dev": DEV, "test": TEST})
    assert report["splits"] == {
        "train": {"lines": 6, "repeats": 2, "texts_with_different_labels": 1},
        "dev": {"lines": 4, "repeats": 1, "texts_with_different_labels": 0},
        "test": {"lines": 3, "repeats": 0, "texts_with_different_labels": 0},
    }
    train_dev, train_test, dev_test = json.loads(json.dumps(report))["shared"]
    assert train_dev["lines"] == {"train": 3, "dev": 3}
    assert train_dev["texts_with_different_labels"] == 1
    assert train_dev["items"] == [
        {
            "texts": ["b"],
            "train": [{"line": 2, "labels": ["1"]}, {"line": 5, "labels": ["0"]}],
            "dev": [{"line": 1, "labels": ["1"]}, {"line": 4, "labels": ["1"]}],
        },
        {"texts": ["d"], "train": [{"line": 6, "labels": ["1"]}], "dev": [{"line": 3, "labels": ["1"]}]},
    ]
    assert (train_test["lines"], train_test["texts_with_different_labels"]) == ({"train": 1, "test": 1}, 1)
    assert (dev_test["lines"], dev_test["texts_with_different_labels"]) == ({"dev": 1, "test": 1}, 0)


def test_the_report_in_words():
    assert list(report_lines(overlap_report({"train": TRAIN, "dev": DEV}))) == [
        "train: 6 lines, 2 of them repeat an earlier one; 1 texts with different labels",
        "dev: 4 lines, 1 of them repeat an earlier one; 0 texts with different labels",
        "train and dev: 3 of the 4 lines of dev are also in train (3 lines there); 1 texts with different labels",
    ]


def test_the_first_of_each_text_is_kept_unless_it_is_held_out():
    assert [example.line_number for example in without_duplicates(TRAIN, [])] == [1, 2, 4, 6]
    assert [example.line_number for example in without_duplicates(TRAIN, [DEV])] == [1, 4]
    assert [example.line_number for example in without_duplicates(TRAIN, [DEV, TEST])] == [1]
