import json
from functools import partial

import pytest

from bertorch.errors import UserError
from bertorch.prepare.examples import Example
from bertorch.prepare.splits import overlap_report, report_lines, split_examples, without_duplicates


def examples(texts) -> list[Example]:
    return [Example(number, text, (text,), ()) for number, text in enumerate(texts, 1)]


split = partial(split_examples, source="all.txt")
UNIQUE = examples(map(str, range(1000)))


def test_parts_have_their_shares_keep_the_order_and_lose_nothing():
    parts = split(UNIQUE, {"dev": 0.1, "test": 0.2}, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 700, "dev": 100, "test": 200}
    numbers = [[example.line_number for example in part] for part in parts.values()]
    assert all(part == sorted(part) for part in numbers)
    assert sorted(number for part in numbers for number in part) == list(range(1, 1001))


def test_the_seed_draws_the_parts():
    drawn = [split(UNIQUE, {"dev": 0.1, "test": 0.0}, seed=seed) for seed in (1, 1, 2)]
    assert list(drawn[0]) == ["train", "dev"]
    assert drawn[0] == drawn[1] != drawn[2]
    spread = [example.line_number // 100 for example in drawn[0]["dev"]]
    assert len(set(spread)) > 7  # from all over the file


def test_no_text_is_in_two_parts():
    repeated = examples(str(number % 37) for number in range(200))
    parts = split(repeated, {"dev": 0.2, "test": 0.2}, seed=0)
    texts = [{example.texts for example in part} for part in parts.values()]
    assert sum(map(len, texts)) == 37
    assert 40 <= len(parts["dev"]) < 46


def test_no_part_is_empty():
    with pytest.raises(
        UserError, match="all.txt: expected enough different texts for an example in train, got 2 in all"
    ):
        split(examples("ab"), {"dev": 0.4, "test": 0.1}, seed=0)
    with pytest.raises(
        UserError, match="all.txt: expected enough different texts for an example in train, got 1 in all"
    ):
        split(examples("aaaa"), {"test": 0.5, "dev": 0.2}, seed=0)
    with pytest.raises(
        UserError, match="all.txt: expected enough different texts for an example in train, got 2 in all"
    ):
        split(examples("ab"), {"dev": 0.5, "test": 0.5}, seed=0)


def labelled(*pairs: str) -> list[Example]:
    """From "text label" each."""
    rows = [pair.split() for pair in pairs]
    return [Example(number, f"{text}\t{label}", (text,), (label,)) for number, (text, label) in enumerate(rows, 1)]


TRAIN = labelled("a 0", "b 1", "a 0", "c 1", "b 0", "d 1")
DEV = labelled("b 1", "x 0", "d 1", "b 1")
TEST = labelled("x 0", "c 0", "y 1")


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


def by_premise(*rows: str) -> list[Example]:
    """From "premise hypothesis label" each, grouped by the first column."""
    return [
        Example(number, row, tuple(row.split()[:2]), (row.split()[2],), row.split()[0])
        for number, row in enumerate(rows, 1)
    ]


def test_a_group_is_in_one_part_only():
    rows = by_premise(*(f"p{number // 3} h{number} {number % 3}" for number in range(300)))
    parts = split(rows, {"dev": 0.1, "test": 0.2}, seed=1)
    premises = [{example.texts[0] for example in part} for part in parts.values()]
    assert sum(map(len, premises)) == len(set.union(*premises)) == 100
    assert {name: len(part) for name, part in parts.items()} == {"train": 210, "dev": 30, "test": 60}


def test_what_is_held_out_goes_by_group_and_repeats_by_text():
    train = by_premise("p h 0", "p g 1", "p h 0", "q h 1", "q g 0")
    dev = by_premise("q k 2")
    assert [example.line_number for example in without_duplicates(train, [dev])] == [1, 2]
    report = overlap_report({"train": train, "dev": dev})
    assert report["splits"]["train"] == {"lines": 5, "repeats": 1, "texts_with_different_labels": 0}
    assert report["shared"][0]["lines"] == {"train": 2, "dev": 1}
    assert report["shared"][0]["items"][0]["texts"] == ("q",)


@pytest.mark.parametrize("texts", [4, 5])
def test_a_part_with_a_share_has_an_example(texts):
    """Also where the share is less than half of one, as the `--dev_ratio` of the scripts."""
    parts = split([Example(number, "", (str(number),), ()) for number in range(1, texts + 1)], {"dev": 0.1}, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": texts - 1, "dev": 1}
