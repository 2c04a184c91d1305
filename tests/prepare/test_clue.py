import json

import pytest

from bertorch.errors import UserError
from bertorch.prepare.clue import TASKS, clue_labels, convert_clue

# One line of each task in the form of its authors, with texts written for this test.
AFQMC = {"sentence1": "怎么还款", "sentence2": "在哪里还款", "label": "1"}
TNEWS = {"label": "103", "label_desc": "news_sports", "sentence": "主队三比一获胜", "keywords": "主队,获胜"}
CMNLI = {"sentence1": "他睡了", "sentence2": "他醒着", "label": "contradiction"}
OCNLI = {
    "level": "easy",
    "sentence1": "外面下雨",
    "sentence2": "地是湿的",
    "label": "entailment",
    "label0": "entailment",
    "label1": "neutral",
    "genre": "tv",
    "prem_id": "tv_1",
    "id": 0,
}
CLUENER = {
    "text": "李明在新华书店A店见周",
    "label": {"name": {"李明": [[0, 1]], "周": [[10, 10]]}, "company": {"新华书店A店": [[3, 8]]}},
}


def lines(*objects) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)


def convert(path: str, task: str, **options) -> list[str]:
    return convert_clue(path, task, **({"scheme": "bios", "unlabelled": False, "longest": False} | options))


@pytest.mark.parametrize(
    ("task", "published", "expected", "unlabelled"),
    [
        ("afqmc", AFQMC, "怎么还款\t在哪里还款\t1", "怎么还款\t在哪里还款"),
        ("afqmc", AFQMC | {"label": 1}, "怎么还款\t在哪里还款\t1", "怎么还款\t在哪里还款"),
        ("tnews", TNEWS, "主队三比一获胜\tnews_sports", "主队三比一获胜"),
        ("tnews", TNEWS | {"sentence": "一\t二\r\n\n三"}, "一 二 三\tnews_sports", "一 二 三"),
        ("cmnli", CMNLI, "他睡了\t他醒着\tcontradiction", "他睡了\t他醒着"),
        ("cmnli", {"sentence1": "a", "sentence2": "b", "gold_label": "neutral"}, "a\tb\tneutral", "a\tb"),
        ("ocnli", OCNLI, "外面下雨\t地是湿的\tentailment", "外面下雨\t地是湿的"),
    ],
)
def test_texts_with_labels(file, task, published, expected, unlabelled):
    path = file(lines(published, published))
    assert convert(path, task) == [expected, expected]
    without = {key: value for key, value in published.items() if "label" not in key}
    assert convert(file(lines(without)), task, unlabelled=True) == [unlabelled]


def test_lines_without_a_majority_are_skipped_and_counted(file, log_lines):
    path = file(lines(OCNLI, OCNLI | {"label": "-"}, OCNLI | {"label": "neutral"}))
    assert [line.split("\t")[2] for line in convert(path, "ocnli")] == ["entailment", "neutral"]
    assert log_lines == [f"{path}: skipped lines without a majority label (-): 1"]
    with pytest.raises(UserError, match=r":1: expected one of the labels \(0, 1\), got '-'"):
        convert(file(lines(AFQMC | {"label": "-"})), "afqmc")


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("bios", "B-name I-name O B-company I-company I-company I-company I-company I-company O S-name"),
        ("bio", "B-name I-name O B-company I-company I-company I-company I-company I-company O B-name"),
        ("bmes", "B-name E-name O B-company M-company M-company M-company M-company E-company O S-name"),
    ],
)
def test_entities_become_tags(file, scheme, tags):
    [line] = convert(file(lines(CLUENER)), "cluener", scheme=scheme)
    assert line == lines({"text": list(CLUENER["text"]), "label": tags.split()}).strip()


def test_a_text_without_entities_and_a_test_set(file):
    assert json.loads(convert(file(lines({"text": "无", "label": {}})), "cluener")[0])["label"] == ["O"]
    assert convert(file(lines({"id": 0, "text": "无"})), "cluener", unlabelled=True) == ["无"]


