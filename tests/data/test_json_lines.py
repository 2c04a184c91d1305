"""JSON lines of every form: the same examples as columns, errors by line and column, hostile files."""

import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.data.labelled_lines import read_labelled
from bertorch.data.readers import has_pairs, read_scored_pairs, stream_texts
from bertorch.errors import UserError
from tests.data.hostile_files import attempt, damaged_bytes, texts, write_lines, written

LABELS = ["a", "b", "7"]
# By form and number of texts: rows as columns, and the same ones as objects.
SAME = {
    ("single_label", 1): (
        ["好\ta", "不 好\t7"],
        [{"text": "好", "label": "a"}, {"text": "不 好", "label": 7}],
    ),
    ("single_label", 2): (
        ["好\t很好\tb", "x\ty\t7"],
        [{"text_a": "好", "text_b": "很好", "label": "b "}, {"text_a": "x", "text_b": "y", "label": "7"}],
    ),
    ("multi_label", 1): (
        ["好\ta,7", "x\t", "y\tb, a"],
        [{"text": "好", "labels": ["a", 7]}, {"text": "x", "labels": []}, {"text": "y", "labels": ["b", "a"]}],
    ),
    ("multi_label", 2): (
        ["好\tz\tb", "x\ty\t"],
        [{"text_a": "好", "text_b": "z", "labels": ["b"]}, {"text_a": "x", "text_b": "y", "labels": []}],
    ),
    ("score", 1): (
        ["好\t0.1", "x\t-3", "y\t1e-3"],
        [{"text": "好", "score": 0.1}, {"text": "x", "label": -3}, {"text": "y", "label": "no", "score": 0.001}],
    ),
    ("score", 2): (
        ["好\tz\t2.5", "x\ty\t4"],
        [{"text_a": "好", "text_b": "z", "label": 2.5}, {"text_a": "x", "text_b": "y", "score": 4}],
    ),
    ("ranking", 2): (
        ["q\tx\t1", "r\tx\t0", "q\ty\t0", "s\tz\t0.5"],
        [
            {"query": "q", "candidate": "x", "relevance": 1},
            {"query": "r", "candidate": "x", "relevance": 0},
            {"query": "q", "candidate": "y", "relevance": 0},
            {"query": "s", "candidate": "z", "relevance": 0.5},
        ],
    ),
    ("groups", 2): (
        ["q\tx\ty\tz", "r\tx\ty\ty"],
        [
            {"query": "q", "positive": "x", "negatives": ["y", "z"]},
            {"query": "r", "positive": "x", "negatives": ["y", "y"]},
        ],
    ),
}
FORMS = pytest.mark.parametrize(("form", "num_texts"), SAME)


def read(path, form, num_texts, **options):
    return read_labelled(str(path), form, label_names=LABELS, num_texts=num_texts, **options)


def write_objects(path, rows, **options) -> None:
    path.write_text("\n".join(json.dumps(row, **options) for row in rows))


@FORMS
@pytest.mark.parametrize("options", [{"ensure_ascii": False}, {"ensure_ascii": True}], ids=["UTF-8", "escapes"])
def test_columns_and_objects_give_the_same_examples(form, num_texts, options, tmp_path):
    columns, objects = SAME[form, num_texts]
    (tmp_path / "file.tsv").write_text("\n".join(columns))
    write_objects(tmp_path / "file.json", [{"id": 1.5, "meta": {"text": None}} | row for row in objects], **options)
    expected, ours = (read(tmp_path / f"file.{kind}", form, num_texts) for kind in ("tsv", "json"))
    assert ours.columns == expected.columns
    assert ours.labels.dtype == expected.labels.dtype
    assert ours.labels.shape == expected.labels.shape
    assert np.array_equal(ours.labels, expected.labels)


def errors_of(path, form, num_texts) -> list[str]:
    with pytest.raises(UserError) as error:
        read(path, form, num_texts)
    return [line.removeprefix(f"{path}:") for line in str(error.value).splitlines()[1:-1]]


