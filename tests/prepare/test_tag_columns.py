import json

import pytest

from bertorch.errors import UserError
from bertorch.prepare.tag_columns import read_tag_columns, read_tag_json, tagged_lines

BMES_ROWS = "我 S-PER\n在 O\n北 B-LOC\n京 M-LOC\n市 E-LOC\n\n好 O\n"
EXPECTED = [
    '{"text": ["我", "在", "北", "京", "市"], "label": ["S-PER", "O", "B-LOC", "I-LOC", "I-LOC"]}',
    '{"text": ["好"], "label": ["O"]}',
]


def convert(path, layout="auto", source="auto", target="bios", *, first_character=False, strict=False):
    sentences = read_tag_columns(path, layout, first_character=first_character)
    return tagged_lines(path, sentences, source=source, target=target, strict=strict)


@pytest.mark.parametrize(
    "published",
    [
        BMES_ROWS,  # Weibo, MSRA
        BMES_ROWS.replace(" ", "\t"),
        BMES_ROWS.replace("M-", "I-"),  # BIOES
        "\n\n" + BMES_ROWS.replace("\n\n", "\n \u3000\n\n") + "\n\n",  # more blank lines than one
        "\ufeff" + BMES_ROWS.replace("\n", "\r\n"),
        "我 在 北 京 市\tS-PER O B-LOC M-LOC E-LOC\n好\tO\n",  # Resume, OntoNotes 4
        "我 在 北 京 市 \tS-PER O B-LOC M-LOC E-LOC \n\n好\tO",
    ],
)
def test_layouts(file, published):
    assert convert(file(published)) == EXPECTED


def test_bio_columns(file):
    """As of People's Daily: a lone B- is an entity of one token."""
    path = file("我 B-PER\n在 O\n北 B-LOC\n京 I-LOC\n市 I-LOC\n\n好 O\n")
    assert convert(path) == EXPECTED
    assert [json.loads(line)["label"] for line in convert(path, target="bmes")] == [
        ["S-PER", "O", "B-LOC", "M-LOC", "E-LOC"],
        ["O"],
    ]


def test_the_layout_can_be_given(file):
    path = file("好\tO\n我 们\tO S-PER\n")
    with pytest.raises(UserError, match=r":2: expected a token, a space or a tab, and its tag"):
        convert(path)
    assert convert(path, layout="sentences")[1] == '{"text": ["我", "们"], "label": ["O", "S-PER"]}'


def test_white_space_can_be_a_token(file):
    assert json.loads(convert(file("a O\n\u3000 O\n  O\nb O\n"))[0])["text"] == ["a", "\u3000", " ", "b"]


def test_the_index_in_the_word_is_dropped_on_demand(file):
    path = file("老0\tB-PER.NOM\n板1\tI-PER.NOM\n20\tO\n")
    assert json.loads(convert(path, first_character=True)[0])["text"] == ["老", "板", "2"]
    assert json.loads(convert(path)[0])["text"] == ["老0", "板1", "20"]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("我", "expected a token, a space or a tab, and its tag, got '我'"),
        ("我 ", "expected a token, a space or a tab, and its tag"),
        (" O", "expected a token, a space or a tab, and its tag"),
        ("我 r O", "expected a token, a space or a tab, and its tag"),
        ("我\tr\tO", "expected a token, a space or a tab, and its tag"),
        ("我 PER", "expected a tag such as O or B-PER, got 'PER'"),
        ("我 X-PER", "expected a tag such as O or B-PER, got 'X-PER'"),
        (b"\xff O", "expected UTF-8, got byte 0xff"),
    ],
)
def test_malformed_rows_are_named(file, bad, expected):
    path = file("好 O\n\n".encode() + (bad if isinstance(bad, bytes) else bad.encode()) + "\n好 O\n".encode())
    with pytest.raises(UserError) as error:
        convert(path)
    assert str(error.value).splitlines()[1].startswith(f"{path}:3: {expected}")


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("我 们", "expected tokens, a tab and tags (--layout sentences), got 1 columns"),
        ("我 们\tO O\tx", "expected tokens, a tab and tags (--layout sentences), got 3 columns"),
        ("我 们\tO", "expected a tag for each of the 2 tokens, got 1 tags"),
        ("我  们\tO O O", "expected one space between tokens, got an empty token, 2"),
        ("\tO", "expected one space between tokens, got an empty token, 1"),
        ("我 们\tO  O", "expected a tag for each of the 2 tokens, got 3 tags"),
        ("我 们\tO P", "expected a tag such as O or B-PER, got 'P'"),
    ],
)
def test_malformed_sentences_are_named(file, bad, expected):
    path = file(f"好 的\tO O\n{bad}\n")
    with pytest.raises(UserError) as error:
        convert(path)
    assert str(error.value).splitlines()[1].startswith(f"{path}:2: {expected}")


