"""Queries, passages and which are relevant: both forms, what is left out, and what is wrong with lines."""

import json

import numpy as np
import pytest

from bertorch.data.fingerprint import content_digest, file_digest, files_digest
from bertorch.data.numbering import in_first_order
from bertorch.data.retrieval import (
    FILES,
    FORMS,
    files_of,
    read_query_passages,
    read_retrieval_files,
    read_retrieval_folder,
    retrieval_form,
)
from bertorch.errors import UserError
from tests.conftest import RETRIEVAL, STS

CORPUS = [
    {"_id": "a", "title": "甲", "text": "一"},
    {"_id": 7, "text": " 二 "},
    {"_id": "q2", "title": "", "text": "三"},
]
QUERIES = [{"_id": "q1", "text": "问一", "metadata": {}}, {"_id": "q2", "text": "问二"}, {"_id": "q3", "text": "问三"}]
QRELS = ["query-id\tcorpus-id\tscore", "q2\tq2\t1", "q2\t7\t2", "q1\ta\t0", "q3\ta\t1", "q3\tq2\t0.5", "q1\t7\t-1"]


def write(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS):
    folder.mkdir(exist_ok=True)
    for name, rows in zip(FILES[:2], (corpus, queries), strict=True):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    (folder / FILES[2]).write_text("".join(f"{line}\n" for line in qrels))
    return str(folder)


def test_a_folder(tmp_path, log_lines):
    read = read_retrieval_folder(write(tmp_path))
    assert list(read.passages) == ["甲 一", "二", "三"]
    assert list(read.queries) == ["问二", "问三"]  # q1 has no score above 0
    assert read.is_kept.tolist() == [False, True, True]
    assert read.own.tolist() == [2, -1]
    assert read.relevant.tolist() == [[0, 1], [1, 0], [1, 2]]  # without the passage q2 of the query q2
    assert read.grades.tolist() == [2.0, 1.0, 0.5]
    assert f"{tmp_path}/qrels.tsv: queries without a relevant passage are left out: 1" in log_lines
    (warning,) = [line for line in log_lines if "another text" in line]
    assert warning.startswith(
        f"{tmp_path}/queries.jsonl: queries whose id is also that of a passage with another text: 1, "
    )
    assert "the first 'q2'; such a passage counts as the query itself" in warning


def test_a_query_that_is_a_passage_needs_no_warning(tmp_path, log_lines):
    queries = [*QUERIES[:1], {"_id": "q2", "text": "三"}, *QUERIES[2:]]
    read_retrieval_folder(write(tmp_path, queries=queries))
    assert not any("another text" in line for line in log_lines)


def test_pairs(tmp_path):
    path = tmp_path / "pairs.txt"
    lines = ["甲\t一", "乙\t二", "甲\t二", "甲\t一", "一\t一", "丙\t甲", "甲\t甲"]
    path.write_text("".join(f"{line}\n" for line in lines))
    read = read_query_passages(str(path))
    assert (list(read.queries), list(read.passages)) == (["甲", "乙", "丙"], ["一", "二", "甲"])
    assert read.own.tolist() == [2, -1, -1]
    assert read.relevant.tolist() == [[0, 0], [0, 1], [1, 1], [2, 2]]
    assert read.is_kept.tolist() == [True, True, False, True]  # 一 has only itself
    assert read.grades.tolist() == [1.0] * 4


@pytest.mark.parametrize("seed", range(20))
def test_random_pairs_against_plain_loops(seed, tmp_path):
    rows = np.random.default_rng(seed).integers(0, 9, (25, 2)).tolist()
    (tmp_path / "pairs").write_text("".join(f"t{a}\tt{b}\n" for a, b in rows))
    passages = list(dict.fromkeys(b for _, b in rows))
    relevant = {a: sorted({passages.index(d) for c, d in rows if c == a and d != a}) for a, _ in rows}
    queries = [query for query in relevant if relevant[query]]
    read = read_query_passages(str(tmp_path / "pairs"))
    assert list(read.passages) == [f"t{each}" for each in passages]
    assert list(read.queries) == [f"t{each}" for each in queries]
    assert read.own.tolist() == [passages.index(each) if each in passages else -1 for each in queries]
    assert read.relevant.tolist() == [[row, to] for row, each in enumerate(queries) for to in relevant[each]]


def test_numbers_in_the_order_in_which_they_first_come():
    different, first, places = (each.tolist() for each in in_first_order(np.array([5, 2, 5, 9, 2])))
    assert (different, first, places) == ([5, 2, 9], [0, 1, 3], [0, 1, 0, 2, 1])


def test_the_samples_are_recognised():
    assert retrieval_form(str(RETRIEVAL)) is FORMS["folder"]
    assert retrieval_form(str(RETRIEVAL / "pairs.txt")) is FORMS["pairs"]
    assert retrieval_form(str(STS)) is None
    folder, pairs = read_retrieval_folder(str(RETRIEVAL)), read_query_passages(str(RETRIEVAL / "pairs.txt"))
    assert len(folder.passages) == 30
    assert list(folder.queries) == list(pairs.queries)


