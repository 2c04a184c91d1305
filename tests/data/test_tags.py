import itertools
import re

import numpy as np
import pytest

from bertorch.data.tags import TagSet, convert_tags, is_tag, scheme_of, tag_entities
from bertorch.errors import UserError

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
BIOS = [*BIO, "S-PER", "S-LOC"]
BIOES = [*BIOS, "E-PER", "E-LOC"]
BMES = ["O", "B-PER", "M-PER", "E-PER", "S-PER", "B-LOC", "M-LOC", "E-LOC", "S-LOC"]


def is_regular(tags: tuple[str, ...], scheme: str) -> bool:
    """Whether a sentence is in order, by a regular expression over its tags."""
    entity = {
        "bio": "B-{0} (I-{0} )*",
        "bios": "(B-{0} (I-{0} )+|S-{0} )",
        "bioes": "(B-{0} ([IM]-{0} )*E-{0} |S-{0} )",
    }[scheme]
    return bool(
        re.fullmatch(f"(O |{entity.format('PER')}|{entity.format('LOC')})*", "".join(f"{tag} " for tag in tags))
    )


@pytest.mark.parametrize(("scheme", "tags"), [("bio", BIO), ("bios", BIOS), ("bioes", BIOES), ("bioes", BMES)])
def test_what_is_in_order_is_what_the_scheme_spells(scheme, tags):
    """All sentences of up to four tags."""
    tag_set = TagSet(tags, scheme, "labels.txt")
    numbers = {tag: number for number, tag in enumerate(tags)}
    regular = 0
    for length in (1, 2, 3, 4):
        for sentence in itertools.product(tags, repeat=length):
            offence = tag_set.first_violation(np.array([numbers[tag] for tag in sentence]))
            assert (offence is None) == is_regular(sentence, scheme), sentence
            regular += offence is None
            if offence is not None:  # what stands before it is the beginning of something regular
                completions = itertools.product(["", *tags], repeat=2)
                before = sentence[:offence]
                assert any(is_regular((*before, *filter(None, rest)), scheme) for rest in completions), sentence
    assert regular > 100


def test_a_type_without_single_tags_has_entities_of_one_token_as_b():
    """Such as data in bio under `--tag bios`, or a type of which no single was ever tagged."""
    tag_set = TagSet(["O", "B-PER", "I-PER", "S-PER", "B-LOC", "I-LOC"], "bios", "labels.txt")
    assert tag_set.may_end.tolist() == [True, False, True, True, True, True]
    assert tag_set.may_follow[4].tolist() == [True, True, False, True, True, True]
    assert tag_set.may_follow[1].tolist() == [False, False, True, False, False, False]


def test_bioes_never_has_entities_of_one_token_as_b():
    """seqeval does not find them either."""
    tag_set = TagSet(["O", "B-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC"], "bioes", "labels.txt")
    assert tag_set.may_end.tolist() == [True, False, True, True, False, False, True]
    assert tag_set.may_follow[4].tolist() == [False, False, False, False, False, True, True]
    assert tag_set.first_violation(np.array([4, 0])) == 1


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        (BIO, "bio", "B-PER O B-LOC I-LOC I-LOC"),
        (BIOS, "bios", "S-PER O B-LOC I-LOC I-LOC"),
        (["O", "B-PER", "I-PER", "S-LOC"], "bios", "B-PER O B-LOC I-LOC I-LOC"),
        (BIOES, "bioes", "S-PER O B-LOC I-LOC E-LOC"),
        (BMES, "bioes", "S-PER O B-LOC M-LOC E-LOC"),
        ([*BMES, "I-LOC"], "bioes", "S-PER O B-LOC I-LOC E-LOC"),
        (["O", "B-PER", "I-PER", "E-PER", "S-LOC"], "bioes", "S-PER O B-LOC I-LOC E-LOC"),  # not of the set
        (["O", "B-PER", "I-PER", "E-PER", "B-LOC"], "bioes", "S-PER O B-LOC I-LOC E-LOC"),
    ],
)
def test_entities_are_spelled_as_the_scheme_reads_them(tags, scheme, expected):
    extents = [(2, 5, "LOC"), (0, 1, "PER")]
    assert TagSet(tags, scheme, "labels.txt").encode(extents, 5) == expected.split()


def test_types_in_the_order_in_which_they_come():
    tag_set = TagSet(["O", "B-PER.NAM", "I-PER.NAM", "B-a-b", "S-PER.NAM"], "bios", "labels.txt")
    assert tag_set.types == ["PER.NAM", "a-b"]
    assert tag_set.type_ids.tolist() == [-1, 0, 0, 1, 0]
    assert len(tag_set) == 5


