from functools import partial

import pytest

from bertorch.errors import UserError
from bertorch.prepare.examples import Example
from bertorch.prepare.splitting import split_examples


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
        UserError, match="all.txt: expected enough different texts for an example in test, got 3 in all"
    ):
        split(examples("abc"), {"dev": 0.4, "test": 0.1}, seed=0)
    with pytest.raises(
        UserError, match="all.txt: expected enough different texts for an example in train, got 1 in all"
    ):
        split(examples("aaaa"), {"test": 0.5, "dev": 0.2}, seed=0)
    with pytest.raises(
        UserError, match="all.txt: expected enough different texts for an example in train, got 2 in all"
    ):
        split(examples("ab"), {"dev": 0.5, "test": 0.5}, seed=0)
