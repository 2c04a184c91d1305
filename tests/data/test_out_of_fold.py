import numpy as np
import pytest

from bertorch.data.out_of_fold import OutOfFold, read_out_of_fold, write_out_of_fold
from bertorch.errors import UserError

HEADER = "number\tlabel\tfold\tp:a\tp:b\ttext\n"
LINE = "1\ta\t1\t0.25\t0.75\t好\n"


def rows(**texts) -> OutOfFold:
    count = len(next(iter(texts.values())))
    probabilities = np.linspace(0, 1, count)
    return OutOfFold(
        ["text", "p:b"],  # labels that look like other columns
        np.arange(count, 0, -1),
        np.arange(count) % 2,
        np.arange(count) % 3 + 1,
        np.stack([probabilities, 1 - probabilities], axis=1),
        texts,
    )


@pytest.mark.parametrize("texts", [{"text": ["好", "b"]}, {"a": ["x", "y"], "b": ["z", ""]}, {"token": ["我", "们"]}])
def test_what_is_written_is_read(texts, tmp_path):
    path = str(tmp_path / "out_of_fold.tsv")
    expected = rows(**texts)
    write_out_of_fold(path, expected, overwrite=False)
    read = read_out_of_fold(path)
    assert (read.label_names, read.texts) == (expected.label_names, expected.texts)
    for name in ("numbers", "labels", "folds", "probabilities"):
        assert getattr(read, name).tolist() == getattr(expected, name).tolist()
    assert read.of_tokens == ("token" in texts)


def test_many_labels_are_written_with_the_rounding_of_each(tmp_path):
    count, path = 3000, str(tmp_path / "out_of_fold.tsv")
    probabilities = np.full((1, count), 5.5e-7)
    probabilities[0, 0] = 1 - probabilities[0, 1:].sum()
    names = [str(number) for number in range(count)]
    one = np.array([1])
    write_out_of_fold(path, OutOfFold(names, one, np.array([0]), one, probabilities, {"text": ["a"]}), overwrite=False)
    assert abs(read_out_of_fold(path).probabilities.sum() - 1) > 1e-3


def test_tabs_and_line_breaks_keep_the_columns(tmp_path):
    path = tmp_path / "out_of_fold.tsv"
    write_out_of_fold(str(path), rows(text=["a\tb\nc", "d"]), overwrite=False)
    assert read_out_of_fold(str(path)).texts == {"text": ["a b c", "d"]}
    with pytest.raises(UserError, match="expected no file of this name"):
        write_out_of_fold(str(path), rows(text=["a"]), overwrite=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one example a line, got no line"),
        (HEADER, "expected a row for each training example, got only the header"),
        ("\n" + HEADER + LINE, r"malformed lines: 1\n.*:1: expected an example, got an empty line"),
        (LINE, ":1: expected the header number⇥label⇥fold⇥p:NAME…⇥text"),
        (HEADER.replace("p:b", "p:a") + LINE, ":1: expected "),
        (HEADER.replace("\tp:b", "") + LINE, ":1: expected the header"),
        (HEADER.replace("text", "words") + LINE, ":1: expected the header"),
        (HEADER + LINE + "1\ta\n", ":3: expected 6 columns as in the header, got 2"),
        (HEADER + LINE.replace("\ta\t", "\tc\t"), r":2: expected one of the labels of the header \(a, b\), got 'c'"),
        (HEADER + LINE.replace("1\ta", "0\ta"), ":2: expected a whole number from 1 on as number, got '0'"),
        (HEADER + LINE.replace("a\t1", "a\tx"), ":2: expected a whole number from 1 on as fold, got 'x'"),
        (HEADER + LINE.replace("0.25", "half"), ":2: expected probabilities, got"),
        (HEADER + LINE.replace("0.25", "nan"), ":2: expected probabilities whose sum is 1, got"),
        (HEADER + LINE.replace("0.25", "0.5"), ":2: expected probabilities whose sum is 1, got"),
        (HEADER + LINE.replace("0.25\t0.75", "-0.5\t1.5"), ":2: expected probabilities whose sum is 1, got"),
    ],
)
def test_malformed_files(text, message, tmp_path):
    path = tmp_path / "out_of_fold.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_out_of_fold(str(path))
