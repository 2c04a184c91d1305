import json
import re

import pytest

from bertorch.errors import UserError
from bertorch.prepare.annotated_texts import AnnotatedText, Entity
from bertorch.prepare.label_studio import label_studio_lines, read_label_studio
from tests.conftest import ANNOTATIONS
from tests.prepare.random_texts import random_texts, utf16

SAMPLE = ANNOTATIONS / "label_studio.json"


def read(path, **options):
    defaults = {"offsets": "auto", "on_bad_row": "stop", "text_key": "text", "to_name": None, "annotations": "latest"}
    return read_label_studio(str(path), **defaults | options)


def back(lines, **options):
    names = {"text_key": "text", "from_name": "label", "to_name": "text", "model_version": "bertorch"}
    return "\n".join(label_studio_lines(lines, **{"offsets": "auto"} | names | options))


def region(start, end, text=None, labels=("PER",), **more):
    value = {"start": start, "end": end, "labels": list(labels)} | ({} if text is None else {"text": text})
    return {"value": value, "id": "a", "from_name": "label", "to_name": "text", "type": "labels", **more}


def task(text, *results, **more):
    return {"id": 7, "data": {"text": text}, "annotations": [{"id": 1, "result": list(results), **more}]}


def exported(lines, counting) -> list:
    """The lines as Label Studio exports them, written here independently: runs of white space are one space."""
    tasks = []
    for line in lines:
        results = []
        for start, end, type_, _ in line.entities:
            at = [utf16(line.text, index) if counting == "utf16" else index for index in (start, end)]
            results.append(region(*at, re.sub(r"\s+", " ", line.text[start:end]), [type_]))
        tasks.append(task(line.text, *results) | {"id": line.more["id"]})
    return tasks


def accepted(tasks: str) -> str:
    """Tasks as they are exported after a person has accepted their predictions."""
    done = [
        {"id": 1000 + number, "data": each["data"], "annotations": each["predictions"], "predictions": []}
        for number, each in enumerate(json.loads(tasks))
    ]
    return json.dumps(done)


@pytest.mark.slow
@pytest.mark.parametrize("counting", ["utf16", "code_points"])
def test_round_trip_of_1000_sentences(file, counting):
    """An export, ours, tasks with predictions, which a person accepts, the export of that, and ours again."""
    lines = random_texts(3)
    path = file(json.dumps(exported(lines, counting), ensure_ascii=False))
    assert read(path) == read(path, offsets=counting) == lines
    tasks = back(lines, offsets=counting)
    assert [
        [(r["value"]["start"], r["value"]["end"], *r["value"]["labels"]) for r in each["predictions"][0]["result"]]
        for each in json.loads(tasks)
    ] == [
        [(r["value"]["start"], r["value"]["end"], *r["value"]["labels"]) for r in each["annotations"][0]["result"]]
        for each in exported(lines, counting)
    ]
    assert read(file(accepted(tasks), "again")) == lines


def test_both_ways_of_counting_in_one_file(file, log_lines):
    """A database from before 2022 has both; the covered text of each task says which."""
    lines = random_texts(4, 200)
    tasks = [
        new if index % 2 else old
        for index, (old, new) in enumerate(zip(exported(lines, "utf16"), exported(lines, "code_points"), strict=True))
    ]
    path = file(json.dumps(tasks))
    assert read(path) == lines
    assert log_lines == [f"{path}: its offsets are in code points and units of UTF-16"]


def test_the_sample(log_lines):
    lines = read(SAMPLE)
    assert [line.more for line in lines] == [{"id": n, "source": "diary"} for n in (1, 2, 3)] + [
        {"id": 5, "source": "notes"}
    ]
    assert [(lines[2].text[e.start : e.end], e.type) for e in lines[2].entities] == [("长沙", "LOC"), ("湘味楼", "ORG")]
    assert [re.sub(r"; the first.*", "", line.removeprefix(f"{SAMPLE}: ")) for line in log_lines] == [
        "its offsets are in code points",
        "left out results of the type choices: 1",
        "left out results of the type relation: 1",
        "left out tasks without an annotation: 1",
    ]


