"""brat's folders of `.txt` and `.ann` files in its standoff format, as it reads and writes them.

A line of text is a sentence, so it becomes an entity line, with the name of its document. Offsets are code points from
the beginning of the document, and are checked by the text of each annotation; those of a browser (units of UTF-16, and
CRLF as one character, brat's issue 853) are found out.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from typing_extensions import override

from bertorch.data.lines import BadLineError, parse_lines, shorten
from bertorch.errors import UserError
from bertorch.files import require_file
from bertorch.prepare.annotated_texts import AnnotatedText, Entity, checked_text, in_order
from bertorch.prepare.offsets import (
    COUNTINGS,
    REPEATED,
    Annotated,
    Fit,
    LeftOut,
    Locator,
    Reading,
    countings_for,
    fit,
    settle,
)

USUAL = "code_points"
DOCUMENT = "document"  # the key of an entity line with the name of its document
_OFFSETS = "[0-9]{1,18} [0-9]{1,18}"  # any text is shorter
_TEXT_BOUND = re.compile(rf"(\S+) ({_OFFSETS}(?:;{_OFFSETS})*)")
_OTHERS = {
    "R": "relations",
    "*": "equivalences",
    "E": "events",
    "A": "attributes",
    "M": "attributes",
    "N": "normalizations",
    "#": "notes",
}
_SHARED_REMEDY = "Fix them, or skip their documents with --on_bad_row skip; nothing was written."


class _BadAnnotationError(BadLineError):
    """What is wrong with a line of a file of a document."""

    def __init__(self, error: str, path: Path, line: int) -> None:
        super().__init__(error)
        self._place = f"{path}:{line}"

    @override
    def located(self, path: str, line: int) -> str:
        return f"{self._place}: {self}"


@dataclass(frozen=True)
class _Document:
    """A document."""

    name: str
    text: str
    ann: Path
    # Of each text-bound annotation its line in the `.ann` file, from 1, its id, itself, its fragments.
    annotated: list[tuple[int, str, Annotated, list[tuple[int, int]]]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def read_brat(folder: str, *, offsets: str, on_bad_row: str) -> list[AnnotatedText]:
    """Read all documents of a folder and the folders in it, an entity line for each line of text that is not blank.

    Args:
        folder: of `.txt` files, each with an `.ann` file of the same name.
        offsets: what they count, a name of `OFFSETS`.
        on_bad_row: "stop", or "skip" for documents with a malformed line.

    Raises:
        UserError: no folder, no document, or malformed ones, with the lines of their `.ann` files.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"{folder}: expected a folder of .txt and .ann files, got {'a file' if root.exists() else 'none'}"
        )
    files = {file.with_suffix("") for suffix in ("txt", "ann") for file in root.rglob(f"*.{suffix}")}
    parse = partial(_fit, root, offsets)
    rows = parse_lines(
        folder,
        enumerate(sorted(files), start=1),
        parse,
        on_bad_line=on_bad_row,
        remedy=_SHARED_REMEDY,
        expected=".txt and .ann files",
    )
    return settle(folder, rows, "say which with --offsets, or write line ends without \\r, and annotate anew")


def _fit(root: Path, offsets: str, stem: Path) -> Fit:
    document = _parse(root, stem)
    texts = {"": document.text}
    if "\r\n" in document.text:
        texts[", with CRLF as one"] = document.text.replace("\r\n", "\n")
    candidates: dict[str, Callable[[], Reading]] = {}
    for name, text in texts.items():
        for counting in countings_for(text, offsets, USUAL):
            candidates[f"{COUNTINGS[counting]}{name}" if name else counting] = partial(_read, document, text, counting)
    return replace(fit(candidates), place=str(document.ann))


def _file(stem: Path, suffix: str) -> Path:
    return stem.parent / f"{stem.name}.{suffix}"


def _parse(root: Path, stem: Path) -> _Document:
    path = _file(stem, "ann")
    document = _Document(stem.relative_to(root).as_posix(), _content(_file(stem, "txt")), path)
    for number, line in enumerate(_content(path).split("\n"), start=1):
        if line := line.removesuffix("\r"):
            try:
                _parse_annotation(document, number, line)
            except BadLineError as error:
                raise _BadAnnotationError(str(error), path, number) from error
    return document


