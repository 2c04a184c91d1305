import json
import random
from contextlib import suppress

import pytest

from bertorch.errors import UserError
from bertorch.prepare.annotated_texts import AnnotatedText, Entity
from bertorch.prepare.doccano import doccano_lines, read_doccano
from tests.conftest import ANNOTATIONS
from tests.prepare.random_texts import random_texts, utf16

SAMPLE = ANNOTATIONS / "doccano.jsonl"


def read(path, offsets="auto", on_bad_row="stop"):
    return read_doccano(str(path), offsets=offsets, on_bad_row=on_bad_row)


def exported(lines, counting="utf16") -> str:
    """The lines as doccano exports them, written here independently."""
    rows = []
    for line in lines:
        at = (lambda index, text=line.text: utf16(text, index)) if counting == "utf16" else (lambda index: index)
        label = [[at(each.start), at(each.end), each.type] for each in line.entities]
        rows.append({**line.more, "text": line.text, "label": label, "Comments": []})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("counting", ["utf16", "code_points"])
def test_round_trip_of_1000_sentences(file, counting):
    """The exports that the tests write, ours, doccano's, and ours again; the file itself says what it counts."""
    lines = random_texts(2)
    path = file(exported(lines, counting))
    assert read(path) == read(path, counting) == lines
    back = "\n".join(doccano_lines(read(path), offsets=counting))
    assert [json.loads(row) for row in back.split("\n")] == [
        {key: value for key, value in json.loads(row).items() if key != "Comments"}
        for row in exported(lines, counting).rstrip("\n").split("\n")
    ]
    assert read(file(back, "back")) == lines


def test_its_version_is_written_by_default(log_lines):
    line = AnnotatedText("😀张三", [Entity(1, 3, "PER")])
    assert json.loads(next(doccano_lines([line], offsets="auto")))["label"] == [[2, 4, "PER"]]
    assert log_lines == ["offsets are written in units of UTF-16, see --offsets"]
    assert json.loads(next(doccano_lines([line], offsets="code_points")))["label"] == [[1, 3, "PER"]]


def test_the_sample(log_lines):
    lines = read(SAMPLE)
    assert len(lines) == 6
    assert [(line.text[e.start : e.end], e.type) for line in lines[2:4] for e in line.entities] == [
        ("青岛", "LOC"),
        ("上海", "LOC"),
        ("上海交响乐团", "ORG"),
        ("陈思远", "PER"),
        ("上海", "LOC"),
    ]
    assert log_lines == [f"{SAMPLE}: its offsets are in units of UTF-16"]


def test_the_forms_of_versions(file, log_lines):
    """Also of relation extraction, and a JSON array in place of JSON lines."""
    relations = [{"id": 9, "from_id": 4, "to_id": 5, "type": "works_for"}]
    entities = [{"id": 4, "label": "PER", "start_offset": 0, "end_offset": 2}]
    forms = [
        {"id": 1, "text": "张三", "label": [[0, 2, "PER"]], "annotator": "x"},
        {"text": "张三", "labels": [[0, 2, "PER"]]},
        {"text": "张三", "entities": [[0, 2, "PER"]], "cats": ["news"]},
        {"text": "张三", "entities": entities, "relations": relations, "Comments": ["look"]},
    ]
    expected = AnnotatedText("张三", [Entity(0, 2, "PER")])
    expected = [AnnotatedText("张三", expected.entities, {"id": 1, "annotator": "x"}), *[expected] * 3]
    assert read(file("".join(f"{json.dumps(form)}\n" for form in forms))) == expected
    path = file(json.dumps(forms, indent=1), "array.json")
    log_lines.clear()
    assert read(path) == expected
    number = 1 + json.dumps(forms, indent=1).splitlines().index(" {", 30)
    assert log_lines[0].startswith(f"{path}: left out labels of documents: 1; the first: {path}:")
    assert log_lines[1].startswith(f"{path}: left out relations: 1; the first: {path}:{number}: '")
    assert log_lines[2].startswith(f"{path}: left out comments: 1; the first: {path}:{number}: ")


def test_what_is_counted_is_found_out_once_for_the_file(file, log_lines):
    ambiguous = {"text": "😀张三北京", "label": [[1, 3, "PER"]]}  # 张三, or no whole pair
    both = {"text": "😀张三北京", "label": [[2, 4, "PER"]]}  # 张三 in UTF-16, 三北 in code points
    only_utf16 = {"text": "😀张三", "label": [[2, 4, "PER"]]}

    def write(*rows):
        return file("".join(f"{json.dumps(row)}\n" for row in rows))

    assert read(write(both, only_utf16))[0].entities == [Entity(1, 3, "PER")]
    assert read(write(both, ambiguous))[0].entities == [Entity(2, 4, "PER")]
    for rows in ([both], [both, ambiguous, only_utf16]):  # no evidence, and evidence of both
        path = write(*rows)
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value) == (
            f"{path}:1: expected offsets that can be counted in one way only, got PER '张三' in units of UTF-16 and "
            "PER '三北' in code points; say which with --offsets: utf16 since doccano 1.5, code_points before"
        )
    assert read(path, "utf16", "skip")[0].entities == [Entity(1, 3, "PER")]
    assert read(write(both), "code_points")[0].entities == [Entity(2, 4, "PER")]
    same = {"text": "张三😀", "label": [[0, 2, "PER"]]}  # before the emoji it makes no difference
    assert read(write(same))[0].entities == [Entity(0, 2, "PER")]


