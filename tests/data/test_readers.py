import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.data.readers import (
    read_label_names,
    read_labelled_texts,
    read_pairs,
    read_scored_pairs,
    read_sentences,
    stream_texts,
)
from bertorch.errors import UserError
from tests.data.hostile_files import attempt, damaged_bytes, texts, write_lines, written

LABELS = ["negative", "positive"]


@pytest.fixture
def write(tmp_path):
    def write_file(content: bytes | str) -> str:
        path = tmp_path / "file.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file


def test_single_texts(write):
    examples = read_labelled_texts(write("很好\tpositive\n不好 吃\tnegative\n"), LABELS)
    assert examples.columns == (["很好", "不好 吃"],)
    assert examples.labels.tolist() == [1, 0]
    assert examples.labels.dtype == np.int64
    assert len(examples.labels) == 2


def test_pairs(write):
    examples = read_labelled_texts(write("a\tb\t1\nc\td\t0\n"), ["0", "1"], num_texts=2)
    assert examples.columns == (["a", "c"], ["b", "d"])
    assert examples.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf\xe5\xa5\xbd\tpositive\n",
        b"\xe5\xa5\xbd\tpositive\r\n",
        b"\xe5\xa5\xbd\tpositive",
        b"\xe5\xa5\xbd\tpositive\n\n\r\n  \n",
        b"\xe5\xa5\xbd\tpositive \n",
    ],
    ids=["byte-order mark", "CRLF", "no newline at the end", "blank lines at the end", "space after the label"],
)
def test_harmless_variations(write, content):
    examples = read_labelled_texts(write(content), LABELS)
    assert (examples.columns, examples.labels.tolist()) == ((["好"],), [1])


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r"])
def test_only_a_newline_ends_a_line(write, separator):
    examples = read_labelled_texts(write(f"好{separator}吃\tpositive\n"), LABELS)
    assert examples.columns == ([f"好{separator}吃"],)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"text", "expected 2 columns (text⇥label), got 1: 'text'"),
        (
            b"a\tb\tpositive",
            "expected 2 columns (text⇥label), got 3: 'a\\tb\\tpositive'; lines of a⇥b⇥label need --is_text_pair",
        ),
        (b"a\tb\tc\tpositive", "expected 2 columns (text⇥label), got 4: 'a\\tb\\tc\\tpositive'"),
        (b"text\tneutral", "expected one of the labels (negative, positive), got 'neutral'"),
        (b"text\t", "expected no empty column (text⇥label), got 'text\\t'"),
        (b" \tpositive", "expected no empty column (text⇥label), got ' \\tpositive'"),
        (b"\xe5\xa5\xbd\xff\tpositive", "expected UTF-8, got byte 0xff at byte 4 of the line"),
        (b"", "expected an example, got an empty line"),
    ],
)
def test_a_malformed_line_is_named(write, line, expected):
    path = write(b"good\tpositive\n" + line + b"\ngood\tnegative\n")
    with pytest.raises(UserError) as error:
        read_labelled_texts(path, LABELS)
    assert str(error.value).splitlines() == [
        f"{path}: malformed lines: 1",
        f"{path}:2: {expected}",
        "Fix them, or skip them with --on_bad_line skip.",
    ]


def test_the_first_ten_malformed_lines_are_shown(write):
    path = write("good\tpositive\n" + "bad\n" * 12)
    with pytest.raises(UserError) as error:
        read_labelled_texts(path, LABELS)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}: malformed lines: 12, the first 10 of them"
    assert [line.split(": expected")[0] for line in lines[1:-1]] == [f"{path}:{number}" for number in range(2, 12)]


def test_skipping_malformed_lines_says_how_many(write, log_lines):
    path = write("good\tpositive\nbad\nfine\tnegative\nfine\twrong\n")
    examples = read_labelled_texts(path, LABELS, on_bad_line="skip")
    assert examples.columns == (["good", "fine"],)
    assert len(log_lines) == 1
    assert f"{path}: skipped malformed lines: 2; the first: {path}:2: expected 2 columns" in log_lines[0]


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file(write, content):
    with pytest.raises(UserError, match="expected one example a line, got no line"):
        read_labelled_texts(write(content), LABELS)