def test_which_annotation_is_taken(file):
    def annotation(number, start, **more):
        times = {"created_at": f"2024-01-0{number}T00:00:00Z", "updated_at": f"2024-02-0{9 - number}T00:00:00Z"}
        return {"id": number, "result": [region(start, start + 1)], **times, **more}

    def starts(*annotations, choice):
        each = {"data": {"text": "abcdef"}, "annotations": annotations}
        return [entity.start for entity in read(file(json.dumps([each])), annotations=choice)[0].entities]

    three = [annotation(1, 0), annotation(2, 1), annotation(3, 2)]
    assert starts(*three, choice="latest") == [0]  # by the time of the last change
    assert starts(*reversed(three), choice="latest") == [0]
    assert starts(*three, choice="first") == [0]
    assert starts(*three[1:], choice="first") == [1]
    assert starts(*three, choice="all") == [0, 1, 2]
    cancelled = annotation(1, 0, was_cancelled=True)
    assert starts(cancelled, *three[1:], choice="latest") == [1]
    assert starts(cancelled, *three[1:], choice="all") == [1, 2]
    truth = annotation(3, 2, ground_truth=True)
    assert starts(*three[:2], truth, choice="latest") == starts(*three[:2], truth, choice="first") == [2]
    assert starts(*({"result": [region(n, n + 1)]} for n in range(3)), choice="latest") == [2]  # without times


def test_several_labels_and_texts(file, log_lines):
    two = {
        "data": {"text": "张三", "title": "李四"},
        "annotations": [{"result": [region(0, 2, labels=["PER", "ORG"])]}],
    }
    path = file(json.dumps([two]))
    assert read(path)[0] == AnnotatedText("张三", [Entity(0, 2, "ORG"), Entity(0, 2, "PER")], {"title": "李四"})
    two["annotations"][0]["result"] += [region(0, 1, to_name="title"), region(0, 1, labels=[])]
    path = file(json.dumps([two]))
    assert len(read(path, to_name="text")[0].entities) == 2
    assert "left out entities of other texts than --to_name: 1; the first: " in log_lines[-2]
    assert "left out regions without a label: 1; the first: " in log_lines[-1]
    assert read(path, text_key="title", to_name="title")[0] == AnnotatedText("李四", [Entity(0, 1, "PER")])


def test_a_text_is_chosen_in_tasks_with_regions_on_the_other_one_alone(file, log_lines):
    """In another text its offsets would be wrong, and unnoticed where the region does not say its text."""
    data = {"title": "李四", "body": "张三和王五"}
    on_title, on_body = region(0, 2, to_name="title"), region(0, 2, to_name="body")
    tasks = [{"data": data, "annotations": [{"result": each}]} for each in ([on_title, on_body], [on_body])]
    for texts in (tasks, tasks[::-1]):
        path = file(json.dumps(texts))
        with pytest.raises(UserError, match="expected entities of one text, got those of body, title; say which with"):
            read(path, text_key="title", on_bad_row="skip")
    assert [each.entities for each in read(path, text_key="title", to_name="title")] == [[], [Entity(0, 2, "PER")]]
    assert "left out entities of other texts than --to_name: 2; the first: " in log_lines[-1]
    body = read(path, text_key="body", to_name="body")
    assert [each.entities for each in body] == [[Entity(0, 2, "PER")]] * 2


def test_regions_of_json_min_that_are_left_out_are_counted(file, log_lines):
    value = {"start": 0, "end": 1, "text": "张"}
    hypertext = {"startOffset": 0, "endOffset": 1, "text": "张", "hypertextlabels": ["PER"]}
    least = {
        "text": "张三",
        "label": [value],
        "ner": [value | {"labels": ["PER"]}],
        "page": [hypertext],
        "annotator": 1,
    }
    path = file(json.dumps([least]))
    assert read(path) == [AnnotatedText("张三", [Entity(0, 1, "PER")])]
    assert [re.sub(r"; the first.*", "", line.removeprefix(f"{path}: ")) for line in log_lines] == [
        "left out results of the type hypertextlabels: 1",
        "left out regions without a label: 1",
    ]


def test_json_min_and_older_exports(file):
    least = {
        "text": "😀张三 在",
        "label": [{"start": 1, "end": 4, "text": "张三 ", "labels": ["PER"]}],
        "id": 4,
        "annotator": 1,
        "annotation_id": 2,
        "lead_time": 3.5,
        "source": "x",
    }
    empty = {"text": "李", "id": 5, "annotator": 1, "annotation_id": 3}
    assert read(file(json.dumps([least, empty]))) == [
        AnnotatedText("😀张三 在", [Entity(1, 3, "PER")], {"id": 4, "source": "x"}),
        AnnotatedText("李", [], {"id": 5}),
    ]
    old = {"id": 1, "data": {"text": "张三"}, "completions": [{"id": 1, "result": [region(0, 2, "张三")]}]}
    assert read(file(json.dumps([old])))[0].entities == [Entity(0, 2, "PER")]
    assert read(file(json.dumps(old)))[0].entities == [Entity(0, 2, "PER")]  # JSON lines


