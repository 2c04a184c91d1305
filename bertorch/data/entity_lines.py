"""Lines with a text and its entities: `{"text": "…", "entities": [{"start": 0, "end": 2, "type": "PER"}]}`.

`end` is exclusive. Positions are characters (code points: an emoji is one) of a text, or tokens of a list of tokens.
Entities may be nested, overlap, and share a span with another type. An entity may have its `text`, as those have
that `bertorch.predict` writes: in a text, what stands there must be the same. Further keys are ignored.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from bertorch.data.json_lines import (
    WholeNumber,
    column_of_value,
    is_string,
    is_strings,
    refuse_half_pairs,
    shown,
)
from bertorch.data.lines import HALF_PAIR, BadLineError, first_few, shorten
from bertorch.data.tag_lines import TAGGED_FORM
from bertorch.data.tags import Extent
from bertorch.data.text_splits import cut_text

ENTITY_FORM = '{"text": "…", "entities": [{"start": 0, "end": 2, "type": "PER"}]}'
# Of these lines and those with tags, of annotation tools and of `bertorch.predict`; no other key may take their names.
_OWN_KEYS = {"text", "entities", "label", "labels", "tokens", "tags"}
_KEYS = ("start", "end", "type")
_DIGITS = 18  # of the largest positions that are numbers: any text is shorter


class EntityLine(NamedTuple):
    """A text, or a list of tokens, and its entities in the order of the line."""

    source: str | list[str]
    entities: list[Extent]  # in characters of a text, or in tokens

    def described(self, index: int) -> str:
        """An entity for an error, such as `PER 0:2 '张三'`."""
        start, end, type_ = self.entities[index]
        text = self.source[start:end]
        return f"{type_} {start}:{end} {shorten(text if isinstance(text, str) else ' '.join(text))}"


def other_keys(item: Mapping[str, Any], used: Collection[str] = ()) -> dict[str, Any]:
    """The keys of an object that are neither `used` nor keys of our lines, such as an id."""
    return {key: value for key, value in item.items() if key not in used and key not in _OWN_KEYS}


def has_entities(parsed: dict[str, Any]) -> bool:
    """Whether the object of a line has entities, and not tags; a `BadLineError` if it has both or neither."""
    if ("entities" in parsed) == ("label" in parsed):  # both may differ: nested entities have no tags
        forms = f"two lists of strings ({TAGGED_FORM}) or a text and entities ({ENTITY_FORM})"
        keys = first_few(list(parsed))
        raise BadLineError(f"expected {forms}, got {f'the keys {keys}' if keys else 'no key'}")
    return "entities" in parsed


def entities_of(line: str, parsed: dict[str, Any]) -> EntityLine:
    """The text and the entities, of any types, in the object that `AS_WRITTEN` made of the line.

    Raises:
        BadLineError: another form, an empty text or type, half a surrogate pair, a position that is no whole number
            or outside the text, an entity without a character or token, with another text than stands there, or one
            that stands there twice; with the column.
    """
    source, found = _source_of(line, parsed), parsed["entities"]
    if not isinstance(found, list):
        error = f'expected a list of objects as "entities" ({ENTITY_FORM}), got {shown(found)}'
        raise BadLineError(error, column_of_value(line, "entities"))
    first_index: dict[Extent, int] = {}
    for index, item in enumerate(found):
        extent = _extent_of(line, source, index, item)
        if extent in first_index:  # a slip in annotating: it says nothing, or another type was meant
            again = EntityLine(source, [extent]).described(0)
            error = f"expected each entity once, got {again} again, entities {first_index[extent] + 1} and {index + 1}"
            raise BadLineError(error, column_of_value(line, "entities", index))
        first_index[extent] = index
    return EntityLine(source, list(first_index))


def tokens_of(line: str, entities: EntityLine, split: str) -> tuple[list[str], list[Extent]]:
    """The tokens of a line, of which a text has those that `cut_text` finds, and the entities in tokens.

    Raises:
        BadLineError: an entity begins or ends within a token, or with white space; with the column.
    """
    if not isinstance(entities.source, str):
        return entities.source, entities.entities
    tokens, offsets = cut_text(entities.source, split)
    starts = {start: index for index, (start, _) in enumerate(offsets)}
    ends = {end: index for index, (_, end) in enumerate(offsets, start=1)}
    extents: list[Extent] = []
    for index, (start, end, type_) in enumerate(entities.entities):
        if start not in starts or end not in ends:
            key, place = ("start", start) if start not in starts else ("end", end)
            verb = "begins" if key == "start" else "ends"
            token = next((entities.source[first:last] for first, last in offsets if first < place < last), None)
            where = "with white space" if token is None else f"within the token {shorten(token)}"
            error = (
                f"expected entities of whole tokens (--split {split}), got {entities.described(index)}, which {verb}"
            )
            raise BadLineError(f"{error} {where}", column_of_value(line, "entities", index, key))
        extents.append((starts[start], ends[end], type_))
    return tokens, extents


def _source_of(line: str, parsed: dict[str, Any]) -> str | list[str]:
    """The text of a line."""
    source: Any = parsed.get("text")
    if not is_string(source) and not is_strings(source):
        got = "the keys " + first_few(list(parsed)) if "text" not in parsed else shown(source)
        column = column_of_value(line, "text") if "text" in parsed else None
        raise BadLineError(f'expected a text or a list of tokens as "text" ({ENTITY_FORM}), got {got}', column)
    if isinstance(source, str) and not source.strip():
        error = f'expected a text that is not empty as "text" ({ENTITY_FORM}), got {shorten(source)}'
        raise BadLineError(error, column_of_value(line, "text"))
    if not source:
        raise BadLineError(f"expected at least one token ({ENTITY_FORM}), got none", column_of_value(line, "text"))
    refuse_half_pairs(line, source)
    return source


def _extent_of(line: str, source: str | list[str], index: int, item: Any) -> Extent:
    """An entity of a line; its number, for errors, is `index + 1`."""

    def bad(expected: str, got: str, *path: str) -> BadLineError:
        error = f"expected {expected}, got {got} in entity {index + 1}"
        return BadLineError(error, column_of_value(line, "entities", index, *path))

    if not isinstance(item, dict) or not item.keys() >= set(_KEYS):
        got = f"the keys {first_few(list(item))}" if isinstance(item, dict) and item else shown(item)
        raise bad(f'"start", "end" and "type" ({ENTITY_FORM})', got)
    unit = "characters" if isinstance(source, str) else "tokens"
    positions: list[int] = []
    for key in ("start", "end"):
        low, high = (0, len(source) - 1) if key == "start" else (positions[0] + 1, len(source))
        value = item[key]
        if not isinstance(value, WholeNumber):
            raise bad(f'a whole number as "{key}"', shown(value), key)
        position = int(value) if len(value) <= _DIGITS else -1
        if not low <= position <= high:
            above = ', which is exclusive and above "start",' if key == "end" else ""
            text = f"from {low} to {high}" if low < high else f"of {low}"
            raise bad(f'"{key}"{above} {text} in a text of {len(source)} {unit}', shown(value), key)
        positions.append(position)
    type_: Any = item["type"]
    if not is_string(type_) or not type_.strip() or HALF_PAIR.search(type_):
        raise bad('a text that is not blank as "type"', shown(type_), "type")
    start, end = positions
    if isinstance(source, str) and item.get("text", source[start:end]) != source[start:end]:
        raise bad(
            f"the text that stands from {start} to {end}, {shorten(source[start:end])}", shown(item["text"]), "text"
        )
    return start, end, type_
