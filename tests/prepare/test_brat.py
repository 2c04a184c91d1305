import random

import pytest

from bertorch.errors import UserError
from bertorch.prepare.annotated_texts import AnnotatedText, Entity
from bertorch.prepare.brat import read_brat
from bertorch.prepare.brat_files import brat_files
from tests.conftest import ANNOTATIONS
from tests.prepare.random_texts import random_text, utf16

SAMPLE = ANNOTATIONS / "brat"


def read(folder, offsets="auto", on_bad_row="stop"):
    return read_brat(str(folder), offsets=offsets, on_bad_row=on_bad_row)


def write(folder, files):
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())


def back(lines, **options):
    return brat_files(
        lines, **{"source": "in.json", "offsets": "auto", "stem": "lines", "lines_per_document": 50} | options
    )


def random_documents(seed, count=100):
    """Lines of documents of some lines each, 1,000 in all."""
    chance = random.Random(seed)
    names = [f"part-{number % 3}/{number:03d}" for number in range(count)]
    return [random_text(chance, breaks=False, document=name) for name in sorted(names) for _ in range(1000 // count)]


def documents_of(lines):
    documents = {}
    for line in lines:
        documents.setdefault(line.more["document"], []).append(line)
    return documents


def exported(lines, counting, end, *, as_one) -> dict[str, str]:
    """The documents as brat leaves them, written here independently; `as_one`: a line's end counts as one."""
    files = {}
    for name, content in documents_of(lines).items():
        text, rows = "", []
        for line in content:
            for start, stop, type_, _ in line.entities:
                counted = text.replace("\r\n", "\n") if as_one else text
                at = [
                    (utf16(counted + line.text, len(counted) + index) if counting == "utf16" else len(counted) + index)
                    for index in (start, stop)
                ]
                rows.append(f"T{len(rows) + 1}\t{type_} {at[0]} {at[1]}\t{line.text[start:stop]}")
            text += line.text + end
        files[f"{name}.txt"] = text
        files[f"{name}.ann"] = "".join(f"{row}\n" for row in rows)
    return files


@pytest.mark.slow
@pytest.mark.parametrize("counting", ["code_points", "utf16"])
@pytest.mark.parametrize(("end", "as_one"), [("\n", False), ("\r\n", False), ("\r\n", True)])
def test_round_trip_of_1000_sentences(tmp_path, counting, end, as_one):
    lines = random_documents(6)
    for name, text in exported(lines, counting, end, as_one=as_one).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    assert read(tmp_path) == read(tmp_path, counting) == lines
    files = back(lines, offsets=counting)
    assert {name: "".join(f"{line}\n" for line in content) for name, content in files.items()} == exported(
        lines, counting, "\n", as_one=False
    )
    write(tmp_path / "again", files)
    assert read(tmp_path / "again") == lines


def test_the_log_says_what_is_counted_in_words(tmp_path, log_lines):
    write(tmp_path, {"a.ann": ["T1\tX 6 8\tcd"]})
    (tmp_path / "a.txt").write_bytes("😀😀b\r\ncd\r\n".encode())
    assert [line.entities for line in read(tmp_path)] == [[], [Entity(0, 2, "X")]]
    assert "its offsets are in units of UTF-16, with CRLF as one" in log_lines[-1]


def test_the_sample(log_lines):
    lines = read(SAMPLE)
    assert [(line.more["document"], line.text) for line in lines] == [
        ("news-1", "天津港集团的刘伟昨天到访大连。"),
        ("news-1", "双方谈了🚢和海运公司的计划。"),
        ("news-2", "吴敏说，昆明的花很美。"),
        ("news-2", "云南也一样。"),
    ]
    assert lines[1].entities == [Entity(6, 10, "ORG")]
    assert lines[3].entities == [Entity(0, 2, "LOC")]
    assert log_lines[1:] == [
        f"{SAMPLE}: left out attributes: 1; the first: {SAMPLE}/news-1.ann:6: 'A1\\tConfirmed T1'",
        f"{SAMPLE}: left out notes: 1; the first: {SAMPLE}/news-1.ann:7: '#1\\tAnnotatorNotes T1\\tsee the website'",
        f"{SAMPLE}: left out relations: 1; the first: {SAMPLE}/news-2.ann:4: 'R1\\tLives_in Arg1:T1 Arg2:T2'",
    ]


def test_what_a_line_cannot_hold_is_named(tmp_path, log_lines):
    text = "John Smith, left \n\nParis and  London\nJohn\n"
    annotations = [
        "T1\tPER 0 4;12 16\tJohn left",
        "T2\tLOC 12 16;19 24\tleft Paris",  # as brat itself writes what goes over a line break
        "T3\tLOC 12 24\tleft Paris",
        "T4\tPER 0 11\tJohn Smith,",
        "T5\tPER 16 24\tParis",  # white space and line breaks at its beginning
        "T6\tLOC 37 41\tJohn",
        "T7\tLOC 37 41\tJohn",
        "T8\tLOC 16 19\t ",
        "E1\tMove:T5 Arg:T1",
        "*\tAlias T1 T5",
        "N1\tReference T1 Wiki:1\tJohn",
        "M1\tNegation T1",
        "",
    ]
    write(tmp_path, {"a.txt": [text.removesuffix("\n")], "a.ann": annotations})
    lines = read(tmp_path)
    assert [(line.text, line.entities) for line in lines] == [
        ("John Smith, left ", [Entity(0, 11, "PER")]),
        ("Paris and  London", [Entity(0, 5, "PER")]),
        ("John", [Entity(0, 4, "LOC")]),
    ]
    expected = {
        "left out events: 1": "9",
        "left out equivalences: 1": "10",
        "left out normalizations: 1": "11",
        "left out attributes: 1": "12",
        "left out discontinuous entities: 1": "1: T1 PER 'John … left'",
        "left out entities across a line break: 2": "2: T2 LOC 'left … Paris'",
        "trimmed white space at the ends of entities: 1": "5: PER ' \\n\\nParis' at 16",
        "left out repeated entities: 1": "7: T7 LOC 'John'",
        "left out entities of white space: 1": "8: LOC at 16",
    }
    assert len(log_lines) == len(expected)
    for line in log_lines:
        kind, first = line.removeprefix(f"{tmp_path}: ").split("; the first: ")
        assert first.startswith(f"{tmp_path}/a.ann:{expected.pop(kind)}")


def test_annotations_without_their_text_are_kept(tmp_path):
    write(tmp_path, {"a.txt": ["ab cd"], "a.ann": ["T1\tX 0 2", "T2\tX 3 5\t"]})
    assert read(tmp_path)[0].entities == [Entity(0, 2, "X"), Entity(3, 5, "X")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("T2\tPER 0 2\tcd", "expected 'cd' of PER from 0 to 2 of the text (code points), got 'ab'"),
        ("T2\tPER 0 9\tab", "of the text, 0 to 6 code points, got 0 and 9 for PER"),
        ("T2\tPER 2 2\tab", "got 2 and 2 for PER"),
        ("T2\tPER 0 1;3 4\tad", "expected 'ad' at these offsets, got 'a c'"),
        ("T2\tPER 0\tab", "expected T1, a tab, TYPE START END, a tab and the text, or a line of another kind"),
        ("T2\tPER -1 2\tab", "expected T1, a tab"),
        ("T2\tPER a b\tab", "expected T1, a tab"),
        (f"T2\tPER 0 {'9' * 5000}\tab", "expected T1, a tab"),
        ("T2\tPER ٠ ٢\tab", "expected T1, a tab"),
        ("T2\t0 2\tab", "expected T1, a tab"),
        ("T2 PER 0 2 ab", "expected T1, a tab"),
        ("X1\tPER 0 2\tab", "expected T1, a tab"),
        (b"T2\tPER 0 2\t\xff", "expected UTF-8, got byte 0xff"),
    ],
)
def test_malformed_annotations_are_named(tmp_path, line, expected):
    write(tmp_path, {"b.txt": ["ab cd"], "b.ann": ["T1\tPER 0 2\tab"], "a.txt": ["ok"], "a.ann": []})
    with (tmp_path / "b.ann").open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(UserError) as error:
        read(tmp_path)
    first = str(error.value).splitlines()[1]
    assert first.startswith(f"{tmp_path}/b.ann:2: expected")
    assert expected in first
    assert [each.text for each in read(tmp_path, on_bad_row="skip")] == ["ok"]


def test_documents_that_are_not_whole(tmp_path):
    with pytest.raises(UserError, match="expected a folder of .txt and .ann files, got none"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a folder of .txt and .ann files, got a file"):
        read(tmp_path / "file")
    with pytest.raises(UserError, match=f"{tmp_path}: expected .txt and .ann files, got no line"):
        read(tmp_path)
    write(tmp_path, {"a.txt": ["ab"], "b.ann": [], "c.txt": ["x"]})
    (tmp_path / "c.ann").mkdir()
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value).splitlines()[1:4] == [
        f"{tmp_path}/a.ann:1: expected a readable text file, got: No such file or directory",
        f"{tmp_path}/b.txt:1: expected a readable text file, got: No such file or directory",
        f"{tmp_path}/c.ann:1: expected a readable text file, got a folder; name a file in it",
    ]
    (tmp_path / "b.txt").write_text("\n \n")
    with pytest.raises(UserError, match="expected texts with annotations, got none"):
        read(tmp_path, on_bad_row="skip")


def test_lines_without_a_document_make_some():
    lines = [AnnotatedText(f"a{n}", [Entity(0, 1, "X")]) for n in range(5)]
    named = AnnotatedText("b", [], {"document": "lines-0002"})
    files = back([*lines[:3], named, *lines[3:]], lines_per_document=2)
    assert {name: content for name, content in files.items() if name.endswith("txt")} == {
        "lines-0002.txt": ["b"],
        "lines-0001.txt": ["a0", "a1"],
        "lines-0003.txt": ["a2", "a3"],
        "lines-0004.txt": ["a4"],
    }
    assert files["lines-0003.ann"] == ["T1\tX 0 1\ta", "T2\tX 3 4\ta"]


def test_an_entity_over_a_line_break_is_written_in_fragments():
    files = back([AnnotatedText("张三\r\n李😀四。", [Entity(1, 6, "X")])])
    assert files["lines-0001.ann"] == ["T1\tX 1 2;4 6\t三 李😀"]
    assert back([AnnotatedText("😀\n四", [Entity(0, 3, "X")])], offsets="utf16")["lines-0001.ann"] == [
        "T1\tX 0 2;3 4\t😀 四"
    ]


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", 7, None, "a\0b", "."])
def test_names_stay_in_the_folder(name):
    with pytest.raises(
        UserError, match="^in.json: expected the name of a document with the key 'document'.* of 'some text'$"
    ):
        back([AnnotatedText("some text", [], {"document": name})])


def test_types_with_white_space_are_refused():
    with pytest.raises(
        UserError, match="^in.json: expected types without white space, .*, got 'family name' of 'some text'$"
    ):
        back([AnnotatedText("some text", [Entity(0, 1, "family name")])])
