"""What stands in lines with scores, in groups to learn a ranking from, and in candidates to rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.data.labelled_lines import read_labelled
from bertorch.errors import UserError
from tests.data.hostile_files import attempt, damaged_bytes, texts, write_lines, written

WIDTHS = {"score": 1, "ranking": 2, "groups": 2}


def read(path, form, **options):
    return read_labelled(str(path), form, label_names=(), **({"num_texts": WIDTHS[form]} | options))


def write(folder, *lines: str):
    path = folder / "lines.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@given(
    rows=st.lists(st.tuples(texts(), texts(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1),
    form=written,
)
def test_scores_of_pairs_come_back(rows, form, scratch):
    write_lines(scratch, [f"{first}\t{second}\t{score!r}" for first, second, score in rows], form)
    found = read(scratch, "score", num_texts=2)
    assert list(zip(*found.columns, found.labels.tolist(), strict=True)) == rows


def test_scores_of_texts(tmp_path):
    found = read(write(tmp_path, "好\t5", "坏\t-1e-1"), "score")
    assert (list(found.columns[0]), found.labels.tolist()) == (["好", "坏"], [5.0, -0.1])
    assert found.labels.dtype == np.float64


def test_groups_have_their_right_candidate_first(tmp_path):
    found = read(write(tmp_path, "q\tp\tn\tm", "r\ts\tt\tu"), "groups")
    assert [list(column) for column in found.columns] == [["q", "r"], ["p", "s"], ["n", "t"], ["m", "u"]]
    assert (found.labels.tolist(), found.labels.dtype) == ([0, 0], np.int64)


def test_candidates_of_a_query_need_not_be_adjacent(tmp_path):
    lines = ["q\ta\t0", "r\tb\t1", "q\tc\t2.5", "s\td\t1", "r\ta\t0"]
    found = read(write(tmp_path, *lines), "ranking")
    assert [list(column) for column in found.columns] == [["q", "r", "q", "s", "r"], ["a", "b", "c", "d", "a"]]
    assert found.labels.tolist() == [[0, 0], [1, 1], [2.5, 0], [1, 2], [0, 1]]


def test_queries_without_a_relevant_candidate_are_dropped_and_counted(tmp_path, log_lines):
    path = write(tmp_path, "q\ta\t0", "r\tb\t1", "s\tc\t0", "q\td\t0", "r\ta\t0")
    found = read(path, "ranking")
    assert [list(column) for column in found.columns] == [["r", "r"], ["b", "a"]]
    assert found.labels[:, 0].tolist() == [1, 0]
    assert len(set(found.labels[:, 1])) == 1
    assert log_lines == [f"{path}: queries without a relevant candidate are left out: 2"]


@pytest.mark.parametrize(
    ("form", "lines", "message"),
    [
        ("score", ["好\t1", "坏"], ":2: expected 2 columns (text⇥score), got 1: '坏'"),
        ("score", ["好\t1", "坏\tfive"], ":2: expected a number as score (text⇥score), got 'five'"),
        ("score", ["好\tinf"], ":1: expected a number as score (text⇥score), got 'inf'"),
        ("score", ["好\t"], ":1: expected no empty column (text⇥score)"),
        ("ranking", ["q\ta\t1", "q\tb"], ":2: expected 3 columns (query⇥candidate⇥relevance), got 2"),
        ("ranking", ["q\ta\t1", "q\tb\t-1"], ":2: expected a relevance of at least 0 (query⇥candidate⇥relevance)"),
        ("ranking", ["q\ta\t1", "q\tb\thigh"], ":2: expected a number as relevance (query⇥candidate⇥relevance)"),
        ("ranking", ["q\ta\t0", "r\tb\t0"], ": expected queries with a relevant candidate (query⇥candidate⇥relevance"),
        ("groups", ["q\tp\tn", "q\tp"], ":2: expected 3 columns (query⇥positive⇥negative), got 2"),
        ("groups", ["q\tp\tn", "q\t\tn"], ":2: expected no empty column"),
        ("groups", ["q\tp", "r\ts"], ": expected at least 3 columns (query⇥positive⇥negative…), got 2"),
    ],
)
def test_errors_name_the_line(form, lines, message, tmp_path):
    path = write(tmp_path, *lines)
    with pytest.raises(UserError) as error:
        read(path, form)
    assert f"{path}{message}" in str(error.value)


def test_bad_lines_can_be_skipped(tmp_path, log_lines):
    path = write(tmp_path, "q\ta\t-1", "q\tb\t1", "q", "q\tc\t0")
    found = read(path, "ranking", on_bad_line="skip")
    assert found.labels.tolist() == [[1, 0], [0, 0]]
    assert any("skipped malformed lines: 2; the first: " in line for line in log_lines)


@given(content=damaged_bytes(b"a", b"b", b"a\tb", b"a\tb\t1", b"a\tb\tc", b"0", b"-2", b"1e999"))
@pytest.mark.parametrize("form", WIDTHS)
def test_a_reader_gives_rows_or_a_user_error(form, content, scratch):
    scratch.write_bytes(content)
    found = attempt(lambda path: read(path, form), str(scratch))
    if isinstance(found, str):
        assert found.startswith(f"{scratch}:")
    else:
        assert len(found.labels) == len(found.columns[0]) > 0