@pytest.mark.parametrize(
    ("tags", "scheme", "message"),
    [
        (BIOS, "bio", r"labels.txt:6: expected a tag of --tag bio \(O, B-…, I-…\), got 'S-PER'; the schemes are"),
        (BMES, "bios", "labels.txt:3: expected a tag of --tag bios .*, got 'M-PER'"),
        (["O", "PER"], "bio", "labels.txt:2: .* got 'PER'"),
        (["O", "B-"], "bio", "labels.txt:2: .* got 'B-'"),
        (["B-PER", "I-PER"], "bio", "labels.txt: expected the tag O among the labels"),
    ],
)
def test_a_label_file_of_another_scheme(tags, scheme, message):
    with pytest.raises(UserError, match=message):
        TagSet(tags, scheme, "labels.txt")


def test_how_an_offence_is_told():
    tag_set = TagSet(BIOES, "bioes", "labels.txt")
    numbers = {tag: number for number, tag in enumerate(BIOES)}

    def told(*tags: str) -> str:
        ids = np.array([numbers[tag] for tag in tags])
        return tag_set.describe(ids, tag_set.first_violation(ids))

    assert told("O", "I-PER", "O") == "I-PER after O (token 2)"
    assert told("E-LOC", "O") == "E-LOC at the beginning (token 1)"
    assert told("O", "B-PER") == "B-PER after O at the end (token 2)"


SPELLED = {  # an entity of one, of two, of three tokens
    "bio": ["B", "BI", "BII"],
    "bios": ["S", "BI", "BII"],
    "bioes": ["S", "BE", "BIE"],
    "bmes": ["S", "BE", "BME"],
}


def sentences(length: int):
    """All ways to divide tokens into O and entities of two types of up to three tokens: lists of (tokens, type)."""
    if length == 0:
        yield []
    for size in range(1, min(length, 3) + 1):
        for rest in sentences(length - size):
            for type_ in ("PER", "LOC", "O") if size == 1 else ("PER", "LOC"):
                yield [(size, type_), *rest]


def spelled(parts, scheme: str) -> list[str]:
    return [
        "O" if type_ == "O" else f"{letter}-{type_}" for size, type_ in parts for letter in SPELLED[scheme][size - 1]
    ]


@pytest.mark.parametrize("source", SPELLED)
@pytest.mark.parametrize("target", SPELLED)
def test_another_scheme_has_the_same_entities(source, target):
    """All sentences of up to five tokens, spelled from a table."""
    singles = () if source == "bio" else ("PER", "LOC")
    for length in range(1, 6):
        for parts in sentences(length):
            converted = convert_tags(spelled(parts, source), "bioes" if source == "bmes" else source, target, singles)
            assert converted == spelled(parts, target), parts


@pytest.mark.parametrize("target", SPELLED)
def test_tags_from_entities(target):
    for parts in sentences(5):
        places = list(itertools.accumulate((size for size, _ in parts), initial=0))
        entities = [(start, start + size, type_) for start, (size, type_) in zip(places, parts, strict=False)]
        entities = [entity for entity in entities if entity[2] != "O"]
        assert tag_entities(5, reversed(entities), target) == spelled(parts, target)


@pytest.mark.parametrize(
    ("tags", "source", "target", "expected"),
    [
        ("O E-PER M-PER O", "bioes", "bios", "O I-PER I-PER O"),
        ("B-PER O B-PER E-LOC", "bioes", "bios", "B-PER O B-PER I-LOC"),
        ("I-PER I-PER O", "bio", "bmes", "M-PER E-PER O"),
        ("B-LOC B-PER", "bios", "bioes", "S-LOC B-PER"),  # of LOC no single was ever tagged
        ("B-PER.NAM I-PER.NOM", "bios", "bioes", "S-PER.NAM E-PER.NOM"),
        ("B-LOC O B-LOC E-LOC", "bioes", "bmes", "B-LOC O B-LOC E-LOC"),  # of PER some were: the first is out of order
    ],
)
def test_tags_out_of_order_keep_their_places(tags, source, target, expected):
    assert convert_tags(tags.split(), source, target, {"PER"}) == expected.split()


def test_entities_of_one_token_in_bioes_without_single_tags():
    assert convert_tags(["B-LOC", "O", "B-PER", "E-PER"], "bioes", "bmes", ()) == ["S-LOC", "O", "B-PER", "E-PER"]


def test_the_scheme_of_tags():
    assert scheme_of(["O"]) == scheme_of(BIO) == "bio"
    assert scheme_of(BIOS) == "bios"
    assert scheme_of(BIOES) == scheme_of(BMES) == scheme_of(["O", "B-EVE", "M-EVE"]) == "bioes"
    assert scheme_of(["B-EVENT.S", "I-MES"]) == "bio"  # only what stands before the dash counts


def test_what_is_a_tag():
    assert all(map(is_tag, ["O", "B-PER", "M-a-b", "S-PER.NAM", "E-人名"]))
    assert not any(
        map(is_tag, ["", "o", "O-PER", "B", "B-", "PER", "X-PER", "b-PER", "B-A B", "B-\ud800", "B-A\n", "OO"])
    )
