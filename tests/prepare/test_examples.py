import pytest

from bertorch.errors import UserError
from bertorch.prepare.examples import collect_labels, read_examples


def test_columns(file):
    [first, second] = read_examples(file("甲\t乙\t1\n丙\t丁\t0\n"))
    assert (first.line_number, first.line, first.texts, first.labels) == (1, "甲\t乙\t1", ("甲", "乙"), ("1",))
    assert (second.line_number, second.texts) == (2, ("丙", "丁"))
    pairs = read_examples(file("甲\t乙\n"), num_texts=2)
    assert (pairs[0].texts, pairs[0].labels) == (("甲", "乙"), ())
    [sentence] = read_examples(file("甲\n"))
    assert (sentence.texts, sentence.labels) == (("甲",), ())
    with_negative = read_examples(file("甲\t乙\t丙\n"), num_texts=1)
    assert (with_negative[0].texts, with_negative[0].labels) == (("甲",), ("乙", "丙"))


def test_several_labels(file):
    [first, second] = read_examples(file("甲\t价格|物流, 快 \n乙\t\n"), label_separator="|")
    assert (first.texts, first.labels) == (("甲",), ("价格", "物流, 快"))
    assert (second.line, second.texts, second.labels) == ("乙\t", ("乙",), ())


def test_json_lines(file):
    line = '{"id": 1, "text": ["我", "们"], "label": ["S-PER", "O"]}'
    [example] = read_examples(file(line))
    assert (example.line, example.texts, example.labels) == (line, ("我们",), ("S-PER", "O"))
    assert read_examples(file("{甲\tb\n"))[0].texts == ("{甲",)


def test_json_lines_with_entities(file):
    """The labels of a text are the types of its entities; also in one file with tags."""
    entities = '[{"start": 0, "end": 2, "type": "ORG"}, {"start": 0, "end": 1, "type": "LOC"}]'
    lines = [f'{{"text": "北大", "entities": {entities}}}', '{"text": ["我"], "entities": []}']
    lines.append('{"text": ["我"], "label": ["O"]}')
    first, second, third = read_examples(file("\n".join(lines)))
    assert (first.line, first.texts, first.labels) == (lines[0], ("北大",), ("ORG", "LOC"))
    assert (second.texts, second.labels, third.labels) == (("我",), (), ("O",))
    assert [example.has_entities for example in (first, second, third)] == [True, True, False]
    assert collect_labels([first, second], "sorted") == ["LOC", "ORG"]


def test_a_text_in_both_forms_is_one_text(file):
    """So that `dedupe` finds it, and `split` keeps it in one part."""
    forms = ['"New York，北京"', '["New", "York", "，", "北", "京"]']
    first, second = read_examples(file("\n".join(f'{{"text": {form}, "entities": []}}' for form in forms)))
    assert first.group == second.group


@pytest.mark.parametrize(
    ("content", "texts", "expected"),
    [
        ('{"text": "a", "entities": [{"start": 0, "end": 2, "type": "X"}]}\n', None, ':1:48: expected "end"'),
        ("a\tb\na\n", None, ":2: expected 2 columns (as in the first line), got 1"),
        ("a\tb\na\t \n", None, ":2: expected no empty column"),
        ('{"text": ["a"], "label": ["O"]}\n{"text": ["a"]}\n', None, ":2: expected two lists of strings"),
        ("a\nb\n", 2, ": expected 2 or more columns (--texts 2), got 1"),
        (
            '{"text": ["a"], "label": ["O"]}\n',
            1,
            ": expected 1 or more columns (--texts 1), got JSON",
        ),
        ("", None, ": expected one example a line, got no line"),
    ],
)
def test_malformed_files(file, content, texts, expected):
    path = file(content)
    with pytest.raises(UserError) as error:
        read_examples(path, texts)
    assert path + expected in str(error.value)


def test_labels_in_each_order(file):
    lines = read_examples(file("a\t10\nb\t9\nc\t9\nd\tx\n"))
    assert collect_labels(lines, "sorted") == ["9", "10", "x"]
    assert collect_labels(lines, "first") == ["10", "9", "x"]
    assert collect_labels(lines, "frequency") == ["9", "10", "x"]
    numbers = read_examples(file("a\t10\nb\t-1\nc\t1.5\nd\tx\n"))
    assert collect_labels(numbers, "sorted") == ["-1", "1.5", "10", "x"]
    tags = read_examples(file('{"text": ["a", "b", "c"], "label": ["I-A", "B-A", "O"]}\n'))
    assert collect_labels(tags, "sorted") == ["O", "B-A", "I-A"]
