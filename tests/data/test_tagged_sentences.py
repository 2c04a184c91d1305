import json

import numpy as np
import pytest

from bertorch.data.tagged_sentences import read_tagged_sentences
from bertorch.data.tags import TagSet
from bertorch.errors import UserError

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


def flaw(read, text, **options) -> str:
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


def test_columns_of_the_first_offence(read):
    """Also where a text looks like the key, or has quotes and escapes in it."""
    text = json.dumps({"text": ['"label": [', "\\", 'a"'], "label": ["O", "B-XXX", "I-YYY"]})
    column = text.index('"B-XXX"') + 1
    assert flaw(read, text) == (
        f":2:{column}: expected one of the tags (O, B-PER, I-PER, S-PER, B-LOC, I-LOC), got 'B-XXX' for token 2"
    )
    assert flaw(read, '{"text": ["a"], "label": [O]}').startswith(":2:27: expected a JSON object")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no json", ":2:1: expected a JSON object ({"),
        ('{"text": ["a"], "label": ["O"]', ":2:31: expected a JSON object"),
        ('["a"]', ":2: expected two lists of strings ("),
        ('{"text": ["a"]}', ":2: expected two lists of strings ("),
        ('{"text": "ab", "label": ["O", "O"]}', ":2: expected two lists of strings ("),
        ('{"text": [1], "label": ["O"]}', ":2: expected two lists of strings ("),
        ('{"text": [], "label": []}', ":2: expected at least one token ("),
        (line(["a", "b"], ["O"]), ":2:32: expected a tag for each of the 2 tokens, got 1 tags"),
        (line(["a"], ["O", "S-PER"]), ":2:32: expected a tag for each of the 1 tokens, got 2 tags"),
        (line(["a"], []), ":2:26: expected a tag for each of the 1 tokens, got 0 tags"),
        (b'{"text": ["\xff"], "label": ["O"]}', ":2: expected UTF-8, got byte 0xff"),
        ("[" * 100_000, ":2: expected a JSON object"),
    ],
)
def test_malformed_lines(read, text, expected):
    assert flaw(read, text).startswith(expected)


def test_tags_out_of_order_are_told_and_kept_or_refused(read, log_lines):
    bad = line(["a", "b", "c"], ["O", "I-PER", "O"])
    good = line(["a"], ["O"])
    assert len(read(good, bad, good)) == 3
    assert log_lines[-1].endswith(
        "sentences with tags out of the scheme's order: 1; the first is sentence 2: I-PER after O (token 2)"
    )
    column = bad.index('"I-PER"') + 1
    expected = f":2:{column}: expected tags in the order of the scheme, got I-PER after O (token 2)"
    assert flaw(read, bad, strict=True) == expected
    assert len(read(good, bad, good, strict=True, on_bad_line="skip")) == 2
