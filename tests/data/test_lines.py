import json
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.data import lines
from bertorch.data.readers import read_label_names, read_labelled_texts, read_pairs, read_scored_pairs, read_sentences
from bertorch.data.tagged_sentences import read_tagged_sentences
from bertorch.data.tags import TagSet
from bertorch.errors import UserError
from tests.data.hostile_files import Form, write_lines, written

TAGS = TagSet(["O", "B-PER"], "bio", "labels.txt")
# Of each reader: how it is called, a good line with this number, a malformed one.
READERS = {
    "labels": (read_label_names, "label {}", "label 0"),
    "texts": (lambda path: read_labelled_texts(path, ["a", "b"]), "text {}\ta", "text\tc"),
    "texts in JSON": (
        lambda path: read_labelled_texts(path, ["a", "b"]),
        '{"text": "text {}", "label": "a"}',
        '{"text": "text", "label": "c"}',
    ),
    "sentences": (read_sentences, "text {}", "a\tb"),
    "pairs": (read_pairs, "anchor {}\tpositive", "anchor"),
    "scored pairs": (read_scored_pairs, "a\tb\t{}", "a\tb\t1_000"),
    "tagged sentences": (
        lambda path: read_tagged_sentences(path, TAGS),
        json.dumps({"id": "#", "text": ["a"], "label": ["O"]}).replace("#", "{}", 1),
        '{"text": ["a"], "label": ["Z"]}',
    ),
}


def good_lines(form: str, count: int) -> list[str]:
    return [form.replace("{}", str(number), 1) for number in range(count)]


@given(count=st.integers(2, 30), index=st.integers(0, 30), form=written)
@pytest.mark.parametrize("reader", READERS)
def test_a_malformed_line_is_named_by_its_number(reader, count, index, form, scratch):
    read, good, bad = READERS[reader]
    content = good_lines(good, count)
    index = min(index, count)
    if reader == "labels":
        index = max(index, 1)  # the label before which it stands would be the repeated one
    content.insert(index, bad)
    write_lines(scratch, content, form)
    with pytest.raises(UserError) as error:
        read(str(scratch))
    first, located, _ = str(error.value).splitlines()
    assert first == f"{scratch}: malformed lines: 1"
    assert located.startswith(f"{scratch}:{index + 1}:")


@pytest.mark.parametrize("reader", READERS)
def test_a_line_over_the_limit_is_malformed(reader, scratch, monkeypatch):
    read, good, _ = READERS[reader]
    content = good_lines(good, 3)
    content[1] = content[1].replace("a", "长" * 40).replace("label 1", "长" * 40).replace("text", "长" * 40)
    size = len(content[1].encode())
    write_lines(scratch, content, Form(mark=True, end=b"\r\n", last=b"\n"))
    monkeypatch.setattr(lines, "LONGEST_LINE", size - 1)
    with pytest.raises(UserError) as error:
        read(str(scratch))
    expected = f"{scratch}:2: expected at most {size - 1} bytes a line, got {size}; is a line break missing?"
    assert expected in str(error.value).splitlines()


def test_a_line_at_the_limit_is_read(scratch):
    text = "a" * lines.LONGEST_LINE
    scratch.write_text(f"{text}\n")
    assert read_sentences(str(scratch)) == [text]
    scratch.write_text(f"a{text}\n")
    most = lines.LONGEST_LINE
    with pytest.raises(
        UserError, match=f"expected at most {most} bytes a line, got {most + 1}; is a line break missing"
    ):
        read_sentences(str(scratch))


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_not_opened(reader, kind, special):
    with pytest.raises(UserError, match=f"{special[kind]}: expected a readable text file, got a {kind}; "):
        READERS[reader][0](str(special[kind]))


@given(count=st.integers(1, 30), blank=st.integers(0, 3), form=written)
def test_a_stream_has_the_lines_of_the_file(count, blank, form, scratch):
    content = good_lines("text {}", count)
    write_lines(scratch, [*content, *[""] * blank], form)
    assert list(lines.stream_rows(str(scratch), str)) == content == read_sentences(str(scratch))


def test_a_stream_ends_at_the_first_malformed_line(scratch):
    scratch.write_bytes(b"a\n\n\nb\n")
    stream = lines.stream_rows(str(scratch), str)
    assert next(stream) == "a"
    with pytest.raises(UserError, match="file.txt:2: expected an example, got an empty line"):
        next(stream)
    scratch.write_bytes(b"\n \n")
    with pytest.raises(UserError, match="expected one example a line, got no line"):
        list(lines.stream_rows(str(scratch), str))


def test_a_line_that_is_much_too_long_is_never_in_memory(scratch, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 10)
    scratch.write_bytes(b"x" * 95 + b"\r\nshort\n")
    with pytest.raises(UserError, match="expected at most 10 bytes a line, got 95"):
        list(lines.stream_rows(str(scratch), str))
    with scratch.open("rb") as file:
        assert list(lines._ended_lines(file)) == [95, b"short"]


def test_a_stream_may_be_a_pipe_or_a_device(special):
    writer = threading.Thread(target=lambda: special["pipe"].write_text("一\nb\n"))
    writer.start()
    assert list(lines.stream_rows(str(special["pipe"]), str)) == ["一", "b"]
    writer.join()
    with pytest.raises(UserError, match="/dev/null: expected one example a line, got no line"):
        list(lines.stream_rows("/dev/null", str))
    for kind in ("folder", "socket"):
        with pytest.raises(UserError, match=f"expected a readable text file, got a {kind}"):
            list(lines.stream_rows(str(special[kind]), str))


def test_a_closed_standard_input_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="-: expected standard input, got a closed one; name a file"):
        list(lines.stream_rows("-", str))


def test_a_cell_breaks_no_line_and_no_column():
    assert lines.cell("a\tb\r\nc\u2028d\x85e\x0bf`g") == "a b c d e f`g"