def test_nothing_left_after_skipping(write):
    with pytest.raises(UserError, match="got no good line"):
        read_labelled_texts(write("bad\n"), LABELS, on_bad_line="skip")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere.txt: expected a readable text file, got: No such file"):
        read_labelled_texts(str(tmp_path / "nowhere.txt"), LABELS)
    with pytest.raises(UserError, match="expected a readable text file, got a folder; name a file in it"):
        read_labelled_texts(str(tmp_path), LABELS)


def test_labels_keep_their_order(write):
    assert read_label_names(write("\ufeffb\r\na\r\n\r\n")) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\nb\na\n", ":3: expected each label once, got 'a' again, first on line 1"),
        ("a\n\nb\n", ":2: expected an example, got an empty line"),
        ("a\nb\x00\n", ":2: expected a label without control characters, got 'b\\x00'"),
        ("a\rb\rc\n", ":1: expected a label without control characters, got 'a\\rb\\rc'"),
        ("a\tb\nc\n", ":1: expected a label without control characters, got 'a\\tb'"),
        ("a\n\ufeffb\n", ":2: expected a label without control characters, got '\\ufeffb'"),
        ("a\nb\u2028c\n", ":2: expected a label without control characters, got 'b\\u2028c'"),
        ("a\n", "expected at least two labels, one a line, got only 'a'"),
        ("", "got no line"),
    ],
)
def test_bad_label_files(write, content, expected):
    path = write(content)
    with pytest.raises(UserError) as error:
        read_label_names(path)
    assert expected in str(error.value)
    assert path in str(error.value)


def errors(read, path: str) -> list[str]:
    """What a reader says of each malformed line."""
    with pytest.raises(UserError) as error:
        read(path)
    return [line.removeprefix(f"{path}:") for line in str(error.value).splitlines()[1:-1]]


def test_sentences(write):
    assert read_sentences(write("\ufeff今天 好\r\n明天\n\n")) == ["今天 好", "明天"]


@pytest.mark.parametrize("blank", ["", " \t", "\u3000", "\xa0\u2028", "\x1c"])
def test_a_line_of_any_white_space_is_blank(write, blank):
    assert read_sentences(write(f"一\n\u3000二\n{blank}\n")) == ["一", "\u3000二"]
    assert errors(read_sentences, write(f"一\n{blank}\n二\n")) == ["2: expected an example, got an empty line"]


@pytest.mark.parametrize("line", ['{"text": "好"}', '{"text_a": "好", "text_b": "很好", "score": 1}'])
def test_json_lines_are_no_sentences(write, line):
    path = write(f"{line}\n好\n")
    (error,) = errors(read_sentences, path)
    assert error.startswith("1: expected plain texts, which JSON lines are not here, got ")
    with pytest.raises(UserError, match=":1: expected plain texts, which JSON lines are not here"):
        list(stream_texts(path, num_texts=1))
    plain = write('{"code": "if (a) {"}\n好\n')
    assert read_sentences(plain) == ['{"code": "if (a) {"}', "好"]
    assert list(stream_texts(plain, num_texts=1)) == [('{"code": "if (a) {"}',), ("好",)]


def test_malformed_sentences(write):
    path = write("好\n\na\tb\n")
    assert errors(read_sentences, path) == [
        "2: expected an example, got an empty line",
        "3: expected 1 column (sentence), got 2: 'a\\tb'",
    ]


def test_positives_and_hard_negatives(write):
    assert read_pairs(write("a\tb\nc\td\n")) == (["a", "c"], ["b", "d"])
    assert read_pairs(write("a\tb\tn\tm\nc\td\to\tp\n")) == (["a", "c"], ["b", "d"], ["n", "o"], ["m", "p"])


def test_every_line_has_as_many_hard_negatives(write):
    path = write("alone\na\tb\tn\nc\td\ne\tf\tg\th\ni\tj\t \n")
    form = "expected 3 columns (anchor⇥positive⇥negative), got"
    assert errors(read_pairs, path) == [
        "1: expected at least 2 columns (anchor⇥positive), got 1: 'alone'",
        f"3: {form} 2: 'c\\td'",
        f"4: {form} 4: 'e\\tf\\tg\\th'",
        "5: expected no empty column (anchor⇥positive⇥negative), got 'i\\tj\\t '",
    ]
    assert read_pairs(path, on_bad_line="skip") == (["a"], ["b"], ["n"])


