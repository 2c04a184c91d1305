"""Lines with entities: as spans and as tags, every error by line and column, and what comes back."""

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from bertorch.data.spans import Span
from bertorch.data.tagged_sentences import TaggedSentences, read_tag_set, read_tagged_sentences
from bertorch.data.tags import SCHEMES, TagSet, tag_entities
from bertorch.errors import UserError
from bertorch.files import to_json
from bertorch.tasks.text_tokens import TextTokens
from tests.conftest import NER, NESTED
from tests.data.hostile_files import attempt, damaged_bytes, write_lines, written

TYPES = ["PER", "LOC", "ORG"]
TAGS = TagSet.of_types(TYPES, "bios", "labels.txt")
GOOD = '{"text": "好", "entities": []}'


def row(source, *entities) -> dict:
    """A line's object, from (start, end, type)."""
    keys = ("start", "end", "type")
    return {"text": source, "entities": [dict(zip(keys, entity, strict=True)) for entity in entities]}


def line(source, *entities, **options) -> str:
    return json.dumps(row(source, *entities), **({"ensure_ascii": False} | options))


@pytest.fixture
def read(tmp_path):
    def read_lines(*lines: str, tags: TagSet = TAGS, **options) -> TaggedSentences:
        path = tmp_path / "file.json"
        path.write_text("\n".join(lines))
        return read_tagged_sentences(str(path), tags, **options)

    return read_lines


def spans_of(sentences: TaggedSentences) -> list[list[list[int]]]:
    assert all(spans.dtype == np.int64 for spans in sentences.spans)
    return [spans.tolist() for spans in sentences.spans]


def error_of(read, text: str, **options) -> str:
    with pytest.raises(UserError) as error:
        read(GOOD, text, **options)
    shown = str(error.value).splitlines()[1]
    return shown[shown.index("file.json:") + len("file.json:") :]


def test_nested_overlapping_and_crossing_entities_as_spans(read):
    sentences = read(
        line("北京大学校长", (0, 6, "PER"), (0, 2, "LOC"), (0, 4, "ORG")),
        line("甲乙丙丁", (1, 4, "LOC"), (0, 2, "PER"), (1, 4, "PER"), (3, 4, "ORG")),
        GOOD,
        as_spans=True,
    )
    assert sentences.tokens == [list("北京大学校长"), list("甲乙丙丁"), ["好"]]
    assert spans_of(sentences) == [
        [[0, 2, 1], [0, 4, 2], [0, 6, 0]],
        [[0, 2, 0], [1, 4, 0], [1, 4, 1], [3, 4, 2]],
        [],
    ]
    assert sentences.spans[2].shape == (0, 3)
    assert len(sentences.tags) == 0


def test_characters_are_code_points_and_white_space_is_no_token(read):
    """Also an emoji of several of them, and escapes of surrogate pairs."""
    text = "a 😀𠮷\u3000👨‍👩‍👧 李\t雷"
    start = text.index("李")
    entities = [(2, 3, "LOC"), (3, 4, "PER"), (start, start + 3, "PER"), (5, 10, "ORG")]
    for options in ({"ensure_ascii": True}, {}):
        sentences = read(line(text, *entities, **options), as_spans=True)
        assert sentences.tokens[0] == [character for character in text if not character.isspace()]
        found = [sentences.tokens[0][first:last] for first, last, _ in sentences.spans[0]]
        assert found == [["😀"], ["𠮷"], list("👨‍👩‍👧"), ["李", "雷"]]


def test_words_when_the_text_is_split_into_words(read):
    text = "Angela Merkel 访问 McDonald's 北京"
    entities = [(0, 13, "PER"), (17, 27, "ORG"), (28, 30, "LOC")]
    sentences = read(line(text, *entities), as_spans=True, split="words")
    assert sentences.tokens[0] == ["Angela", "Merkel", "访", "问", "McDonald", "'", "s", "北", "京"]
    assert spans_of(sentences) == [[[0, 2, 0], [4, 7, 2], [7, 9, 1]]]
    assert error_of(read, line("Angela", (1, 6, "PER")), split="words", as_spans=True).endswith(
        "got PER 1:6 'ngela', which begins within the token 'Angela'"
    )


