"""Offsets of annotation tools: what they count, and the entities at them.

A character outside the Basic Multilingual Plane, such as an emoji, is one code point, and two units of UTF-16, which is
what JavaScript counts. A tool may count either, and older versions the other one; then `auto` finds out from the file.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from loguru import logger

from bertorch.data.lines import BadLineError, shorten
from bertorch.errors import UserError
from bertorch.prepare.annotated_texts import AnnotatedText, Entity, checked_type, in_order, is_whole

COUNTINGS = {"code_points": "code points", "utf16": "units of UTF-16"}
OFFSETS = ("auto", *COUNTINGS)
REPEATED = "left out repeated entities"
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
# Tools that show a text in a browser export runs of white space as one space, or escaped.
_SPACES = re.compile(r"(?:\s|\\[nrt])+")


class Annotated(NamedTuple):
    """An entity as a tool exports it, not checked yet."""

    start: Any
    end: Any
    type: Any
    covered: Any = None  # its text, if the tool exports it


class LeftOut(NamedTuple):
    """What was not taken, or changed, in a document."""

    kind: str
    what: str  # this one
    place: str | None = None  # path:line, if not that of the document


@dataclass(frozen=True)
class Reading:
    """A document of a tool, read with one way of counting."""

    lines: list[AnnotatedText]
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True)
class Fit:
    """The ways of counting that fit a document, and what it is with each."""

    readings: dict[str, Reading]
    is_evidence: bool  # another way does not fit
    place: str | None = None  # of the document, if not path:line


def offsets_of(text: str, counting: str) -> Sequence[int]:
    """The offset of each code point of a text and of its end."""
    if counting == "code_points":
        return range(len(text) + 1)
    return list(accumulate((1 + (character > "\uffff") for character in text), initial=0))


def countings_for(text: str, offsets: str, usual: str) -> list[str]:
    """The ways of counting to try for a text: one, or the `usual` one of the tool and the other one."""
    if offsets != "auto":
        return [offsets]
    return [usual, *(name for name in COUNTINGS if name != usual)] if _ASTRAL.search(text) else [usual]


def counting_to_write(lines: Iterable[AnnotatedText], offsets: str, usual: str) -> str:
    """The way of counting of the offsets that are written for a tool; the log names it where it matters."""
    counting = usual if offsets == "auto" else offsets
    if any(_ASTRAL.search(line.text) for line in lines):
        logger.info("offsets are written in {}, see --offsets", COUNTINGS[counting])
    return counting


class Locator:
    """Finds the entities of a text by what a tool exports, under one way of counting."""

    def __init__(self, text: str, counting: str) -> None:
        self._text, self._unit = text, COUNTINGS[counting]
        offsets = offsets_of(text, counting)
        self._end = offsets[-1]
        self._index_of = dict(zip(offsets, range(len(offsets)), strict=True)).get

    def find(self, annotated: Annotated, left_out: list[LeftOut]) -> Entity | None:
        """The entity without white space at its ends, or None if nothing else is in it, which `left_out` gets.

        Raises:
            BadLineError: offsets outside the text or within a surrogate pair, or another text than stands there.
        """
        type_ = checked_type(annotated.type)
        bounds = annotated.start, annotated.end
        start, end = (self._index_of(offset) if is_whole(offset) else None for offset in bounds)
        if start is None or end is None or start >= end:
            expected = f"start and end (exclusive) of characters of the text, 0 to {self._end} {self._unit}"
            got = " and ".join(shorten(offset) if isinstance(offset, str) else str(offset) for offset in bounds)
            raise BadLineError(f"expected {expected}, got {got} for {type_}")
        surface = self._text[start:end]
        if annotated.covered is not None and not _is_same(annotated.covered, surface):
            raise BadLineError(
                f"expected {shorten(str(annotated.covered))} of {type_} from {bounds[0]} to {bounds[1]} of the text "
                f"({self._unit}), got {shorten(surface)}"
            )
        if not surface.strip():
            left_out.append(LeftOut("left out entities of white space", f"{type_} at {bounds[0]}"))
            return None
        if surface != surface.strip():
            kind = "trimmed white space at the ends of entities"
            left_out.append(LeftOut(kind, f"{type_} {shorten(surface)} at {bounds[0]}"))
        return Entity(end - len(surface.lstrip()), start + len(surface.rstrip()), type_)


def located(text: str, annotated: Iterable[Annotated], counting: str, left_out: list[LeftOut]) -> list[Entity]:
    """The entities of a text in its order, each once; errors and `left_out` as in `Locator.find`."""
    locator = Locator(text, counting)
    found: set[Entity] = set()
    for each in annotated:
        entity = locator.find(each, left_out)
        if entity in found:
            shown = f"{entity.type} {shorten(text[entity.start : entity.end])} at {each.start}"
            left_out.append(LeftOut(REPEATED, shown))
        elif entity is not None:
            found.add(entity)
    return in_order(found)


def _is_same(covered: Any, surface: str) -> bool:
    """Whether two texts are the same but for white space."""
    return _squeezed(str(covered)) == _squeezed(surface)


def _squeezed(text: str) -> str:
    return _SPACES.sub(" ", text).strip(" ")


def fit(candidates: Mapping[str, Callable[[], Reading]]) -> Fit:
    """Read a document in each of these ways; a `BadLineError` of the first one if it can be read in none."""
    readings: dict[str, Reading] = {}
    errors = []
    for name, read in candidates.items():
        try:
            readings[name] = read()
        except BadLineError as error:
            errors.append(error)
    if not readings:
        raise errors[0]
    return Fit(readings, is_evidence=len(readings) == 1 and bool(errors))


def fit_text(
    text: str,
    annotated: Sequence[Annotated],
    more: dict[str, Any],
    left_out: Sequence[LeftOut],
    *,
    offsets: str,
    usual: str,
) -> Fit:
    """A text whose entities are one line with the keys `more`; `offsets` and `usual` as in `countings_for`."""

    def read(counting: str) -> Reading:
        lost = list(left_out)
        return Reading([AnnotatedText(text, located(text, annotated, counting, lost), more)], lost)

    return fit({name: partial(read, name) for name in countings_for(text, offsets, usual)})


def settle(path: str, documents: Iterable[tuple[int, Fit]], remedy: str) -> list[AnnotatedText]:
    """The lines of the documents of a file, with their numbers; log what was left out.

    Where several ways of counting fit and give different entities, the one is taken that alone fits other documents.

    Raises:
        UserError: none does; the error shows an example and ends with the `remedy`.
    """
    rows = list(documents)
    proven = {name for _, each in rows if each.is_evidence for name in each.readings}
    settled = [(number, _settled(each.place or f"{path}:{number}", each, proven, remedy)) for number, each in rows]
    if proven:
        logger.info(
            "{}: its offsets are in {}", path, " and ".join(COUNTINGS.get(name, name) for name in sorted(proven))
        )
    _log_left_out(path, [(number, each) for number, reading in settled for each in reading.left_out])
    lines = [line for _, reading in settled for line in reading.lines]
    if not lines:
        raise UserError(f"{path}: expected texts with annotations, got none")
    return lines


def _settled(place: str, document: Fit, proven: set[str], remedy: str) -> Reading:
    names = list(document.readings)
    readings = [document.readings[name] for name in names]
    if all(each.lines == readings[0].lines for each in readings):
        return readings[0]
    known = [name for name in names if name in proven]
    if len(known) == 1 and len(proven) == 1:
        return document.readings[known[0]]
    shown = " and ".join(f"{_first_difference(each, readings)} in {COUNTINGS.get(name, name)}" for name, each in
                         zip(names, readings, strict=True))  # fmt: skip
    raise UserError(f"{place}: expected offsets that can be counted in one way only, got {shown}; {remedy}")


def _first_difference(reading: Reading, readings: Sequence[Reading]) -> str:
    """The first entity of a reading that not all of them have."""

    def texts(each: Reading) -> list[tuple[int, Entity, str]]:
        return [(index, entity, line.text[entity.start : entity.end]) for index, line in enumerate(each.lines)
                for entity in line.entities]  # fmt: skip

    others = [texts(each) for each in readings]
    found = next((each for each in texts(reading) if not all(each in other for other in others)), None)
    return "nothing" if found is None else f"{found[1].type} {shorten(found[2])}"


def _log_left_out(path: str, items: Sequence[tuple[int, LeftOut]]) -> None:
    kinds: dict[str, list[tuple[int, LeftOut]]] = {}
    for item in items:
        kinds.setdefault(item[1].kind, []).append(item)
    for kind, found in kinds.items():
        number, first = found[0]
        place = first.place or f"{path}:{number}"
        logger.warning("{}: {}: {}; the first: {}: {}", path, kind, len(found), place, first.what)
