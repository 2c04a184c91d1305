import pytest

from bertorch.errors import UserError
from bertorch.prepare.tables import convert_table


def convert(path, columns="review,label", delimiter="comma", encoding="utf-8", **labels):
    return convert_table(path, columns.split(","), delimiter=delimiter, encoding=encoding, labels=labels)


def test_columns_by_name_in_the_order_wanted(file):
    path = file('label,id,review\n1,7,很好\n0,8,"不好, 真的""差"""\n')
    assert convert(path) == ["很好\t1", '不好, 真的"差"\t0']
    assert convert(path, columns="review") == ["很好", '不好, 真的"差"']


def test_labels_are_mapped(file):
    path = file("label,review\n1,好\n 0,差\n")
    labels = {"0": "negative", "1": "positive"}
    assert convert_table(path, ["review", "label"], delimiter="comma", encoding="utf-8", labels=labels) == [
        "好\tpositive",
        "差\tnegative",
    ]
    with pytest.raises(UserError, match=r":3: expected one of the values of --map_label \(1\), got '0'"):
        convert_table(path, ["review", "label"], delimiter="comma", encoding="utf-8", labels={"1": "positive"})


def test_line_breaks_and_tabs_in_a_cell_become_a_space(file):
    assert convert(file('review,label\r\n"一\r\n\r\n二\t三",1\r\n四,0\r\n')) == ["一 二 三\t1", "四\t0"]


def test_other_delimiters(file):
    assert convert(file("review;label\na,b;1\n"), delimiter="semicolon") == ["a,b\t1"]
    assert convert(file('label\treview\n1\t他说"好\n0\t"不"\n'), delimiter="tab") == ['他说"好\t1', '"不"\t0']


def test_other_encodings(file):
    path = file("review,label\n好,1\n差,0\n".encode("gb18030"))
    assert convert(path, encoding="gb18030") == ["好\t1", "差\t0"]
    with pytest.raises(UserError, match=r"published.txt:2: expected utf-8, got byte 0xba; name another --encoding"):
        convert(path)
    with pytest.raises(UserError, match="--encoding: expected an encoding of text that Python knows, got 'gbkk'"):
        convert(path, encoding="gbkk")
    with pytest.raises(UserError, match="--encoding: expected an encoding of text that Python knows, got 'undefined'"):
        convert(path, encoding="undefined")
    assert convert(file("review,label\n好,1\n".encode("utf-16")), encoding="utf-16") == ["好\t1"]
    assert convert(file("\ufeffreview,label\n好,1\n")) == ["好\t1"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ":1: expected a header with review, label, each once, got none"),
        ("text,label\na,1\n", ":1: expected a header with review, label, each once, got text, label"),
        ("review,label,label\na,1,1\n", ":1: expected a header with review, label, each once, got review"),
        ("review,label\n", ": expected rows under the header, got no line"),
        ("review,label\na,1\nb\n", ":3: expected 2 cells as in the header, got 1"),
        ("review,label\na,1\n\nb,c,1\n", ":4: expected 2 cells as in the header, got 3"),
        ('review,label\n"a\nb",1\n ,1\n', ":4: expected no empty text or label"),
        ('review,label\na,1\n"b" c,1\n', ":3: expected a row of CSV, got: "),
        ('review,label\na,1\n"b,1\nc,1\n', ":3: expected a row of CSV, got: "),
        ("review,label\na\rb,1\n", ":2: expected a row of CSV, got: "),
    ],
)
def test_malformed_rows_are_named(file, content, expected):
    path = file(content)
    with pytest.raises(UserError) as error:
        convert(path)
    assert path + expected in str(error.value)


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match="expected a readable CSV file, got a folder"):
        convert(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("review,label\na,1\nb\nc,0\n", ["a\t1", "c\t0"]),
        ('review,label\na,1\n"b" c,1\nd,0\n', ["a\t1", "d\t0"]),
        ('review,label\na,1\n"never closed,1\n"c, d",0\n"e""\nf",1\n', ["a\t1", "c, d\t0", 'e" f\t1']),
        ('review,label\n"a,1\nb,0\n', ["b\t0"]),
        ("review,label\n ,1\n好,1\n", ["好\t1"]),
    ],
)
def test_bad_rows_are_skipped_on_demand_and_cost_no_other(file, content, kept, log_lines):
    path = file(content)
    options = {"delimiter": "comma", "encoding": "utf-8", "labels": {}}
    assert convert_table(path, ["review", "label"], **options, on_bad_row="skip") == kept
    assert f"{path}: skipped malformed lines: 1; the first: {path}:" in log_lines[-1]
    with pytest.raises(UserError, match="skip them with --on_bad_row skip"):
        convert_table(path, ["review", "label"], **options)


def test_the_rest_of_a_bad_cell_is_no_row(file, log_lines):
    path = file('review,label\n"He said "hi"\nand more\nand left",1\nok,0\n')
    options = {"delimiter": "comma", "encoding": "utf-8", "labels": {}}
    assert convert_table(path, ["review", "label"], **options, on_bad_row="skip") == ["ok\t0"]
    assert f"{path}: skipped malformed lines: 3; the first: {path}:2: expected a row of CSV" in log_lines[-1]


def test_a_cell_that_swallows_rows_is_told(file, log_lines):
    """Two stray quotation marks make one cell of all that is between them, which is correct CSV."""
    path = file('review,label\na,1\n"b,1\nc,0\nd",0\n"e\nf",1\n')
    assert convert(path) == ["a\t1", "b,1 c,0 d\t0", "e f\t1"]
    (warning,) = log_lines
    assert warning.startswith(f"{path}:3: a cell goes on over lines that look like rows; 1 such rows in all")