def test_positions_in_a_list_are_tokens_as_they_are(read):
    tokens = ["New York", " ", "", "NBA"]
    sentences = read(line(tokens, (0, 2, "LOC"), (3, 4, "ORG"), (2, 3, "PER")), as_spans=True)
    assert sentences.tokens == [tokens]
    assert spans_of(sentences) == [[[0, 2, 1], [2, 3, 0], [3, 4, 2]]]


def test_what_predict_writes_can_be_read_back(read):
    entity = {"type": "PER", "start": 0, "end": 2, "text": "李雷", "score": 0.25}
    more = {"tokens": ["李", "雷"], "tags": ["B-PER", "I-PER"], "id": 9}
    assert spans_of(read(json.dumps({"text": "李雷", "entities": [entity], **more}), as_spans=True)) == [[[0, 2, 0]]]


@pytest.mark.parametrize("split", ["characters", "words"])
@pytest.mark.parametrize("as_list", [False, True])
def test_the_spans_that_predict_writes_are_those_that_are_read(read, split, as_list):
    """Random spans of tokens, also nested, in the form of `bertorch.predict`: type, start, end and text."""
    chance = random.Random(f"{split} {as_list}")
    parts = ["李雷", "在 ", "😀", "New York", "B2B", "  ", "𠀀", "!", "\u3000", "\t", "é", "\u200b"]
    lines, expected = [], []
    for _ in range(200):
        source = "".join(chance.choices(parts, k=chance.randint(1, 8))) + "。"
        text = TextTokens.of(source.split() if as_list else source, split)
        spans = set()
        for _ in range(chance.randint(0, 5)):
            start = chance.randrange(len(text))
            spans.add((start, chance.randint(start + 1, len(text)), chance.randrange(len(TYPES))))
        expected.append([list(span) for span in sorted(spans)])
        found = [text.entity(Span(TYPES[type_], start, end, 1.0)) for start, end, type_ in spans]
        entities = [{"type": each.type, "start": each.start, "end": each.end, "text": each.text} for each in found]
        lines.append(to_json({"text": text.source, "entities": entities}))
    sentences = read(*lines, as_spans=True, split=split)
    assert spans_of(sentences) == expected
    assert sentences.is_nested


def test_both_kinds_of_lines_in_one_file(read):
    lines = [
        json.dumps({"text": ["李", "雷", "在"], "label": ["B-PER", "I-PER", "O"]}),
        line("李雷在", (0, 2, "PER")),
        line(["李", "雷", "在"], (0, 2, "PER")),
    ]
    as_spans, as_tags = (read(*lines, as_spans=each) for each in (True, False))
    assert as_spans.tokens == as_tags.tokens == [["李", "雷", "在"]] * 3
    assert spans_of(as_spans) == [[[0, 2, 0]]] * 3
    assert [tags.tolist() for tags in as_tags.tags] == [[1, 2, 0]] * 3
    assert as_tags.spans is None


SINGLE = '{"text": "李雷", "entities": [%s]}'
END = 'expected "end", which is exclusive and above "start", '
WHOLE = "expected entities of whole tokens (--split characters), got PER "
NEITHER = 'expected two lists of strings ({"text": ["我", "们"], "label": ["O", "O"]}) or a text and entities ('