def test_covered_text_is_compared_but_for_white_space(file):
    """As in Label Studio's issues 3078 and 5338; line breaks were once escaped."""
    text = "4   cm\n\nlong"
    results = [region(0, 6, "4 cm"), region(4, 12, "cm\\n\\nlong", ["X"])]
    assert read(file(json.dumps([task(text, *results)])))[0].entities == [Entity(0, 6, "PER"), Entity(4, 12, "X")]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (
            task("张三", region(0, 2, "李四")),
            "expected '李四' of PER from 0 to 2 of the text (code points), got",
        ),
        (
            task("😀张三", region(0, 2, "张三")),
            "of PER from 0 to 2 of the text (code points), got '😀张'",
        ),
        (task("张三", region(0, 3, "张三")), "of the text, 0 to 2 code points, got 0 and 3 for PER"),
        (task("张三", region(0.0, 2)), "got 0.0 and 2 for PER"),
        (task("张三", region(None, 2)), "got None and 2 for PER"),
        (task("张三", region("/p[1]", "/p[1]")), "got '/p[1]' and '/p[1]' for PER"),
        (task("张三", region("0", "2")), "got '0' and '2' for PER"),
        (
            task("张三", region(0, 2) | {"value": {"start": 0, "end": 2, "labels": "PER"}}),
            'expected the value of a region as {"start", "end", "text", "labels"',
        ),
        (
            task("张三", region(0, 2) | {"to_name": ["text"]}),
            "expected the name of a text as to_name, got '[\"text\"]'",
        ),
        (task("张三", region(0, 2, labels=[3])), "expected the type of an entity, such as 'PER', got '3'"),
        (task("张三", {"type": "labels", "value": [1]}), 'expected the value of a region as {"start", "end", "text", '),
        (task("张三", {"type": "labels"}), "expected the value of a region as"),
        (task("张三", 5), "expected results that are JSON objects, got '5'"),
        (task("张三") | {"annotations": {}}, "expected annotations, each with a result"),
        (task("张三") | {"annotations": [{}]}, "expected annotations, each with a result"),
        (task(""), "expected a text with the key 'text', got an empty one"),
        ({"data": {"body": "a"}, "annotations": []}, "expected a text with the key 'text', got the keys body"),
        ({"text": "张三", "label": [[0, 2, "PER"]]}, "expected a task as in {"),
        ("a", "expected a JSON object"),
    ],
)
def test_malformed_tasks_are_named(file, bad, expected):
    good = task("张三", region(0, 2, "张三"))
    path = file(f"[{json.dumps(good)},\n{json.dumps(bad)}]")
    with pytest.raises(UserError) as error:
        read(path)
    line = str(error.value).splitlines()[1]
    assert line.startswith(f"{path}:2:1: expected")
    assert expected in line
    assert len(read(path, on_bad_row="skip")) == 1


def test_no_annotation_at_all_is_an_error(file):
    path = file(json.dumps([{"id": 1, "data": {"text": "a"}, "annotations": []}]))
    with pytest.raises(UserError, match="expected texts with annotations, got none"):
        read(path)


def test_tasks_with_predictions():
    line = AnnotatedText("😀张三", [Entity(1, 2, "PER", 0.5), Entity(1, 3, "PER", 1.0)], {"id": 3, "body": "x"})
    options = {"text_key": "body", "from_name": "ner", "to_name": "article", "model_version": "v2"}
    [each] = json.loads(back([line], **options))
    assert each == {
        "data": {"id": 3, "body": "😀张三"},
        "predictions": [
            {
                "model_version": "v2",
                "score": 0.75,
                "result": [
                    {
                        "id": "e0",
                        "from_name": "ner",
                        "to_name": "article",
                        "type": "labels",
                        "value": {"start": 1, "end": 2, "text": "张", "labels": ["PER"]},
                        "score": 0.5,
                    },
                    {
                        "id": "e1",
                        "from_name": "ner",
                        "to_name": "article",
                        "type": "labels",
                        "value": {"start": 1, "end": 3, "text": "张三", "labels": ["PER"]},
                        "score": 1.0,
                    },
                ],
            }
        ],
    }
    [each] = json.loads(back([AnnotatedText("a", [Entity(0, 1, "X")])], offsets="utf16"))
    assert "score" not in each["predictions"][0]