@pytest.mark.parametrize(
    ("form", "line", "expected"),
    [
        ("text", '{"text": "x", "label": "c"}', "2:24: expected one of the labels (a, b, 7), got 'c'"),
        ("text", '{"label": "a"}', '2: expected "text" ({"text": "…", "label": "…"}), got the keys label'),
        ("text", "{}", '2: expected "text" ({"text": "…", "label": "…"}), got no key'),
        ("text", '{"text": "x"}', '2: expected "label" ({"text": "…", "label": "…"}), got the keys text'),
        (
            "text",
            '{"text_a": "x", "text_b": "y", "label": "a"}',
            '2: expected "text" ({"text": "…", "label": "…"}), got the keys text_a, text_b, label; lines of pairs need '
            "--is_text_pair",
        ),
        (
            "text",
            '{"text": 5, "label": "a"}',
            '2:10: expected a text that is not empty as "text" ({"text": "…", "label": "…"}), got 5',
        ),
        (
            "text",
            '{"label": "a", "text": " \\n"}',
            '2:24: expected a text that is not empty as "text" ({"text": "…", "label": "…"}), got \' \\n\'',
        ),
        (
            "text",
            '{"text": "x", "label": true}',
            '2:24: expected a label as a string or whole number as "label" ({"text": "…", "label": "…"}), got true',
        ),
        (
            "text",
            '{"text": "x", "label": 1.0}',
            '2:24: expected a label as a string or whole number as "label" ({"text": "…", "label": "…"}), got 1.0',
        ),
        ("text", '{"text": "x", "label": ""}', "2:24: expected one of the labels (a, b, 7), got ''"),
        ("text", '{"text": "x", "text": "x", "label": "a"}', "2: expected each key once, got 'text' again"),
        (
            "text",
            '{"text": "x", "label": "a"',
            '2:27: expected a JSON object ({"text": "…", "label": "…"}), got: Expecting \',\' delimiter',
        ),
        (
            "text",
            "x\ta",
            '2:1: expected a JSON object ({"text": "…", "label": "…"}), got: Expecting value',
        ),
        ("text", '["x", "a"]', '2: expected a JSON object ({"text": "…", "label": "…"}), got \'["x", "a"]\''),
        (
            "text",
            '{"label": "a", "text": "\\ud83d"}',
            "2:24: expected text, got half a surrogate pair in \"text\": '\\ud83d'",
        ),
        ("text", "", "2: expected an example, got an empty line"),
        (
            "labels",
            '{"text": "x", "labels": "a"}',
            '2:25: expected a list of labels, strings or whole numbers as "labels" ({"text": "…", "labels": ["…"]}), '
            "got 'a'",
        ),
        (
            "labels",
            '{"text": "x", "labels": ["a", null]}',
            '2:25: expected a list of labels, strings or whole numbers as "labels" ({"text": "…", "labels": ["…"]}), '
            "got a list",
        ),
        (
            "labels",
            '{"text": "x", "labels": ["a", "c"]}',
            "2:25: expected labels of the label file (a, b, 7), got 'c'",
        ),
        (
            "labels",
            '{"text": "x", "labels": ["a", "\\udc00"]}',
            "2:25: expected text, got half a surrogate pair in \"labels\": '\\udc00'",
        ),
        (
            "score",
            '{"text": "x", "label": "0.5"}',
            '2:24: expected a finite number as "label" ({"text": "…", "score": 1.5}), got \'0.5\'',
        ),
        (
            "score",
            '{"text": "x", "score": NaN}',
            '2:24: expected a finite number as "score" ({"text": "…", "score": 1.5}), got NaN',
        ),
        (
            "score",
            '{"text": "x", "score": 1e400}',
            '2:24: expected a finite number as "score" ({"text": "…", "score": 1.5}), got 1e400',
        ),
        ("score", '{"text": "x"}', '2: expected "score" ({"text": "…", "score": 1.5}), got the keys text'),
        (
            "ranking",
            '{"query": "q", "candidate": "x", "relevance": -1}',
            '2:47: expected a relevance of at least 0 ({"query": "…", "candidate": "…", "relevance": 1.5}), got \'-1\'',
        ),
        (
            "groups",
            '{"query": "q", "positive": "x", "negatives": ["y"]}',
            '2:46: expected 2 negatives, as in the first line, got 1 ({"query": "…", "positive": "…", "negatives": '
            '["…"]})',
        ),
        (
            "groups",
            '{"query": "q", "positive": "x", "negatives": []}',
            '2:46: expected a list of at least one text, none of them empty as "negatives" ({"query": "…", "positive": '
            '"…", "negatives": ["…"]}), got a list',
        ),
    ],
)
def test_a_malformed_object_is_named_by_line_and_column(form, line, expected, tmp_path):
    name, num_texts = {
        "text": ("single_label", 1),
        "labels": ("multi_label", 1),
        "score": ("score", 1),
        "ranking": ("ranking", 2),
        "groups": ("groups", 2),
    }[form]
    good = json.dumps(SAME[name, num_texts][1][0])
    (tmp_path / "file.json").write_text(f"{good}\n{line}\n{good}\n")
    assert errors_of(tmp_path / "file.json", name, num_texts) == [expected]
    kept = read(tmp_path / "file.json", name, num_texts, on_bad_line="skip")
    assert len(kept.labels) == 2


