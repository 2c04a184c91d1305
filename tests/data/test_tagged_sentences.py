import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.data.tagged_sentences import read_tagged_sentences
from bertorch.data.tags import TagSet
from bertorch.errors import UserError
from tests.data.hostile_files import attempt, damaged_bytes, write_lines, written

TAGS = TagSet(["O", "B-PER", "I-PER", "S-PER", "B-LOC", "I-LOC"], "bios", "labels.txt")


def line(tokens, tags) -> str:
    return json.dumps({"text": tokens, "label": tags}, ensure_ascii=False)


@pytest.fixture
def read(tmp_path):
    def read_lines(*lines: str | bytes, **options):
        path = tmp_path / "file.json"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return read_tagged_sentences(str(path), TAGS, **options)

    return read_lines


def error_of(read, text, **options) -> str:
    with pytest.raises(UserError) as error:
        read(line(["好"], ["O"]), text, **options)
    message = str(error.value).splitlines()[1]
    return message[message.index("file.json") + len("file.json") :]


def test_tokens_and_tags(read):
    sentences = read(
        line(["我", " ", "NBA", "😀"], ["S-PER", "O", "B-LOC", "I-LOC"]), '{"label": ["O"], "text": ["a"]}'
    )
    assert sentences.tokens == [["我", " ", "NBA", "😀"], ["a"]]
    assert [tags.tolist() for tags in sentences.tags] == [[3, 0, 4, 5], [0]]
    assert sentences.tags[0].dtype == np.int64
    assert len(sentences) == 2


def test_other_keys_are_left_alone(read):
    assert read('{"id": 7, "text": ["a"], "label": ["O"], "label_type": {"x": []}}').tokens == [["a"]]


def test_columns_of_the_first_error(read):
    """Also where a text looks like the key, or has quotes and escapes in it."""
    text = json.dumps({"text": ['"label": [', "\\", 'a"'], "label": ["O", "B-XXX", "I-YYY"]})
    column = text.index('"B-XXX"') + 1
    assert error_of(read, text) == (
        f":2:{column}: expected one of the tags (O, B-PER, I-PER, S-PER, B-LOC, I-LOC), got 'B-XXX' for token 2"
    )
    assert error_of(read, '{"text": ["a"], "label": [O]}').startswith(":2:27: expected a JSON object")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no json", ":2:1: expected a JSON object ({"),
        ('{"text": ["a"], "label": ["O"]', ":2:31: expected a JSON object"),
        ('["a"]', ":2: expected a JSON object ("),
        ('{"text": ["a"]}', ":2: expected two lists of strings ("),
        ('{"text": "ab", "label": ["O", "O"]}', ":2: expected two lists of strings ("),
        ('{"text": [1], "label": ["O"]}', ":2: expected two lists of strings ("),
        ('{"text": [], "label": []}', ":2: expected at least one token ("),
        (line(["a", "b"], ["O"]), ":2:32: expected a tag for each of the 2 tokens, got 1 tags"),
        (line(["a"], ["O", "S-PER"]), ":2:32: expected a tag for each of the 1 tokens, got 2 tags"),
        (line(["a"], []), ":2:26: expected a tag for each of the 1 tokens, got 0 tags"),
        (b'{"text": ["\xff"], "label": ["O"]}', ":2: expected UTF-8, got byte 0xff"),
        ("[" * 100_000, ":2: expected a JSON object"),
        ('{"text": [NaN], "label": ["O"]}', ":2: expected two lists of strings ("),
        ('{"text": [' + "1" * 5000 + '], "label": ["O"]}', ":2: expected two lists of strings ("),
        ('{"text": ["a\x00"], "label": ["O"]}', ":2:13: expected a JSON object"),
        ('{"text": ["a"], "text": ["b"], "label": ["O"]}', ":2: expected each key once, got"),
        ('{"text": ["a"], "label": ["Z"], "l\\u0061bel": ["O"]}', ":2: expected each key once, got"),
        (
            '{"text": ["a", "\\ud800"], "label": ["O", "O"]}',
            ":2:16: expected text, got half a surrogate pair in token 2",
        ),
        ('{"text": ["a\\uDE00b"], "label": ["O"]}', ":2:11: expected text, got half a surrogate pair in token 1"),
        ('{"text": ["a"], "label": ["\\ud800"]}', ":2:27: expected one of the tags ("),
        (b'{"text": ["\xed\xa0\x80"], "label": ["O"]}', ":2: expected UTF-8, got byte 0xed"),
        ('\ufeff{"text": ["a"], "label": ["O"]}', ":2:1: expected a JSON object"),
    ],
)
def test_malformed_lines(read, text, expected):
    assert error_of(read, text).startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        '{"meta": {"label": ["q"]}, "text": ["a"], "label": ["Z"]}',
        '{"text": ["a"], "label": ["Z"], "meta": {"label": []}}',
        '{"meta": ["label", 1.5, null], "text": ["a"] , "label" : [ "Z"]}',
        '{"text": ["a"], "l\\u0061bel": ["Z"], "meta": {"label": []}}',
    ],
)
def test_the_column_is_that_of_the_tags_themselves(read, text):
    """Another list may have the same name, and the name may be spelt with escapes."""
    column = text.index('"Z"') + 1
    assert error_of(read, text).startswith(f":2:{column}: expected one of the tags")