@pytest.mark.parametrize(("line", "expected"), [
    ("a\tb\n", "pairs"), ("a\tb\t1\n", None), ('{"query": "a\tb"}\n', "pairs"), ('{"text_a": "a", "label": 1}\n', None),
    ("a\n", None), ("a\tb\na\tb\tc\na\tb\n", "pairs"), ("a\tb\na\tb\tc\n", None),
])  # fmt: skip
def test_a_file_is_of_pairs_by_most_of_its_lines(line, expected, tmp_path):
    (tmp_path / "file").write_text(line)
    assert retrieval_form(str(tmp_path / "file")) is FORMS.get(expected)


@pytest.mark.parametrize(("changed", "line", "message"), [
    ("corpus", '{"_id": "a", "text": "二"}', "corpus.jsonl:4: expected each _id once, got 'a' again"),
    ("corpus", '{"_id": "b", "title": "", "text": " "}', "corpus.jsonl:4: expected a text that is not empty"),
    ("corpus", '{"_id": "b", "text": ["一"]}', 'corpus.jsonl:4:22: expected a text as "text"'),
    ("corpus", '{"_id": 1.5, "text": "一"}', 'corpus.jsonl:4:9: expected an id as a string or whole number as "_id"'),
    ("corpus", '{"id": "b", "text": "一"}', 'corpus.jsonl:4: expected "_id"'),
    ("corpus", "b\t一", "corpus.jsonl:4:1: expected a JSON object"),
    ("queries", '{"_id": "q3", "text": "二"}', "queries.jsonl:4: expected each _id once, got 'q3' again"),
    ("queries", '{"_id": "q4", "title": "好", "text": ""}', "queries.jsonl:4: expected a text that is not empty"),
    ("qrels", "q4\ta\t1", "qrels.tsv:8: expected a query-id that {}/queries.jsonl has, got 'q4'"),
    ("qrels", "q1\tb\t1", "qrels.tsv:8: expected a corpus-id that {}/corpus.jsonl has, got 'b'"),
    ("qrels", "q2\t7\t1", "qrels.tsv:8: expected each pair of ids once, got 'q2\\t7\\t1' again"),
    ("qrels", "q1\tq2\tx", "qrels.tsv:8: expected a number as score (query-id⇥corpus-id⇥score), got 'x'"),
    ("qrels", "q1\ta", "qrels.tsv:8: expected 3 columns (query-id⇥corpus-id⇥score), got 2"),
])  # fmt: skip
def test_malformed_lines(changed, line, message, tmp_path, log_lines):
    rows = {"corpus": CORPUS, "queries": QUERIES, "qrels": QRELS}
    path = write(tmp_path, **(rows | {changed: [*rows[changed], line]}))
    with pytest.raises(UserError) as raised:
        read_retrieval_folder(path)
    assert f"{path}/{message.format(path)}" in str(raised.value)
    whole = read_retrieval_folder(write(tmp_path))
    skipped = read_retrieval_folder(write(tmp_path, **(rows | {changed: [*rows[changed], line]})), on_bad_line="skip")
    assert skipped.relevant.tolist() == whole.relevant.tolist()
    assert any("skipped malformed lines: 1" in line for line in log_lines)


@pytest.mark.parametrize(("rows", "message"), [
    ({"qrels": QRELS[1:]}, "qrels.tsv:1: expected the header query-id⇥corpus-id⇥score, got 'q2\\tq2\\t1'"),
    ({"qrels": QRELS[:2]}, "qrels.tsv: expected a query with a relevant passage that is not the query itself"),
    ({"qrels": QRELS[:1]}, "qrels.tsv: expected a query with a relevant passage"),
    ({"qrels": []}, "qrels.tsv: expected one example a line, got no line"),
    ({"corpus": []}, "corpus.jsonl: expected one example a line, got no line"),
    ({"queries": []}, "queries.jsonl: expected one example a line, got no line"),
])  # fmt: skip
def test_what_makes_no_data(rows, message, tmp_path):
    path = write(tmp_path, **rows)
    with pytest.raises(UserError) as raised:
        read_retrieval_folder(path)
    assert f"{path}/{message}" in str(raised.value)


def test_pairs_of_texts_with_themselves_are_no_data(tmp_path):
    (tmp_path / "pairs").write_text("甲\t甲\n乙\t乙\n")
    with pytest.raises(UserError, match="pairs: expected a query with a relevant passage that is not the query itself"):
        read_query_passages(str(tmp_path / "pairs"))


def test_a_folder_without_the_files(tmp_path):
    with pytest.raises(UserError, match="a folder with corpus.jsonl, queries.jsonl, qrels.tsv, got one without corpus"):
        read_retrieval_folder(str(tmp_path))
    write(tmp_path)
    (tmp_path / "qrels.tsv").unlink()
    with pytest.raises(UserError, match=r"without qrels.tsv; BEIR's folders have qrels/test.tsv: link it as qrels.tsv"):
        read_retrieval_folder(str(tmp_path))


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path):
    path = write(tmp_path / "one")
    assert read_retrieval_files(*files_of(path)).grades.tolist() == [2.0, 1.0, 0.5]
    digest = content_digest(path)
    assert digest == files_digest(files_of(path))
    (tmp_path / "one" / "notes").write_text("not of the data")
    assert content_digest(path) == digest == content_digest(write(tmp_path / "two"))
    assert content_digest(write(tmp_path / "two", qrels=QRELS[:-1])) != digest
    assert content_digest(str(STS)) == file_digest(str(STS))
    assert content_digest(str(tmp_path)) is content_digest(str(tmp_path / "missing")) is None
