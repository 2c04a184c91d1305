"""Entity lines: a JSON object a line with a text and its entities, also those that `predict` of a tagger writes."""

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from bertorch.data.json_lines import parse_object
from bertorch.data.lines import HALF_PAIR, BadLineError, first_few, read_rows, shorten
from bertorch.data.readers import NOT_IN_LABELS
from bertorch.errors import UserError
from bertorch.files import to_json
from bertorch.prepare.json_documents import JSON

FORM = '{"text": "…", "entities": [{"start": 0, "end": 2, "type": "PER"}]}'
# Keys of lines of ours, which no other key of a document may take.
_OWN_KEYS = {"text", "entities", "label", "labels", "tokens", "tags"}
_REMEDY = "Fix them, or skip them with --on_bad_row skip; nothing was written."


class Entity(NamedTuple):
    """An entity of a text: `start : end` are its code points."""

    start: int
    end: int
    type: str
    score: float | None = None  # of a prediction


@dataclass(frozen=True)
class EntityLine:
    """A text and its entities, which may overlap."""

    text: str
    entities: list[Entity]
    more: dict[str, Any] = field(default_factory=dict)  # other keys of the line, such as an id

    def format(self) -> str:
        """The line."""
        entities = [{"start": each.start, "end": each.end, "type": each.type} for each in self.entities]
        return to_json({"text": self.text, "entities": entities, **self.more})


def other_keys(item: Mapping[str, Any], used: Collection[str] = ()) -> dict[str, Any]:
    """The keys of an object that are neither `used` nor keys of our lines."""
    return {key: value for key, value in item.items() if key not in used and key not in _OWN_KEYS}


def types_of(lines: Iterable[EntityLine], source: str) -> list[str]:
    """The types of all entities, sorted, for a label file.

    Raises:
        UserError: no entity.
    """
    types = sorted({entity.type for line in lines for entity in line.entities})
    if not types:
        raise UserError(f"{source}: expected entities, whose types are the labels, got none; leave out --label_file")
    return types


def checked_text(value: Any, key: str, keys: Iterable[str]) -> str:
    """The value under a key if it is a text; `keys` are those that there are, for the error."""
    if not isinstance(value, str):
        raise BadLineError(f"expected a text with the key {key!r}, got the keys {first_few(list(keys)) or 'none'}")
    if not value.strip():
        raise BadLineError(f"expected a text with the key {key!r}, got an empty one")
    if HALF_PAIR.search(value):
        raise BadLineError(f"expected text, got half a surrogate pair: {shorten(value)}")
    return value


def checked_type(value: Any) -> str:
    """The type of an entity."""
    if not isinstance(value, str) or not value.strip() or NOT_IN_LABELS.search(value) or HALF_PAIR.search(value):
        raise BadLineError(f"expected the type of an entity, such as 'PER', got {shorten(str(value))}")
    return value.strip()


def is_whole(value: Any) -> bool:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_entity_lines(path: str, *, on_bad_row: str = "stop") -> list[EntityLine]:
    """Read entity lines whose texts are strings or lists of tokens, which become strings, see `join_tokens`.

    Raises:
        UserError: a missing or empty file, or malformed lines: other JSON, an entity outside its text or with another
            text than stands there.
    """
    return list(read_rows(path, _parse, on_bad_line=on_bad_row, remedy=_REMEDY))


def _parse(line: str) -> EntityLine:
    item = parse_object(line, FORM, JSON)
    entities = item.get("entities")
    if not isinstance(entities, list) or not all(isinstance(entity, dict) for entity in entities):
        hint = "; these are tags, of which run_ner.py and predict make entities" if "label" in item else ""
        raise BadLineError(f"expected {FORM}, got the keys {first_few(list(item)) or 'none'}{hint}")
    text = item.get("text")
    if not isinstance(text, list):
        text = checked_text(text, "text", item)
        found = [_entity(entity, range(len(text) + 1), range(len(text) + 1), text) for entity in entities]
    elif text and all(isinstance(token, str) and token for token in text):
        text, starts, ends = join_tokens(text)
        text = checked_text(text, "text", item)
        found = [_entity(entity, [*starts, len(text)], [0, *ends], None) for entity in entities]
    else:
        raise BadLineError(f"expected a text or its tokens with the key 'text', got {shorten(str(text))}")
    return EntityLine(text, sorted(set(found), key=lambda entity: entity[:3]), other_keys(item))


def _entity(item: Mapping[str, Any], starts: Sequence[int], ends: Sequence[int], text: str | None) -> Entity:
    """An entity of a line; `starts` and `ends` are the code points of what it counts, `text` its text to compare."""
    type_, score = checked_type(item.get("type")), item.get("score")
    start: Any = item.get("start")
    end: Any = item.get("end")
    length = len(starts) - 1
    if not (is_whole(start) and is_whole(end) and 0 <= start < end <= length):
        expected = f"start and end (exclusive) within the text, 0 to {length}"
        raise BadLineError(f"expected {expected}, got {start} and {end} for {type_}")
    if text is not None and item.get("text", text[start:end]) != text[start:end]:
        raise BadLineError(
            f"expected an entity's text as it stands from {start} to {end}, {shorten(text[start:end])}, "
            f"got {shorten(str(item['text']))}"
        )
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise BadLineError(f"expected a number as the score of an entity, got {shorten(str(score))}")
    return Entity(starts[start], ends[end], type_, score)


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[int], list[int]]:
    """A text of tokens, where each begins in it, and where it ends (exclusive), in code points.

    Between two tokens stands a space, unless one of them is of a script without spaces there, such as Chinese.
    """
    starts, ends, parts = [0], [len(tokens[0])], [tokens[0]]
    for left, right in pairwise(tokens):
        parts += [" " if not _is_wide(left[-1]) and not _is_wide(right[0]) else "", right]
        starts.append(ends[-1] + len(parts[-2]))
        ends.append(starts[-1] + len(right))
    return "".join(parts), starts, ends


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"
