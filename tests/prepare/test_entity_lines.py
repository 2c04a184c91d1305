import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.errors import UserError
from bertorch.prepare.entity_lines import Entity, EntityLine, join_tokens, read_entity_lines, types_of
from tests.prepare.annotated import random_lines


def test_lines_survive_being_written_and_read(file):
    lines = random_lines(1)
    path = file("".join(f"{line.format()}\n" for line in lines))
    assert read_entity_lines(path) == lines


def test_predictions_are_read(file):
    """What `predict` writes: with the text of each entity, and maybe a score."""
    entities = [{"type": "PER", "start": 1, "end": 2, "text": "张", "score": 0.5}]
    path = file(json.dumps({"text": "😀张", "entities": entities}))
    assert read_entity_lines(path) == [EntityLine("😀张", [Entity(1, 2, "PER", 0.5)])]


def test_tokens_are_joined(file):
    tokens = ["John", "Smith", "在", "北京", "met", "Li", "."]
    entities = [{"start": 0, "end": 2, "type": "PER"}, {"start": 3, "end": 4, "type": "LOC"}]
    [line] = read_entity_lines(file(json.dumps({"text": tokens, "entities": entities})))
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
        ("x", "2:1: expected a JSON object"),
        ('{"text": "a"}', "2: expected {\"text\": \"…\", \"entities\": [{\"start\": 0, \"end\": 2, \"type\": \"PER\"}]}, got"),
        ('{"text": ["a"], "label": ["O"]}', "these are tags, of which run_ner.py and predict make entities"),
        ('{"text": "a", "entities": [[0, 1, "PER"]]}', "2: expected {"),
        ('{"text": "", "entities": []}', "2: expected a text with the key 'text', got an empty one"),
        ('{"text": [], "entities": []}', "2: expected a text or its tokens with the key 'text', got '[]'"),
        ('{"text": ["a", ""], "entities": []}', "2: expected a text or its tokens"),
        ('{"text": 1, "entities": []}', "2: expected a text with the key 'text', got the keys text, entities"),
        ('{"text": "\\ud83d", "entities": []}', "2: expected text, got half a surrogate pair"),
        ('{"text": "ab", "entities": [{"start": 1, "end": 3, "type": "A"}]}', "within the text, 0 to 2, got 1 and 3 for A"),
        ('{"text": "ab", "entities": [{"start": 1, "end": 1, "type": "A"}]}', "got 1 and 1 for A"),
        ('{"text": "ab", "entities": [{"start": true, "end": 2, "type": "A"}]}', "got True and 2 for A"),
        ('{"text": "ab", "entities": [{"start": 0.0, "end": 2, "type": "A"}]}', "got 0.0 and 2 for A"),
        ('{"text": "ab", "entities": [{"start": -1, "end": 2, "type": "A"}]}', "got -1 and 2 for A"),
        ('{"text": ["ab"], "entities": [{"start": 0, "end": 2, "type": "A"}]}', "within the text, 0 to 1, got 0 and 2"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 2, "type": ""}]}', "expected the type of an entity"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 2, "type": "a\\u0001"}]}', "expected the type of an entity"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 1, "type": "A", "text": "b"}]}', "from 0 to 1, 'a', got 'b'"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 1, "type": "A", "score": "x"}]}', "expected a number as the score"),
        ('{"text": "ab", "entities": [], "id": NaN}', "got: NaN, which is no number of JSON"),
    ],
)  # fmt: skip
def test_malformed_lines_are_named(file, log_lines, line, expected):
    path = file(f'{{"text": "好", "entities": []}}\n{line}\n')
    with pytest.raises(UserError) as error:
        read_entity_lines(path)
    assert expected in str(error.value)
    assert str(error.value).splitlines()[1].startswith(f"{path}:2:")
    assert read_entity_lines(path, on_bad_row="skip") == [EntityLine("好", [])]
    assert "skipped malformed lines: 1" in log_lines[-1]


def test_types():
    lines = [EntityLine("ab", [Entity(0, 1, "PER"), Entity(0, 2, "LOC")]), EntityLine("a", [Entity(0, 1, "PER")])]
    assert types_of(lines, "x") == ["LOC", "PER"]
    with pytest.raises(UserError, match="x: expected entities, whose types are the labels, got none"):
        types_of([EntityLine("a", [])], "x")


@given(st.text(), st.text())
def test_any_text_is_read_or_refused(tmp_path_factory, text, more):
    path = tmp_path_factory.mktemp("any") / "lines"
    item = {"text": text, "entities": [{"start": 0, "end": 1, "type": more}], more: [more]}
    path.write_text(json.dumps(item))
    with suppress(UserError):
        [line] = read_entity_lines(str(path))
        assert json.loads(line.format())["text"] == text