def test_what_is_unusual_but_right(read):
    numbers = f'{{"id": {"1" * 5000}, "score": NaN, "text": ["a"], "label": ["O"]}}'
    assert read(numbers).tokens == [["a"]]
    tokens = ["", "\0", "😀", "\u2028", "\x85", "\r", "\ufeff"]
    escaped = json.dumps({"text": tokens, "label": ["O"] * 7})
    assert "\\ud83d\\ude00" in escaped
    assert read(escaped).tokens == [tokens]
    assert read(line(["\u2028", "\x85"], ["O", "O"]) + "\r").tokens == [["\u2028", "\x85"]]


def test_tags_out_of_order_are_counted_or_refused(read, log_lines):
    bad = line(["a", "b", "c"], ["O", "I-PER", "O"])
    good = line(["a"], ["O"])
    assert len(read(good, bad, good)) == 3
    assert log_lines[-1].endswith(
        "sentences with tags out of the scheme's order: 1; the first is sentence 2: I-PER after O (token 2)"
    )
    column = bad.index('"I-PER"') + 1
    expected = f":2:{column}: expected tags in the order of the scheme, got I-PER after O (token 2)"
    assert error_of(read, bad, strict=True) == expected
    assert len(read(good, bad, good, strict=True, on_bad_line="skip")) == 2


OBJECTS = damaged_bytes(
    *[
        piece.encode()
        for piece in ('{"text": ["a"], "label": ["O"]}', "{", "}", "[", "]", '"', ",", ":", "\\ud800", "1e9")
    ],
    *[piece.encode() for piece in ('"text"', '"label"', '"text": ["a"]', '"label": ["O"]', '"label": ["Z"]', "NaN")],
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["O", "Z", "\ud800", '"label": [']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "x"]), inner),
    max_leaves=6,
)
LINES = (
    st.fixed_dictionaries({}, optional={"x": VALUES, "text": VALUES, "label": VALUES}).map(json.dumps).map(str.encode)
)


@given(content=OBJECTS | st.lists(LINES).map(b"\n".join))
def test_it_gives_sentences_or_a_user_error(content, scratch):
    scratch.write_bytes(content)
    read_or_error = attempt(lambda path: read_tagged_sentences(path, TAGS), str(scratch))
    assert len(read_or_error) > 0
    assert not isinstance(read_or_error, str) or read_or_error.startswith(f"{scratch}: ")


@given(
    rows=st.lists(st.lists(st.tuples(st.text(max_size=4), st.sampled_from(TAGS.tags)), min_size=1), min_size=1),
    ascii_only=st.booleans(),
    form=written,
)
def test_sentences_come_back(rows, ascii_only, form, scratch):
    objects = [{"text": [token for token, _ in row], "label": [tag for _, tag in row]} for row in rows]
    write_lines(scratch, [json.dumps(row, ensure_ascii=ascii_only) for row in objects], form)
    sentences = read_tagged_sentences(str(scratch), TAGS)
    assert sentences.tokens == [row["text"] for row in objects]
    assert [[TAGS.tags[tag] for tag in tags] for tags in sentences.tags] == [row["label"] for row in objects]


@given(
    tokens=st.lists(st.text(max_size=4), min_size=1, max_size=8),
    index=st.integers(0, 7),
    others=st.dictionaries(st.text(max_size=6).filter(lambda key: key not in ("text", "label")), VALUES, max_size=3),
    ascii_only=st.booleans(),
)
def test_an_unknown_tag_is_found_at_its_column(tokens, index, others, ascii_only, scratch):
    index = min(index, len(tokens) - 1)
    row = others | {"text": tokens, "label": ["O"] * index + ["?!"] + ["O"] * (len(tokens) - index - 1)}
    text = json.dumps(row, ensure_ascii=ascii_only or r"\ud800" in repr(others))
    scratch.write_bytes(text.encode())
    column = text.rindex('"?!"') + 1
    with pytest.raises(UserError) as error:
        read_tagged_sentences(str(scratch), TAGS)
    assert str(error.value).splitlines()[1].startswith(f"{scratch}:1:{column}: expected one of the tags")
