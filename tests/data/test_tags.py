import itertools
import re

import numpy as np
import pytest

from bertorch.data.tags import TagSet
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
            offence = tag_set.first_offence(np.array([numbers[tag] for tag in sentence]))
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
        return tag_set.told(ids, tag_set.first_offence(ids))

    assert told("O", "I-PER", "O") == "I-PER after O (token 2)"
    assert told("E-LOC", "O") == "E-LOC at the beginning (token 1)"
    assert told("O", "B-PER") == "B-PER after O at the end (token 2)"
