"""IOB1 against seqeval, and against spans written as IOB1 in another way."""

import random

import pytest
from seqeval.scheme import IOB1, IOB2, Entities

from bertorch.prepare import iob1


def spans_to_iob1(length, spans):
    """Tags of spans that do not overlap, as CoNLL-2003 writes them."""
    tags = ["O"] * length
    for start, end, type_ in spans:
        tags[start:end] = [f"I-{type_}"] * (end - start)
    for start, _, type_ in spans:
        if any(end == start and other == type_ for _, end, other in spans):
            tags[start] = f"B-{type_}"
    return tags


def random_spans(chance):
    spans, start = [], 0
    while (start := start + chance.choice([0, 0, 1, 2])) < 12:
        end = min(start + chance.choice([1, 1, 2, 3]), 12)
        spans.append((start, end, chance.choice(["PER", "LOC"])))
        start = end
    return spans


def entities(tags, scheme):
    return [(each.start, each.end, each.tag) for each in Entities([tags], scheme).entities[0]]


def test_entities_stay_those_of_seqeval():
    chance = random.Random(1)
    for _ in range(1000):
        spans = random_spans(chance)
        tags = spans_to_iob1(12, spans)
        bio = iob1.to_bio(tags)
        assert entities(tags, IOB1) == entities(bio, IOB2) == spans
        assert iob1.first_violation(tags) is None


def plain_entities(tags):
    """B- begins an entity, and so does I- unless it goes on with the one before."""
    found, open_type = [], None
    for index, (prefix, _, type_) in enumerate(tag.partition("-") for tag in tags):
        if prefix == "I" and open_type == type_:
            found[-1] = (found[-1][0], index + 1, type_)
        elif prefix != "O":
            found.append((index, index + 1, type_))
        open_type = type_ or None
    return found


def test_tags_in_any_order():
    """seqeval's IOB1 drops entities of a B- without need, which we keep, and say so."""
    chance = random.Random(2)
    in_order = 0
    for _ in range(2000):
        tags = chance.choices(["O", "I-PER", "B-PER", "I-LOC", "B-LOC"], k=chance.randrange(1, 8))
        found = entities(iob1.to_bio(tags), IOB2)
        assert found == plain_entities(tags)
        if iob1.first_violation(tags) is None:
            in_order += 1
            assert found == entities(tags, IOB1)
    assert 200 < in_order < 1800


@pytest.mark.parametrize(
    ("tags", "bio", "violation"),
    [
        ("I-PER I-PER O I-PER", "B-PER I-PER O B-PER", None),
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER", None),
        ("I-PER I-LOC B-LOC", "B-PER B-LOC B-LOC", None),
        ("O O", "O O", None),
        ("B-PER I-PER", "B-PER I-PER", 0),
        ("I-LOC B-PER I-PER", "B-LOC B-PER I-PER", 1),
        ("I-A-B I-A", "B-A-B B-A", None),  # a type with a dash
    ],
)
def test_cases(tags, bio, violation):
    assert iob1.to_bio(tags.split()) == bio.split()
    assert iob1.first_violation(tags.split()) == violation


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        (["O I-PER"], True),
        (["I-PER"], True),
        (["I-PER B-PER"], True),
        (["I-PER I-LOC", "O"], True),
        (["O"], False),  # in both
        (["B-PER I-PER O"], False),
        (["B-PER", "O I-PER"], False),  # as many violations of either
        (["B-PER", "O I-PER", "I-LOC"], True),  # a slip
        (["B-PER", "O I-PER", "B-LOC"], False),
        (["B-PER I-LOC"], False),
        (["I-PER", "S-PER"], False),
        (["I-PER E-PER"], False),
    ],
)
def test_evidence(sentences, expected):
    assert iob1.is_iob1(tags.split() for tags in sentences) is expected


def test_random_sentences_in_bio_are_not_taken_for_iob1():
    chance = random.Random(3)
    for _ in range(200):
        found = [spans_to_iob1(12, random_spans(chance)) for _ in range(5)]
        assert iob1.is_iob1(found) is any(tag != "O" for tags in found for tag in tags)
        assert not iob1.is_iob1(map(iob1.to_bio, found))