@pytest.mark.parametrize(
    ("text", "expected"),  # § is where the error is
    [
        ('{"text": "好"}', NEITHER),
        ("{}", NEITHER),
        ('{"text": ["a"], "label": ["O"], "entities": []}', NEITHER),
        ('{"entities": []}', 'expected a text or a list of tokens as "text" ('),
        ('{"text": §7, "entities": []}', 'expected a text or a list of tokens as "text" ('),
        ('{"text": §["a", 7], "entities": []}', 'expected a text or a list of tokens as "text" ('),
        ('{"text": §"", "entities": []}', 'expected a text that is not empty as "text" ('),
        ('{"text": §" \\t\\u3000", "entities": []}', 'expected a text that is not empty as "text" ('),
        ('{"text": §[], "entities": []}', "expected at least one token ("),
        ('{"text": §"\\ud83d", "entities": []}', "expected text, got half a surrogate pair in \"text\": '\\ud83d'"),
        (
            '{"text": ["a", §"\\ude00"], "entities": []}',
            "expected text, got half a surrogate pair in token 2: ",
        ),
        ('{"text": "好", "entities": §{}}', 'expected a list of objects as "entities" ('),
        ('{"text": "好", "entities": §null}', 'expected a list of objects as "entities" ('),
        ('{"text": "好", "entities": [], "entities": []}', "expected each key once, got 'entities' again"),
        (SINGLE % "§7", 'expected "start", "end" and "type" ('),
        (SINGLE % "§{}", 'expected "start", "end" and "type" ('),
        (SINGLE % '§[0, 1, "PER"]', 'expected "start", "end" and "type" ('),
        (SINGLE % '§{"start": 0, "end": 1}', 'expected "start", "end" and "type" ('),
        (SINGLE % '{"start": 0, "start": 0, "end": 1, "type": "PER"}', "expected each key once, got 'start' again"),
        (
            SINGLE % '{"start": §true, "end": 1, "type": "PER"}',
            'expected a whole number as "start", got true in ',
        ),
        (SINGLE % '{"start": 0, "end": §1.0, "type": "PER"}', 'expected a whole number as "end", got 1.0 in entity 1'),
        (
            SINGLE % '{"start": 0, "end": §"1", "type": "PER"}',
            "expected a whole number as \"end\", got '1' in entity 1",
        ),
        (
            SINGLE % '{"start": §NaN, "end": 1, "type": "PER"}',
            'expected a whole number as "start", got NaN in ',
        ),
        (
            SINGLE % '{"start": §1e0, "end": 2, "type": "PER"}',
            'expected a whole number as "start", got 1e0 in ',
        ),
        (
            SINGLE % '{"start": §-1, "end": 1, "type": "PER"}',
            'expected "start" from 0 to 1 in a text of 2 characters, got -1 in entity 1',
        ),
        (
            SINGLE % '{"start": §2, "end": 3, "type": "PER"}',
            'expected "start" from 0 to 1 in a text of 2 characters, got 2 in entity 1',
        ),
        (
            SINGLE % '{"start": 0, "end": §0, "type": "PER"}',
            f"{END}from 1 to 2 in a text of 2 characters, got 0 in entity 1",
        ),
        (SINGLE % '{"start": 1, "end": §1, "type": "PER"}', f"{END}of 2 in a text of 2 characters, got 1 in entity 1"),
        (
            SINGLE % '{"start": 0, "end": §3, "type": "PER"}',
            f"{END}from 1 to 2 in a text of 2 characters, got 3 in entity 1",
        ),
        (
            '{"text": ["李雷"], "entities": [{"start": 0, "end": §2, "type": "PER"}]}',
            f"{END}of 1 in a text of 1 tokens, got 2 in entity 1",
        ),
        (
            SINGLE % '{"start": 0, "end": 1, "type": §3}',
            'expected a text that is not blank as "type", got 3 in entity 1',
        ),
        (
            SINGLE % '{"start": 0, "end": 1, "type": §null}',
            'expected a text that is not blank as "type", got null in entity 1',
        ),
        (
            SINGLE % '{"start": 0, "end": 1, "type": "PER"}, {"start": 0, "end": 1, "type": §"per"}',
            "expected one of the types (PER, LOC, ORG), got 'per' in entity 2",
        ),
        (
            SINGLE % '{"start": 0, "end": 1, "type": §"\\ud800"}',
            "expected a text that is not blank as \"type\", got '\\ud800' in entity 1",
        ),
        (
            SINGLE % '{"start": 0, "end": 1, "type": §" "}',
            "expected a text that is not blank as \"type\", got ' ' in entity 1",
        ),
        (
            SINGLE % '{"type": "LOC", "start": 0, "end": 2}, §{"end": 2, "type": "LOC", "start": 0}',
            "expected each entity once, got LOC 0:2 '李雷' again, entities 1 and 2",
        ),
        (
            SINGLE % '{"start": 0, "end": 1, "type": "PER", "text": §"雷"}',
            "expected the text that stands from 0 to 1, '李', got '雷' in entity 1",
        ),
        (
            '{"text": "李 雷", "entities": [{"start": 0, "end": §2, "type": "PER"}]}',
            f"{WHOLE}0:2 '李 ', which ends with white space",
        ),
        (
            '{"text": "李 雷", "entities": [{"start": §1, "end": 3, "type": "PER"}]}',
            f"{WHOLE}1:3 ' 雷', which begins with white space",
        ),
    ],
)
@pytest.mark.parametrize("as_spans", [False, True])
def test_malformed_lines(read, text, expected, as_spans):
    where = f"2:{text.index('§') + 1}: " if "§" in text else "2: "
    text = text.replace("§", "")
    assert error_of(read, text, as_spans=as_spans).startswith(where + expected)
    assert len(read(GOOD, text, as_spans=as_spans, on_bad_line="skip")) == 1


