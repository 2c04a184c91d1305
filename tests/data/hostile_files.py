"""Files that a test draws: bytes of every kind, and valid rows in every form that a file may have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from bertorch.errors import UserError

_BYTES = (b"\n", b"\t", b"\r\n", b" ", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc2\x85", "好".encode())


class Form(NamedTuple):
    """How lines are written: with a byte-order mark, what ends a line, what comes after the last line."""

    mark: bool
    end: bytes
    last: bytes


written = st.builds(
    Form, mark=st.booleans(), end=st.sampled_from([b"\n", b"\r\n"]), last=st.sampled_from([b"", b"\n", b"\r\n \n\n"])
)


def damaged_bytes(*pieces: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, often made of pieces of what a reader expects."""
    return st.lists(st.sampled_from([*pieces, *_BYTES]) | st.binary(max_size=3)).map(b"".join)


def texts() -> st.SearchStrategy[str]:
    """Texts of a column: anything but white space alone, tabs, line breaks, and what is dropped at a file's edges."""
    characters = st.characters(exclude_characters="\t\n", exclude_categories=["Cs"])
    edges = ("\r", "\ufeff")
    return st.text(characters, min_size=1, max_size=8).filter(
        lambda text: text.strip() and not text.endswith(edges) and not text.startswith(edges)
    )


def attempt(read: Callable[[str], Any], path: str) -> Any:
    """What a reader gives, or the text of its error; any error but a UserError passes."""
    try:
        return read(path)
    except UserError as error:
        return str(error)


def write_lines(path: Path, lines: list[str], form: Form) -> None:
    """Write a file."""
    content = form.end.join(line.encode() for line in lines) + form.last
    path.write_bytes((b"\xef\xbb\xbf" if form.mark else b"") + content)