def test_a_file_of_blank_lines_is_an_error(file):
    with pytest.raises(UserError, match="expected one example a line, got no line"):
        convert(file("\n \n\n"))


def test_tags_out_of_order_are_counted_and_kept(file, log_lines):
    path = file("我 O\n们 E-PER\n\n好 O\n\n我 B-PER\n们 O\n我 S-PER\n")
    assert [json.loads(line)["label"] for line in convert(path)] == [["O", "I-PER"], ["O"], ["B-PER", "O", "S-PER"]]
    assert log_lines == [
        f"{path}: the tags are in bioes",
        f"{path}: sentences with tags out of the order of bioes: 2; they are kept. "
        f"The first: {path}:2: E-PER after O at the end (token 2)",
    ]
    with pytest.raises(UserError) as error:
        convert(path, strict=True)
    assert str(error.value).splitlines()[1:] == [
        f"{path}:2: E-PER after O at the end (token 2)",
        f"{path}:7: O after B-PER (token 2)",
    ]


def test_a_given_scheme_must_be_right(file):
    path = file(BMES_ROWS)
    assert convert(path, source="bmes") == convert(path, source="bioes") == EXPECTED
    with pytest.raises(UserError, match=r"published.txt:1: expected a tag of --from bio, got 'S-PER'; try --from auto"):
        convert(path, source="bio")


def test_json_lines_in_another_scheme(file):
    path = file("\n".join(EXPECTED), "tags.json")
    converted = tagged_lines(path, read_tag_json(path), source="auto", target="bmes", strict=True)
    assert json.loads(converted[0])["label"] == ["S-PER", "O", "B-LOC", "M-LOC", "E-LOC"]
    back = file("\n".join(converted), "back.json")
    sentences = read_tag_json(back)
    assert tagged_lines(back, sentences, source="bmes", target="bios", strict=True) == EXPECTED
    wrong = file('{"text": ["a"], "label": ["O"]}\n{"text": ["a"], "label": ["PER"]}', "wrong.json")
    with pytest.raises(UserError, match=r"wrong.json:2: expected a tag such as O or B-PER, got 'PER'"):
        read_tag_json(wrong)
    columns = file("a\tb\n", "columns.txt")
    with pytest.raises(UserError, match=r"columns.txt:1:1: expected a JSON object"):
        read_tag_json(columns)


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
German JJ B-NP I-MISC
British JJ I-NP B-MISC

-DOCSTART- -X- O O

