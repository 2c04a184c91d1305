import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.errors import UserError
from bertorch.prepare.annotated_texts import AnnotatedText, Entity, join_tokens, read_annotated_texts, types_of
from tests.prepare.random_texts import random_texts


def test_lines_survive_being_written_and_read(file):
    lines = random_texts(1)
    path = file("".join(f"{line.format()}\n" for line in lines))
    assert read_annotated_texts(path) == lines


def test_predictions_are_read(file):
    """What `predict` writes: with the text of each entity, and maybe a score."""
    entities = [{"type": "PER", "start": 1, "end": 2, "text": "张", "score": 0.5}]
    path = file(json.dumps({"text": "😀张", "entities": entities}))
    assert read_annotated_texts(path) == [AnnotatedText("😀张", [Entity(1, 2, "PER", 0.5)])]


def test_tokens_are_joined(file):
    tokens = ["John", "Smith", "在", "北京", "met", "Li", "."]
    entities = [{"start": 0, "end": 2, "type": "PER"}, {"start": 3, "end": 4, "type": "LOC"}]
    [line] = read_annotated_texts(file(json.dumps({"text": tokens, "entities": entities})))
    assert line.text == "John Smith在北京met Li ."
    assert [(line.text[each.start : each.end], each.type) for each in line.entities] == [
        ("John Smith", "PER"),
        ("北京", "LOC"),
    ]


@given(st.lists(st.text(min_size=1), min_size=1))
def test_joined_tokens_stand_where_they_are_said_to(tokens):
    text, starts, ends = join_tokens(tokens)
    assert [text[start:end] for start, end in zip(starts, ends, strict=True)] == tokens
    assert len(text) - sum(map(len, tokens)) == sum(
        start - end for start, end in zip(starts[1:], ends[:-1], strict=True)
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x", ":1: expected a JSON object"),
        ('{"text": "a"}', "got the keys text"),
        ('{"text": ["a"], "label": ["O"]}', "}]}), got tags"),
        ('{"text": "", "entities": []}', "expected a text that is not empty"),
        ('{"text": [" "], "entities": []}', "expected a text with the key 'text', got an empty one"),
        ('{"text": "\\ud83d", "entities": []}', "expected text, got half a surrogate pair"),
        ('{"text": "ab", "entities": [{"start": 1, "end": 3, "type": "A"}]}', "in a text of 2 characters, got 3"),
        ('{"text": ["ab"], "entities": [{"start": 0, "end": 2, "type": "A"}]}', "in a text of 1 tokens, got 2"),
        ('{"text": ["ab", ""], "entities": [{"start": 1, "end": 2, "type": "A"}]}', "expected an entity with text"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 2, "type": ""}]}', "expected a text that is not blank as"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 2, "type": "a\\u0001"}]}', "expected the type of an entity"),
        ('{"text": "a b", "entities": [{"start": 1, "end": 2, "type": "A"}]}', "expected an entity with text, got A"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 1, "type": "A", "text": "b"}]}', "from 0 to 1, 'a', got 'b'"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 1, "type": "A", "score": "x"}]}', "expected a number as the"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 1, "type": "A", "score": true}]}', "expected a number"),
        ('{"text": "ab", "entities": [], "id": NaN}', "got: NaN, which is no number of JSON"),
        ('{"text": "ab", "entities": [], "id": -1e999}', "got: -1e999, which is no finite number"),
    ],
)  # fmt: skip
def test_malformed_lines_are_named(file, log_lines, line, expected):
    path = file(f'{{"text": "好", "entities": []}}\n{line}\n')
    with pytest.raises(UserError) as error:
        read_annotated_texts(path)
    assert expected in str(error.value)
    assert str(error.value).splitlines()[1].startswith(f"{path}:2:")
    assert read_annotated_texts(path, on_bad_row="skip") == [AnnotatedText("好", [])]
    assert "skipped malformed lines: 1" in log_lines[-1]


def test_types():
    lines = [AnnotatedText("ab", [Entity(0, 1, "PER"), Entity(0, 2, "LOC")]), AnnotatedText("a", [Entity(0, 1, "PER")])]
    assert types_of(lines, "x") == ["LOC", "PER"]
    with pytest.raises(UserError, match="x: expected entities, whose types are the labels, got none"):
        types_of([AnnotatedText("a", [])], "x")
    for tag in ("B-cell", "O"):
        with pytest.raises(UserError, match=f"x: expected types that are no tags, as a label file has .*, got '{tag}'"):
            types_of([AnnotatedText("a", [Entity(0, 1, "X"), Entity(0, 1, tag)])], "x")


@given(st.text(), st.text())
def test_any_text_is_read_or_refused(tmp_path_factory, text, more):
    path = tmp_path_factory.mktemp("any") / "lines"
    item = {"text": text, "entities": [{"start": 0, "end": 1, "type": more}], more: [more]}
    path.write_text(json.dumps(item))
    with suppress(UserError):
        [line] = read_annotated_texts(str(path))
        assert json.loads(line.format())["text"] == text