@pytest.mark.parametrize("digits", ["1" + "0" * 18, "9" * 5000, "-" + "9" * 5000])
def test_a_number_of_any_length_is_out_of_range(read, digits):
    text = SINGLE % f'{{"start": 0, "end": {digits}, "type": "PER"}}'
    found = error_of(read, text)
    assert found.startswith(
        f"2:{text.index(digits) + 1}: {END}from 1 to 2 in a text of 2 characters, got {digits[:19]}"
    )
    assert len(found) < 250
    assert spans_of(read(f'{{"id": {digits}, "text": "好", "entities": []}}', as_spans=True)) == [[]]


def test_the_column_is_that_of_the_entity_itself(read):
    """Whatever has the same name before it or inside it, and however the key is written."""
    start = '{"meta": {"entities": [{"start": 5}]}, "text": "\\"start\\": [", "ent\\u0069ties" :  ['
    good, more = '{"x": {"start": [9]}, "start": 0, "end": 2, "type": "PER"} ,', '{"x": [{"start": 1}], "st\\u0061rt":'
    text = f'{start}{good}{more} 77, "end": 78, "type": "PER"}}]}}'
    assert error_of(read, text).startswith(f'2:{text.index("77") + 1}: expected "start" from 0 to 9 in a text of 10')


@pytest.mark.parametrize(
    ("entities", "second", "one", "other"),
    [
        ([(0, 4, "ORG"), (0, 2, "LOC")], 0, "LOC 0:2 '北京'", "ORG 0:4 '北京大学'"),
        ([(0, 2, "LOC"), (0, 4, "ORG")], 1, "LOC 0:2 '北京'", "ORG 0:4 '北京大学'"),
        ([(0, 2, "LOC"), (1, 3, "ORG")], 1, "LOC 0:2 '北京'", "ORG 1:3 '京大'"),
        ([(0, 2, "ORG"), (0, 2, "LOC")], 0, "LOC 0:2 '北京'", "ORG 0:2 '北京'"),
    ],
)
def test_overlapping_entities_are_no_tags(read, entities, second, one, other):
    """The error shows two of them, and stands at the one that comes second in the text."""
    text = line("北京大学", *entities)
    column = [match.start() + 1 for match in re.finditer(re.escape('{"start"'), text)][second]
    expected = f"expected entities that do not overlap, as tags cannot spell others, got {one} and {other}"
    assert error_of(read, text) == f"2:{column}: {expected}; --head global_pointer finds overlapping entities"
    assert len(read(GOOD, text, on_bad_line="skip")) == 1
    assert len(read(GOOD, text, as_spans=True)) == 2