Peter NNP B-NP I-PER
Blackburn NNP I-NP I-PER
"""
CONLL_BIO = [
    '{"text": ["EU", "rejects", "German", "British"], "label": ["B-ORG", "O", "B-MISC", "B-MISC"]}',
    '{"text": ["Peter", "Blackburn"], "label": ["B-PER", "I-PER"]}',
]


@pytest.mark.parametrize(
    "published",
    [
        CONLL,
        CONLL.replace(" ", "\t"),
        CONLL.replace(" ", "  "),
        CONLL.replace("\n", "\r\n"),
        CONLL.replace(" -X- -X- O", "").replace(" -X- O O", ""),
        CONLL.replace("\n\n-DOC", "\n-DOC"),  # a document's border ends a sentence too
        CONLL.replace(" JJ", " a JJ").replace(" NNP", " b NNP").replace(" VBZ", " c VBZ"),  # five columns, as in German
    ],
)
def test_conll_2003(file, published, log_lines):
    path = file(published)
    assert convert(path, target="bio") == convert(path, source="iob1", target="bio") == CONLL_BIO
    columns = 5 if " a JJ" in published else 4
    assert log_lines[:3] == [
        f"{path}: {columns} columns; the first is the token, the last the tag",
        f"{path}: -DOCSTART- lines, which are part of no sentence: 2",
        f"{path}: the tags are in iob1",
    ]
    assert not any("out of the order" in line for line in log_lines)
    assert json.loads(convert(path, target="bioes")[0])["label"] == ["S-ORG", "O", "S-MISC", "S-MISC"]


@pytest.mark.parametrize("source", ["auto", "bio"])
def test_conll_2003_in_bio(file, source):
    """As most copies of it are today."""
    published = CONLL.replace("I-ORG", "B-ORG").replace("I-MISC", "B-MISC").replace("I-NP B-PER", "I-NP I-PER")
    published = published.replace("Peter NNP B-NP I-PER", "Peter NNP B-NP B-PER")
    assert convert(file(published), source=source, target="bio", strict=True) == CONLL_BIO


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            "Li NNP I-PER",
            "expected 4 columns as in the first row, a token first and its tag last, got 3: 'Li",
        ),
        ("Li NNP B-NP x I-PER", "expected 4 columns as in the first row"),
        ("Li O", "expected 4 columns as in the first row"),
        ("Li NNP B-NP PER", "expected a tag such as O or B-PER, got 'PER'"),
        ("\tNNP\tB-NP\tO", "expected a token in the first column, got"),
    ],
)
def test_rows_of_another_form_are_named(file, row, expected):
    path = file(f"EU NNP B-NP I-ORG\n{row}\n")
    with pytest.raises(UserError) as error:
        convert(path)
    assert str(error.value).splitlines()[1].startswith(f"{path}:2: {expected}")


def test_a_file_of_borders_is_an_error(file):
    with pytest.raises(UserError, match="expected tokens with their tags, got none"):
        convert(file("-DOCSTART- -X- O O\n\n"))


def test_a_border_is_no_token_of_two_columns(file):
    assert convert(file(f"-DOCSTART- O\n\n{BMES_ROWS}")) == EXPECTED
    assert json.loads(convert(file("-DOCSTART-S O\n"))[0])["text"] == ["-DOCSTART-S"]


def test_b_without_need_violates_iob1(file, log_lines):
    path = file("a I-PER\nb O\nc B-PER\nd I-PER\n\ne B-LOC\nf B-LOC\n")
    expected = [["B-PER", "O", "B-PER", "I-PER"], ["B-LOC", "B-LOC"]]
    assert [json.loads(line)["label"] for line in convert(path, source="iob1", target="bio")] == expected
    first = f"{path}:3: B-PER, which is not directly behind an entity of its type (token 3)"
    assert log_lines == [f"{path}: sentences with tags out of the order of iob1: 2; they are kept. The first: {first}"]
    with pytest.raises(UserError) as error:
        convert(path, source="iob1", strict=True)
    assert str(error.value).splitlines()[1] == first
    convert(path)
    hint = "they are kept; if the tags are in IOB1, name it with --from iob1. The first: "
    assert f"out of the order of bio: 1; {hint}{path}:1: I-PER at the beginning (token 1)" in log_lines[-1]
    with pytest.raises(UserError, match=":1: expected a tag of --from iob1, got 'S-PER'; try --from auto"):
        convert(file("a S-PER\n"), source="iob1")


def test_json_lines_in_iob1(file):
    path = file('{"text": ["a", "b"], "label": ["I-PER", "B-PER"]}\n', "iob1.json")
    [line] = tagged_lines(path, read_tag_json(path), source="auto", target="bios", strict=True)
    assert json.loads(line)["label"] == ["S-PER", "S-PER"]