def test_the_column_is_that_of_the_outer_object(tmp_path):
    (tmp_path / "file.json").write_text('{"meta": {"label": "a"}, "t\\u0065xt": "x", "label" :\t"c"}\n')
    column = '{"meta": {"label": "a"}, "t\\u0065xt": "x", "label" : "c"}'.index('"c"') + 1
    assert errors_of(tmp_path / "file.json", "single_label", 1)[0].startswith(f"1:{column}: expected one of the labels")


def test_the_first_line_decides(tmp_path):
    path = tmp_path / "file"
    path.write_text('x\ta\n{"text": "x", "label": "a"}\n')
    assert errors_of(path, "single_label", 1) == [
        """2: expected 2 columns (text⇥label), got 1: '{"text": "x", "label": "a"}'"""
    ]
    path.write_text('{"a": 1}\ta\n[1]\tb\n')  # columns that are JSON
    assert read(path, "single_label", 1).columns == (['{"a": 1}', "[1]"],)
    path.write_text('{"text": "x", "label": \nx\ta\n')  # broken, but no columns: the error is that of JSON
    assert [error.split(", got")[0] for error in errors_of(path, "single_label", 1)] == [
        '1:24: expected a JSON object ({"text": "…", "label": "…"})',
        '2:1: expected a JSON object ({"text": "…", "label": "…"})',
    ]
    path.write_bytes(b'{"text": "\xff", "label": "a"}\n{"text": "x", "label": "a"}\n')
    assert errors_of(path, "single_label", 1) == ["1: expected UTF-8, got byte 0xff at byte 11 of the line"]
    path.write_text('\n\n{"text": "x", "label": "a"}\n')
    assert errors_of(path, "single_label", 1) == [
        "1: expected an example, got an empty line",
        "2: expected an example, got an empty line",
    ]


def test_a_text_may_have_tabs_and_line_breaks(tmp_path):
    text = "一\t二\n三\r\n四\u2028五"
    write_objects(tmp_path / "file.json", [{"text": text, "label": "a"}])
    assert read(tmp_path / "file.json", "single_label", 1).columns == ([text],)


def test_further_keys_may_hold_anything(tmp_path):
    number = "9" * 5000
    (tmp_path / "file.json").write_text(f'{{"id": {number}, "x": [NaN, -0, 1e999], "text": "x", "label": "a"}}\n')
    assert read(tmp_path / "file.json", "single_label", 1).labels.tolist() == [0]
    (tmp_path / "file.json").write_text(f'{{"text": "x", "label": {number}}}\n')
    (error,) = errors_of(tmp_path / "file.json", "single_label", 1)
    assert error.startswith("1:24: expected one of the labels (a, b, 7), got '999")
    assert len(error) < 200
    deep = '{"text": "x", "label": "a", "deep": ' + "[" * 100_000
    (tmp_path / "file.json").write_text('{"text": "x", "label": "a"}\n' + deep + "\n")
    (error,) = errors_of(tmp_path / "file.json", "single_label", 1)
    assert error.startswith("2: expected a JSON object")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["x\ty\ta", "x\ty\ta", "x\ta"], True),
        (["x\ta"], False),
        (['{"text": "x\\ty\\tz", "label": "a"}'], False),
        (['{"text_a": "x", "text_b": "y", "label": "a"}'], True),
        (['{"query": "x", "candidate": "y", "relevance": 1}'], True),
        (["", '{"text_a": "x", "text_b": "y"}'], True),
        ([""], False),
    ],
)
def test_whether_a_file_has_pairs(lines, expected, tmp_path):
    (tmp_path / "file").write_text("\n".join(lines))
    assert has_pairs(str(tmp_path / "file")) is expected