def test_white_space_and_repetitions(file, log_lines):
    label = [[0, 3, "PER"], [1, 3, "PER"], [3, 5, "X"], [3, 4, "X"], [1, 3, "LOC"]]
    path = file(json.dumps({"text": " 张三 \u3000李", "label": label}))
    assert read(path)[0].entities == [Entity(1, 3, "LOC"), Entity(1, 3, "PER")]
    assert log_lines == [
        f"{path}: trimmed white space at the ends of entities: 1; the first: {path}:1: PER ' 张三' at 0",
        f"{path}: left out repeated entities: 1; the first: {path}:1: PER '张三' at 1",
        f"{path}: left out entities of white space: 2; the first: {path}:1: X at 3",
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a"}, "expected a list of entities with one of the keys label, labels, entities, got the keys text"),
        ({"text": "a", "label": [], "entities": []}, "got the keys text, label, entities"),
        ({"text": "a", "label": {}}, "with one of the keys label, labels, entities, got '{}'"),
        ({"text": "a", "label": ["pos"]}, 'expected an entity as [start, end, "TYPE"] or {"start_offset", '),
        ({"text": "a", "label": [[0, 1]]}, "got '[0, 1]'"),
        ({"text": "a", "label": [[0, 1, 7]]}, "expected the type of an entity, such as 'PER', got '7'"),
        ({"text": "a", "label": [[0, 2, "A"]]}, "of the text, 0 to 1 units of UTF-16, got 0 and 2 for A"),
        ({"text": "a", "label": [["0", 1, "A"]]}, "got '0' and 1 for A"),
        ({"text": "a", "label": [[1, 1, "A"]]}, "got 1 and 1 for A"),
        ({"text": "a", "label": [[-1, 1, "A"]]}, "got -1 and 1 for A"),
        ({"text": " ", "label": []}, "expected a text with the key 'text', got an empty one"),
        ({"data": "a", "label": []}, "expected a text with the key 'text', got the keys data, label"),
        ([], "expected a JSON object"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named(file, row, expected):
    good = {"text": "张三", "label": [[0, 2, "PER"]]}
    for content, place in (
        (f"{json.dumps(good)}\n{json.dumps(row)}\n", "2: "),
        (f"[{json.dumps(good)},\n  {json.dumps(row)}]", "2:3: "),
    ):
        path = file(content)
        with pytest.raises(UserError) as error:
            read(path)
        line = str(error.value).splitlines()[1]
        assert line.startswith(f"{path}:{place}expected"), line
        assert expected in line
        assert str(error.value).endswith("Fix them, or skip them with --on_bad_row skip; nothing was written.")
        assert len(read(path, on_bad_row="skip")) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[", ":1:2: expected an array of JSON objects, got: Expecting value"),
        ('[\n{"a": 1}\n{"b": 2}]', ":3:1: expected an array of JSON objects, got: no comma or bracket after an item"),
        ('[{"a": 1},\n{"b": 2', ":2:8: expected an array of JSON objects, got: Expecting ',' delimiter"),
        ("[] x", ":1:4: expected an array of JSON objects, got: text after the array"),
        ("[]", ": expected an array of JSON objects"),
        ("", ": expected one example a line, got no line"),
        (b"[\n\xff]", ":2: expected UTF-8, got byte 0xff"),
        ("[" * 100_000, ":1:2: expected an array of JSON objects, got: maximum recursion depth"),
        ("[" + "9" * 5000 + "]", ":1:2: expected an array of JSON objects, got: Exceeds the limit"),
        ('{"text": "a", "label": []}\n\n{"text": "a", "label": []}', ":2: expected an example, got an empty line"),
    ],
)
def test_files_that_are_no_export(file, content, expected):
    path = file(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert f"{path}{expected}" in str(error.value)


def test_random_damage_gives_rows_or_one_error(tmp_path):
    chance = random.Random(5)
    good = SAMPLE.read_bytes()
    for _ in range(200):
        damaged = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        with suppress(UserError):
            lines = read(path, on_bad_row=chance.choice(["stop", "skip"]))
            assert all(0 <= e.start < e.end <= len(line.text) for line in lines for e in line.entities)