def test_entities_side_by_side_are_tags(read):
    assert [TAGS.tags[tag] for tag in read(line("甲乙丙", (1, 3, "PER"), (0, 1, "PER"))).tags[0]] == [
        "S-PER",
        "B-PER",
        "I-PER",
    ]


@pytest.mark.parametrize(
    ("names", "scheme", "length", "needed"),
    [
        (["O", "B-PER"], "bios", 2, "B-PER, I-PER"),
        (["O", "B-PER", "I-PER"], "bios", 1, None),
        (["O", "I-PER", "S-PER"], "bios", 1, None),
        (["O", "I-PER", "S-PER"], "bios", 2, "B-PER, I-PER"),
        (["O", "B-PER", "I-PER"], "bioes", 1, "S-PER"),
        (["O", "B-PER", "I-PER", "S-PER"], "bioes", 3, "B-PER, I-PER, E-PER"),
        (["O", "B-PER", "E-PER"], "bioes", 2, None),
        (["O", "B-PER", "E-PER"], "bioes", 5, "B-PER, I-PER, E-PER"),
        (["O", "B-PER", "M-PER", "E-PER"], "bioes", 5, None),
    ],
)
def test_tags_that_cannot_spell_an_entity(read, names, scheme, length, needed):
    """Never tags that mean something else."""
    tags = TagSet(names, scheme, "labels.txt")
    text = line("甲乙丙丁戊己", (1, 1 + length, "PER"))
    if needed is None:
        spelled = read(text, tags=tags).tags[0]
        assert read_spans_of_tags(tags, spelled) == [[1, 1 + length, 0]]
    else:
        expected = (
            f"2:{text.index('{', 1) + 1}: expected a label file with the tags that spell every entity, here {needed}"
        )
        assert error_of(read, text, tags=tags).startswith(f"{expected}, got others for PER 1:")
    assert spans_of(read(text, tags=tags, as_spans=True)) == [[[1, 1 + length, 0]]]


def read_spans_of_tags(tags: TagSet, ids: np.ndarray) -> list[list[int]]:
    """By seqeval's rules, as (start, end, type)."""
    names = [tags.tags[tag].replace("M-", "I-") for tag in ids]
    if tags.scheme_name == "bioes":
        (entities,) = Entities([names], IOBES).entities
        return [[each.start, each.end, tags.types.index(each.tag)] for each in entities]
    names = [name.replace("S-", "B-") for name in names]
    return [[start, end + 1, tags.types.index(type_)] for type_, start, end in get_entities(names)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("block", [1, 3, 1024])
def test_tag_lines_as_spans_are_the_entities_of_seqeval(read, scheme, block, monkeypatch, log_lines):
    """On sentences in any disorder, among lines with entities, many at once."""
    monkeypatch.setattr("bertorch.data.spans._BLOCK", block)
    tags = TagSet.of_types(["PER", "LOC"], scheme, "labels.txt")
    generator = np.random.default_rng(0)
    sentences = [
        [tags.tags[tag] for tag in generator.integers(0, len(tags), size)] for size in generator.integers(1, 9, 200)
    ]
    as_bio = [[tag.replace("S-", "B-") for tag in sentence] if scheme == "bios" else sentence for sentence in sentences]
    expected = [
        [[each.start, each.end, tags.types.index(each.tag)] for each in entities]
        for entities in Entities(as_bio, IOBES if scheme == "bioes" else IOB2).entities
    ]
    lines, wanted = [], []
    for index, (sentence, entities) in enumerate(zip(sentences, expected, strict=True)):
        lines.append(json.dumps({"text": ["x"] * len(sentence), "label": sentence}))
        wanted.append(entities)
        if index % 3 == 0:
            lines.append(line("甲乙丙", (0, 3, "LOC"), (1, 2, "PER")))
            wanted.append([[0, 3, 1], [1, 2, 0]])
    found = read(*lines, tags=tags, as_spans=True)
    assert spans_of(found) == wanted
    assert any(expected)
    violations = [line for line in log_lines if "out of the scheme's order" in line]
    assert len(violations) == 1
    log_lines.clear()
    as_tags = read(*[each for each in lines if '"label"' in each], tags=tags)
    assert len(as_tags) == 200
    counts = [re.search(r"order: (\d+);", warning)[1] for warning in (violations[0], log_lines[-1])]
    assert counts[0] == counts[1]


def test_strict_refuses_tags_out_of_order_among_spans_too(read):
    text = json.dumps({"text": ["a", "b"], "label": ["O", "I-PER"]})
    where, out_of_order = text.index('"I-PER"') + 1, "expected tags in the order of the scheme, got I-PER after O"
    found = error_of(read, text, as_spans=True, strict=True)
    assert found == f"2:{where}: {out_of_order} at the end (token 2)"


flat = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(TYPES)), min_size=1, max_size=5)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(layout=flat, as_list=st.booleans())
def test_flat_entities_become_tags_and_come_back(scheme, layout, as_list, scratch):
    """The layout has for each entity the tokens before it, its own, its type; tags from a table of their own."""
    tags = TagSet.of_types(TYPES, scheme, "labels.txt")
    entities, length = [], 0
    for gap, size, type_ in layout:
        entities.append((length + gap, length + gap + size, type_))
        length += gap + size
    source = ["x"] * length if as_list else "x" * length
    scratch.write_text(line(source, *reversed(entities)))
    ids = read_tagged_sentences(str(scratch), tags).tags[0]
    assert [tags.tags[tag] for tag in ids] == tag_entities(length, entities, scheme)
    expected = [[start, end, TYPES.index(type_)] for start, end, type_ in entities]
    scratch.write_text(json.dumps({"text": ["x"] * length, "label": [tags.tags[tag] for tag in ids]}))
    assert spans_of(read_tagged_sentences(str(scratch), tags, as_spans=True)) == [expected]