def test_entities_that_overlap(file):
    label = {"name": {"abc": [[0, 2]], "ef": [[4, 5]]}, "book": {"bcd": [[1, 3]], "e": [[4, 4]]}}
    path = file(lines({"text": "abcdef", "label": label}))
    with pytest.raises(
        UserError, match=r":1: expected entities that do not overlap, got name 'abc' at 0 and book 'bcd'"
    ):
        convert(path, "cluener")
    tags = ["B-name", "I-name", "I-name", "O", "B-name", "I-name"]
    assert json.loads(convert(path, "cluener", longest=True)[0])["label"] == tags


@pytest.mark.parametrize(
    ("task", "bad", "expected"),
    [
        ("afqmc", "no json", ":2:1: expected a JSON object (a line of afqmc), got: Expecting value"),
        ("afqmc", "[1]", ":2: expected a JSON object (a line of afqmc), got '[1]'"),
        ("afqmc", "[" * 100_000, ":2: expected a JSON object"),
        ("afqmc", "1" * 5000, ":2: expected a JSON object"),
        ("afqmc", "", ":2: expected an example, got an empty line"),
        ("afqmc", {"sentence1": "a", "label": "0"}, ":2: expected a text with the key 'sentence2', got the keys sent"),
        ("afqmc", AFQMC | {"sentence1": 3}, ":2: expected a text with the key 'sentence1'"),
        ("afqmc", AFQMC | {"sentence1": " "}, ":2: expected no empty text or label"),
        ("afqmc", {"sentence1": "a", "sentence2": "b"}, ":2: expected a label with the key 'label', got the keys"),
        ("cmnli", {"sentence1": "a", "sentence2": "b"}, ":2: expected a label with the key 'label' or 'gold_label'"),
        ("afqmc", AFQMC | {"label": "2"}, ":2: expected one of the labels (0, 1), got '2'"),
        ("tnews", '{"sentence": "\\ud800", "label_desc": "news_car"}', ":2: expected text, got half a surrogate pair"),
        ("cluener", {"text": "", "label": {}}, ":2: expected a text, got an empty one"),
        ("cluener", {"text": "a"}, ":2: expected a label such as"),
        ("cluener", {"text": "a", "label": {"name": ["a"]}}, ":2: expected a label such as"),
        ("cluener", {"text": "a", "label": {"nome": {"a": [[0, 0]]}}}, ":2: expected one of the types (address, "),
        ("cluener", {"text": "ab", "label": {"name": {"b": [[0, 0]]}}}, ":2: expected the first and last character of"),
        ("cluener", {"text": "ab", "label": {"name": {"b": [[-1, 1]]}}}, ":2: expected the first and last character"),
        ("cluener", {"text": "ab", "label": {"name": {"": [[1, 0]]}}}, ":2: expected the first and last character of"),
        ("cluener", {"text": "ab", "label": {"name": {"b": [[1]]}}}, ":2: expected the first and last character of"),
        ("cluener", {"text": "ab", "label": {"name": {"b": "1"}}}, ":2: expected the first and last character of"),
    ],
)
def test_malformed_lines_are_named(file, task, bad, expected):
    good = {"afqmc": AFQMC, "tnews": TNEWS, "cmnli": CMNLI, "cluener": CLUENER}[task]
    path = file(lines(good) + (bad if isinstance(bad, str) else lines(bad).strip()) + "\n" + lines(good))
    with pytest.raises(UserError) as error:
        convert(path, task)
    first, located, _ = str(error.value).splitlines()
    assert first == f"{path}: malformed lines: 1"
    assert located.startswith(path + expected)


def test_label_files():
    assert clue_labels("afqmc", "bios") == ["0", "1"]
    assert clue_labels("ocnli", "bios") == clue_labels("cmnli", "bio") == ["entailment", "neutral", "contradiction"]
    assert len(set(clue_labels("tnews", "bios"))) == 15
    assert len(set(clue_labels("cluener", "bios"))) == 31
    assert clue_labels("cluener", "bio")[:3] == ["O", "B-address", "B-book"]
    assert set(TASKS) == {"afqmc", "cluener", "cmnli", "ocnli", "tnews"}
