import numpy as np
import pytest

from bertorch.data.readers import read_labelled_texts, read_labels, read_pairs, read_scored_pairs, read_sentences
from bertorch.errors import UserError

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
    assert len(examples) == 2


def test_pairs(write):
    examples = read_labelled_texts(write("a\tb\t1\nc\td\t0\n"), ["0", "1"], texts=2)
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
    ("line", "flaw"),
    [
        (b"text", "expected 2 columns (text⇥label), got 1: 'text'"),
        (b"a\tb\tpositive", "expected 2 columns (text⇥label), got 3: 'a\\tb\\tpositive'"),
        (b"text\tneutral", "expected one of the labels (negative, positive), got 'neutral'"),
        (b"text\t", "expected no empty column (text⇥label), got 'text\\t'"),
        (b" \tpositive", "expected no empty column (text⇥label), got ' \\tpositive'"),
        (b"\xe5\xa5\xbd\xff\tpositive", "expected UTF-8, got byte 0xff at byte 4 of the line"),
        (b"", "expected an example, got an empty line"),
    ],
)
def test_a_malformed_line_is_named(write, line, flaw):
    path = write(b"good\tpositive\n" + line + b"\ngood\tnegative\n")
    with pytest.raises(UserError) as error:
        read_labelled_texts(path, LABELS)
    assert str(error.value).splitlines() == [
        f"{path}: malformed lines: 1",
        f"{path}:2: {flaw}",
        "Mend them, or drop them with --on_bad_line skip.",
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
    assert f"{path}: dropped malformed lines: 2; the first: {path}:2: expected 2 columns" in log_lines[0]


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
    with pytest.raises(UserError, match="expected a readable text file, got: Is a directory"):
        read_labelled_texts(str(tmp_path), LABELS)


def test_labels_keep_their_order(write):
    assert read_labels(write("\ufeffb\r\na\r\n\r\n")) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        ("a\nb\na\n", ":3: expected each label once, got 'a' again, first on line 1"),
        ("a\n\nb\n", ":2: expected an example, got an empty line"),
        ("a\n", "expected at least two labels, one a line, got only 'a'"),
        ("", "got no line"),
    ],
)
def test_bad_label_files(write, content, flaw):
    path = write(content)
    with pytest.raises(UserError) as error:
        read_labels(path)
    assert flaw in str(error.value)
    assert path in str(error.value)


def flaws(read, path: str) -> list[str]:
    """What a reader says of each malformed line."""
    with pytest.raises(UserError) as error:
        read(path)
    return [line.removeprefix(f"{path}:") for line in str(error.value).splitlines()[1:-1]]


def test_sentences(write):
    assert read_sentences(write("\ufeff今天 好\r\n明天\n\n")) == ["今天 好", "明天"]


def test_malformed_sentences(write):
    path = write("好\n\na\tb\n")
    assert flaws(read_sentences, path) == [
        "2: expected an example, got an empty line",
        "3: expected 1 column (sentence), got 2: 'a\\tb'",
    ]


def test_positives_and_hard_negatives(write):
    assert read_pairs(write("a\tb\nc\td\n")) == (["a", "c"], ["b", "d"])
    assert read_pairs(write("a\tb\tn\tm\nc\td\to\tp\n")) == (["a", "c"], ["b", "d"], ["n", "o"], ["m", "p"])


def test_every_line_has_as_many_hard_negatives(write):
    path = write("alone\na\tb\tn\nc\td\ne\tf\tg\th\ni\tj\t \n")
    form = "expected 3 columns (anchor⇥positive⇥negative), got"
    assert flaws(read_pairs, path) == [
        "1: expected at least 2 columns (anchor⇥positive), got 1: 'alone'",
        f"3: {form} 2: 'c\\td'",
        f"4: {form} 4: 'e\\tf\\tg\\th'",
        "5: expected no empty column (anchor⇥positive⇥negative), got 'i\\tj\\t '",
    ]
    assert read_pairs(path, on_bad_line="skip") == (["a"], ["b"], ["n"])


def test_scored_pairs(write):
    pairs = read_scored_pairs(write("a\tb\t3\nc\td\t 0.5\ne\tf\t-1e-2\n"))
    assert pairs.columns == (["a", "c", "e"], ["b", "d", "f"])
    assert pairs.labels.tolist() == [3.0, 0.5, -0.01]
    assert pairs.labels.dtype == np.float64


@pytest.mark.parametrize("score", ["high", "nan", "inf", "1,5", "3 4"])
def test_a_score_is_a_finite_number(write, score):
    expected = f"2: expected a number as score (a⇥b⇥score), got {score!r}"
    assert flaws(read_scored_pairs, write(f"a\tb\t1\nc\td\t{score}\n")) == [expected]


def test_scores_that_are_all_the_same_cannot_be_correlated_with(write):
    with pytest.raises(UserError, match="expected scores that differ, to correlate with, got only 1$"):
        read_scored_pairs(write("a\tb\t1\nc\td\t1.0\n"))