def test_scored_pairs_of_embeddings_may_be_json_too(tmp_path):
    write_objects(tmp_path / "file.json", SAME["score", 2][1])
    assert read_scored_pairs(str(tmp_path / "file.json")).labels.tolist() == [2.5, 4]


@pytest.mark.parametrize("num_texts", [0, 2])
def test_inputs_of_a_stream_come_one_by_one(num_texts, tmp_path):
    """No line is read before the one before it is used."""
    os.mkfifo(pipe := tmp_path / "pipe")
    used = threading.Event()
    in_time = []

    def write() -> None:
        with pipe.open("w", buffering=1) as file:
            file.write('{"query": "一", "candidate": "二"}\n')
            in_time.append(used.wait(30))
            file.write('{"text_a": "三\\t", "text_b": "四", "label": 1}\n')

    thread = threading.Thread(target=write)
    thread.start()
    rows = stream_texts(str(pipe), num_texts=num_texts, may_be_json=True)
    assert next(rows) == ("一", "二")
    used.set()
    assert list(rows) == [("三\t", "四")]
    thread.join()
    assert in_time == [True]


def test_plain_text_stays_plain_text(tmp_path):
    path = tmp_path / "file"
    for lines in (["[1, 2]", '{"text": "x"}'], ['{"text', "b"], ["5", "b"], ["{a}"]):
        path.write_text("\n".join(lines))
        assert list(stream_texts(str(path), num_texts=1, may_be_json=True)) == [(line,) for line in lines]
    path.write_text('{"x": 1}')
    assert list(stream_texts(str(path), num_texts=1)) == [('{"x": 1}',)]


PIECES = [
    b'{"text": "x", "label": "a"}',
    b'{"text_a": "x", "text_b": "y", "labels": ["a"]}',
    b'{"query": "x", "candidate": "y", "relevance": 1}',
    b'{"query": "x", "positive": "y", "negatives": ["z"]}',
    *(b'{"', b'"text"', b'": ', b'"}', b'["', b"\\ud800", b"NaN", b"1e999", b"null", b"{}", b"[[", b', "score": 1'),
]


@given(content=damaged_bytes(*PIECES))
@FORMS
def test_a_reader_gives_rows_or_a_user_error(form, num_texts, content, scratch):
    for start in (b"", json.dumps(SAME[form, num_texts][1][0]).encode() + b"\n"):
        scratch.write_bytes(start + content)
        found = attempt(lambda path: read(path, form, num_texts), str(scratch))
        assert len(found if isinstance(found, str) else found.labels) > 0
        assert not isinstance(found, str) or found.startswith(f"{scratch}: ")
        for number in (0, 1, 2):
            rows = attempt(lambda path, n=number: list(stream_texts(path, num_texts=n, may_be_json=True)), str(scratch))
            assert len(rows) > 0
            assert not isinstance(rows, str) or rows.startswith(f"{scratch}:")


any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)


@given(
    rows=st.lists(st.tuples(any_text, any_text, st.sampled_from(LABELS)), min_size=1), form=written, ascii=st.booleans()
)
def test_pairs_come_back_whatever_is_in_them(rows, form, ascii, scratch):  # noqa: A002
    keys = ("text_a", "text_b", "label")
    write_lines(scratch, [json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=ascii) for row in rows], form)
    found = read(scratch, "single_label", 2)
    assert list(zip(*found.columns, [LABELS[label] for label in found.labels], strict=True)) == rows


@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), form=written, text=texts())
def test_scores_come_back_to_the_last_bit(scores, form, text, scratch):
    write_lines(scratch, [json.dumps({"text": text, "score": score}) for score in scores], form)
    assert read(scratch, "score", 1).labels.tolist() == scores