@st.composite
def any_entities(draw):
    text = draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip))
    tokens = [index for index, character in enumerate(text) if not character.isspace()]
    ends = st.tuples(st.sampled_from(tokens), st.sampled_from(tokens), st.sampled_from(TYPES))
    found = draw(st.lists(ends.map(lambda each: (min(each[:2]), max(each[:2]) + 1, each[2])), max_size=6, unique=True))
    return text, found


@given(rows=st.lists(any_entities(), min_size=1, max_size=4), ascii_only=st.booleans(), form=written)
def test_any_entities_of_any_text_come_back(rows, ascii_only, form, scratch):
    write_lines(scratch, [line(text, *entities, ensure_ascii=ascii_only) for text, entities in rows], form)
    found = read_tagged_sentences(str(scratch), TAGS, as_spans=True)
    for (text, entities), tokens, spans in zip(rows, found.tokens, found.spans, strict=True):
        assert tokens == [character for character in text if not character.isspace()]
        before = [len("".join(text[:index].split())) for index in range(len(text) + 1)]  # tokens before each character
        assert sorted((before[start], before[end], TYPES.index(type_)) for start, end, type_ in entities) == [
            tuple(span) for span in spans.tolist()
        ]
    overlaps = [
        one != other and max(one[0], other[0]) < min(one[1], other[1])
        for _, entities in rows
        for one in entities
        for other in entities
    ]
    assert found.is_nested == any(overlaps)
    as_tags = attempt(lambda path: read_tagged_sentences(path, TAGS), str(scratch))
    assert isinstance(as_tags, str) == any(overlaps)
    assert not isinstance(as_tags, str) or "do not overlap" in as_tags


PIECES = damaged_bytes(
    *[piece.encode() for piece in ("{", "}", "[", "]", '"', ",", ":", "1e9", "-1", "true", "\\ud800", '"text": "ab"')],
    *[b'"entities": [', b'{"start": 0, "end": 1, "type": "PER"}', b'"start": ', b'"end": ', b'"type": "LOC"', b"7"],
    GOOD.encode(),
    line("ab", (0, 2, "PER")).encode(),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["PER", "Z", "\ud800", 0, 1, 2]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["start", "end", "type"]), inner),
    max_leaves=8,
)
OBJECTS = st.fixed_dictionaries({}, optional={"text": VALUES | st.just("ab"), "entities": VALUES, "label": VALUES})