def test_scored_pairs(write):
    pairs = read_scored_pairs(write("a\tb\t3\nc\td\t 0.5\ne\tf\t-1e-2\ng\th\t+.5E1\ni\tj\t7.\n"))
    assert pairs.columns == (["a", "c", "e", "g", "i"], ["b", "d", "f", "h", "j"])
    assert pairs.labels.tolist() == [3.0, 0.5, -0.01, 5.0, 7.0]
    assert pairs.labels.dtype == np.float64


@pytest.mark.parametrize(
    "score",
    ["high", "nan", "inf", "1,5", "3 4", "1e400", "-infinity", "1_000", "0x10", "１", "٣", "1e", ".", "--1", "1\x00"],
)
def test_a_score_is_a_finite_number(write, score):
    expected = f"2: expected a number as score (a⇥b⇥score), got {score!r}"
    assert errors(read_scored_pairs, write(f"a\tb\t1\nc\td\t{score}\n")) == [expected]


def test_scores_that_are_all_the_same_cannot_be_correlated_with(write):
    with pytest.raises(UserError, match="expected scores that differ, to correlate with, got only 1$"):
        read_scored_pairs(write("a\tb\t1\nc\td\t1.0\n"))


def test_an_error_quotes_only_the_beginning_of_what_is_long(write):
    """A file without line breaks is one label, or one line of very many columns."""
    long = "标签" * 10_000
    labels = write(f"{long}\n")
    for read in (read_label_names, lambda path: read_labelled_texts(path, [long, "b"])):
        with pytest.raises(UserError) as error:
            read(labels)
        assert len(str(error.value)) < 1000
    with pytest.raises(UserError) as error:
        read_labelled_texts(write(f"text\t{long}x\n"), [long, "b"])
    assert len(str(error.value)) < 1000
    form = "(anchor⇥positive⇥negative⇥negative⇥negative…)"
    assert errors(read_pairs, write("a\t" * 99_999 + "a\nb\tc\n")) == [
        f"2: expected 100000 columns {form}, got 2: 'b\\tc'"
    ]


def test_nul_bytes_and_control_characters_stay_in_a_text(write):
    assert read_sentences(write("好\x00\x07吃\n\x00\x00\n")) == ["好\x00\x07吃", "\x00\x00"]


READERS = {
    "labels": read_label_names,
    "texts": lambda path: read_labelled_texts(path, ["a", "b"]),
    "pairs of texts": lambda path: read_labelled_texts(path, ["a", "b"], num_texts=2),
    "scored pairs": read_scored_pairs,
    "sentences": read_sentences,
    "pairs": read_pairs,
}


@given(content=damaged_bytes(b"a", b"b", b"a\tb", b"a\tb\ta", b"1", b"1e999"))
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_gives_rows_or_a_user_error(reader, content, scratch):
    scratch.write_bytes(content)
    rows_or_error = attempt(READERS[reader], str(scratch))
    assert len(rows_or_error) > 0
    assert not isinstance(rows_or_error, str) or rows_or_error.startswith(f"{scratch}: ")


@given(rows=st.lists(texts(), min_size=1), form=written)
def test_sentences_come_back(rows, form, scratch):
    write_lines(scratch, rows, form)
    assert read_sentences(str(scratch)) == rows


@given(rows=st.lists(st.tuples(texts(), texts(), st.sampled_from(LABELS)), min_size=1), form=written)
def test_labelled_pairs_come_back(rows, form, scratch):
    write_lines(scratch, ["\t".join(row) for row in rows], form)
    read = read_labelled_texts(str(scratch), LABELS, num_texts=2)
    assert list(zip(*read.columns, [LABELS[label] for label in read.labels], strict=True)) == rows


@given(rows=st.integers(2, 4).flatmap(lambda width: st.lists(st.tuples(*[texts()] * width), min_size=1)), form=written)
def test_pairs_come_back(rows, form, scratch):
    write_lines(scratch, ["\t".join(row) for row in rows], form)
    assert list(zip(*read_pairs(str(scratch)), strict=True)) == rows


@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, unique=True), form=written)
def test_scores_come_back_to_the_last_bit(scores, form, scratch):
    write_lines(scratch, [f"a\tb\t{score!r}" for score in scores], form)
    assert read_scored_pairs(str(scratch)).labels.tolist() == scores
