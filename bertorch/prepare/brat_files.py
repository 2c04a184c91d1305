"""The files of brat's documents from lines with entities; `bertorch.prepare.brat` reads them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from bertorch.data.lines import shorten
from bertorch.errors import UserError
from bertorch.prepare.annotated_texts import AnnotatedText
from bertorch.prepare.brat import DOCUMENT, USUAL
from bertorch.prepare.offsets import counting_to_write, offsets_of


def brat_files(
    lines: Sequence[AnnotatedText], *, source: str, offsets: str, stem: str, lines_per_document: int
) -> dict[str, list[str]]:
    """The lines of each file of the documents that brat reads.

    Args:
        lines: entity lines; those with the name of a document are together in it.
        source: the file that has them, for errors.
        offsets: what they count, a name of `OFFSETS`.
        stem: begins the names of documents for lines that have none.
        lines_per_document: of these.

    Raises:
        UserError: the name of a document that leads out of a folder, or a type with a space, which brat cannot have.
    """
    counting = counting_to_write(lines, offsets, USUAL)
    documents: dict[str, list[AnnotatedText]] = {}
    unnamed = []
    for line in lines:
        if DOCUMENT in line.more:
            documents.setdefault(_document_name(line, source), []).append(line)
        else:
            unnamed.append(line)
    numbers = (
        number for number in range(1, len(unnamed) + len(documents) + 1) if f"{stem}-{number:04d}" not in documents
    )
    new = {}
    for first in range(0, len(unnamed), lines_per_document):
        new[f"{stem}-{next(numbers):04d}"] = unnamed[first : first + lines_per_document]
    files = {}
    for name, content in (documents | new).items():
        text = "".join(f"{line.text}\n" for line in content)
        files[f"{name}.txt"] = [line.text for line in content]
        files[f"{name}.ann"] = list(_annotations(content, text, counting, source))
    return files


def _document_name(line: AnnotatedText, source: str) -> str:
    value: Any = line.more[DOCUMENT]
    path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath()
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in str(path):
        expected = f"the name of a document with the key {DOCUMENT!r}, such as reports/7"
        raise UserError(f"{source}: expected {expected}, got {shorten(str(value))} of {shorten(line.text)}")
    return str(path)


def _annotations(lines: Iterable[AnnotatedText], text: str, counting: str, source: str) -> Iterator[str]:
    """T lines of a document, with a fragment for each line of an entity that has several."""
    at = offsets_of(text, counting)
    first, number = 0, 0
    for line in lines:
        for entity in line.entities:
            if any(map(str.isspace, entity.type)):
                expected = "types without white space, as brat takes no others"
                raise UserError(f"{source}: expected {expected}, got {entity.type!r} of {shorten(line.text)}")
            start, end = first + entity.start, first + entity.end
            parts = [(start + each.start(), start + each.end()) for each in re.finditer(r"[^\r\n]+", text[start:end])]
            spans = ";".join(f"{at[begin]} {at[stop]}" for begin, stop in parts)
            covered = " ".join(text[begin:stop] for begin, stop in parts)
            number += 1
            yield f"T{number}\t{entity.type} {spans}\t{covered}"
        first += len(line.text) + 1