@given(content=PIECES | st.lists(OBJECTS.map(json.dumps).map(str.encode)).map(b"\n".join), as_spans=st.booleans())
def test_it_gives_sentences_or_a_user_error(content, as_spans, scratch):
    scratch.write_bytes(content)
    found = attempt(lambda path: read_tagged_sentences(path, TAGS, as_spans=as_spans), str(scratch))
    assert len(found) > 0
    assert not isinstance(found, str) or found.startswith(f"{scratch}: ")


def label_file(tmp_path, *names: str) -> str:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(names))
    return str(path)


@pytest.mark.parametrize(
    ("scheme", "letters"), [("bio", "BI"), ("bios", "BIS"), ("bioes", "BIES")], ids=["bio", "bios", "bioes"]
)
def test_a_label_file_of_types_has_the_tags_of_the_scheme(tmp_path, scheme, letters):
    tags = read_tag_set(label_file(tmp_path, "PER", "地名", "a-b", "Job Title"), scheme)
    assert tags.types == ["PER", "地名", "a-b", "Job Title"]
    assert tags.tags == ["O", *(f"{letter}-{type_}" for type_ in tags.types for letter in letters)]
    assert tags.scheme_name == scheme
    again = TagSet(tags.tags, scheme, "labels.txt")  # as a saved folder has it
    assert again.types == tags.types


def test_a_label_file_of_one_type_is_enough(tmp_path):
    assert read_tag_set(label_file(tmp_path, "PER"), "bio").tags == ["O", "B-PER", "I-PER"]


def test_a_label_file_of_tags_is_what_it_was(tmp_path):
    names = (NER / "labels.txt").read_text().split()
    assert read_tag_set(str(NER / "labels.txt"), "bios").tags == names
    assert read_tag_set(label_file(tmp_path, "I-PER", "B-PER", "O"), "bio").types == ["PER"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["O"], "labels.txt: expected at least two labels, one a line, got only 'O'"),
        (
            ["B-PER", "I-PER"],
            "expected the tag O among the labels, got none; a file of types alone has no line such as",
        ),
        (
            ["PER", "B-LOC"],
            "labels.txt:1: expected a tag of --tag bios .*, got 'PER'; .*; 'B-LOC' among them says that all are tags",
        ),
        (["O", "PER"], "labels.txt:2: expected a tag of --tag bios .*, got 'PER'"),
        (["PER", "PER"], "labels.txt:2: expected each label once, got 'PER' again"),
        ([""], "labels.txt: expected one example a line, got no line"),
    ],
)
def test_a_label_file_that_is_neither(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        read_tag_set(label_file(tmp_path, *names), "bios")


def test_the_nested_sample():
    """What it is said to be, counted without the reader."""
    tags = read_tag_set(str(NESTED / "labels.txt"), "bios")
    texts = set()
    for part, least in (("train", 120), ("dev", 40)):
        rows = [json.loads(text) for text in (NESTED / f"{part}.json").read_text().splitlines()]
        found = read_tagged_sentences(str(NESTED / f"{part}.json"), tags, as_spans=True)
        assert len(found) == len(rows) >= least
        assert found.is_nested
        assert [len(spans) for spans in found.spans] == [len(each["entities"]) for each in rows]
        types = {entity["type"] for each in rows for entity in each["entities"]}
        assert types == set(tags.types)
        assert any(not each["entities"] for each in rows)
        assert any(entity["end"] - entity["start"] == 1 for each in rows for entity in each["entities"])
        assert not texts & {each["text"] for each in rows}
        texts |= {each["text"] for each in rows}
    with pytest.raises(UserError, match="malformed lines: 121.*the first 10"):
        read_tagged_sentences(str(NESTED / "train.json"), tags)