def _content(path: Path) -> str:
    try:
        require_file(path, "a readable text file")
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    except UserError as error:
        raise _BadAnnotationError(str(error).removeprefix(f"{path}: "), path, 1) from error
    except OSError as error:
        raise _BadAnnotationError(f"expected a readable file, got: {error.strerror or error}", path, 1) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _BadAnnotationError(f"expected UTF-8, got byte 0x{error.object[error.start]:02x}", path, line) from error


def _parse_annotation(document: _Document, number: int, line: str) -> None:
    id_, *columns = line.split("\t", 2)
    if id_[:1] in _OTHERS:
        kind = f"left out {_OTHERS[id_[0]]}"
        document.left_out.append(LeftOut(kind, shorten(line), f"{document.ann}:{number}"))
        return
    match = _TEXT_BOUND.fullmatch(columns[0].strip(" ")) if id_.startswith("T") and columns else None
    if match is None:
        form = "T1, a tab, TYPE START END, a tab and the text, or a line of another kind (R, E, A, M, N, #, *)"
        raise BadLineError(f"expected {form}, got {shorten(line)}")
    covered = columns[1] if len(columns) == 2 and columns[1] else None
    fragments = [(int(start), int(end)) for start, end in (each.split(" ") for each in match[2].split(";"))]
    annotated = Annotated(*fragments[0], match[1], covered)
    document.annotated.append((number, id_, annotated, fragments))


def _read(document: _Document, text: str, counting: str) -> Reading:
    """The lines of a document; entities that are no part of one line are left out."""
    left_out = list(document.left_out)
    locator = Locator(text, counting)
    entities: set[Entity] = set()
    for number, id_, annotated, fragments in document.annotated:
        place = f"{document.ann}:{number}"
        lost: list[LeftOut] = []
        try:
            parts = _located_parts(locator, text, annotated, fragments, lost)
        except BadLineError as error:
            raise _BadAnnotationError(str(error), document.ann, number) from error
        left_out += [LeftOut(each.kind, each.what, place) for each in lost]
        if not parts:
            continue
        entity = Entity(parts[0].start, parts[-1].end, parts[0].type)
        if kind := _why_left_out(text, parts, entity, entities):
            shown = " … ".join(text[part.start : part.end] for part in parts)
            left_out.append(LeftOut(kind, f"{id_} {entity.type} {shorten(shown)}", place))
        else:
            entities.add(entity)
    return Reading(list(_lines(document.name, text, in_order(entities))), left_out)


def _why_left_out(text: str, parts: Sequence[Entity], entity: Entity, known: Collection[Entity]) -> str | None:
    gaps = [text[left.end : right.start] for left, right in pairwise(parts)]
    if any(gap.strip() or "\n" not in gap for gap in gaps):  # brat itself splits an annotation at a line break
        return "left out discontinuous entities"
    if "\n" in text[entity.start : entity.end]:
        return "left out entities across a line break"
    return REPEATED if entity in known else None


def _located_parts(
    locator: Locator, text: str, annotated: Annotated, fragments: Sequence[tuple[int, int]], left_out: list[LeftOut]
) -> list[Entity]:
    """The fragments of an annotation in their order, whose texts with a space between them are what it covers."""
    if len(fragments) == 1:
        found = locator.find(annotated, left_out)
        return [] if found is None else [found]
    each = [locator.find(Annotated(start, end, annotated.type), left_out) for start, end in sorted(fragments)]
    parts = [part for part in each if part is not None]
    surface = " ".join(text[part.start : part.end] for part in parts)
    if annotated.covered is not None and annotated.covered.split() != surface.split():
        raise BadLineError(f"expected {shorten(annotated.covered)} at these offsets, got {shorten(surface)}")
    return parts


def _lines(name: str, text: str, entities: Sequence[Entity]) -> Iterator[AnnotatedText]:
    """The lines of a text that are not blank, with their entities, which are in its order."""
    start, index = 0, 0
    for end in (*(found.start() for found in re.finditer("\n", text)), len(text)):
        line = text[start:end].removesuffix("\r")
        inside = []
        while index < len(entities) and entities[index].start < end:
            entity = entities[index]
            inside.append(entity._replace(start=entity.start - start, end=entity.end - start))
            index += 1
        if line.strip():
            yield AnnotatedText(checked_text(line, "text", ()), inside, {DOCUMENT: name})
        start = end + 1
