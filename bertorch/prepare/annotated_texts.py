"""Texts with entities as annotation tools exchange them: from and to lines of `bertorch.data.entity_lines`.

Beside what training reads, they have scores, and other keys such as an id.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from bertorch.data.entity_lines import ENTITY_FORM, entities_of, other_keys
from bertorch.data.json_lines import AS_WRITTEN, JSON, parse_object
from bertorch.data.lines import HALF_PAIR, BadLineError, first_few, read_rows, shorten
from bertorch.data.readers import NOT_IN_LABELS
from bertorch.data.tags import is_tag
from bertorch.errors import UserError
from bertorch.files import to_json
from bertorch.prepare.examples import REMEDY_OF_ROWS


class Entity(NamedTuple):
    """An entity of a text: `start : end` are its code points."""

    start: int
    end: int
    type: str
    score: float | None = None  # of a prediction


@dataclass(frozen=True)
class AnnotatedText:
    """A text and its entities, which may overlap."""

    text: str
    entities: list[Entity]
    more: dict[str, Any] = field(default_factory=dict)  # other keys of the line, such as an id

    def format(self) -> str:
        """The line."""
        entities = [{"start": each.start, "end": each.end, "type": each.type} for each in self.entities]
        return to_json({"text": self.text, "entities": entities, **self.more})


def types_of(lines: Iterable[AnnotatedText], source: str) -> list[str]:
    """The types of all entities, sorted, for a label file.

    Raises:
        UserError: no entity, or see `require_types`.
    """
    types = sorted({entity.type for line in lines for entity in line.entities})
    if not types:
        raise UserError(f"{source}: expected entities, whose types are the labels, got none; leave out --label_file")
    require_types(types, source)
    return types


def require_types(types: Iterable[str], source: str) -> None:
    """Raise a `UserError` for a type such as B-cell, for which a label file would be taken for one of tags."""
    if tag := next(filter(is_tag, types), None):
        raise UserError(
            f"{source}: expected types that are no tags, as a label file has either, got {tag!r}; rename it"
        )


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


def read_annotated_texts(path: str, *, on_bad_row: str = "stop") -> list[AnnotatedText]:
    """Read entity lines whose texts are strings or lists of tokens, which become strings, see `join_tokens`.

    Raises:
        UserError: a missing or empty file, or malformed lines: other JSON, an entity outside its text or with another
            text than stands there.
    """
    return list(read_rows(path, _parse, on_bad_line=on_bad_row, remedy=REMEDY_OF_ROWS))


def _parse(line: str) -> AnnotatedText:
    written = parse_object(line, ENTITY_FORM, AS_WRITTEN)
    if "entities" not in written:
        got = "tags" if "label" in written else f"the keys {first_few(list(written))}"
        raise BadLineError(f"expected a text and entities ({ENTITY_FORM}), got {got}")
    source, extents = entities_of(line, written)
    item = parse_object(line, ENTITY_FORM, JSON)
    if isinstance(source, str):
        text, starts, ends = source, list(range(len(source))), list(range(1, len(source) + 1))
    else:
        text, starts, ends = join_tokens(source)
    entities = []
    for (start, end, type_), found in zip(extents, item["entities"], strict=True):
        entity = Entity(starts[start], ends[end - 1], checked_type(type_), found.get("score"))
        surface = text[entity.start : entity.end]
        if not surface.strip():
            raise BadLineError(f"expected an entity with text, got {type_} from {start} to {end}")
        if isinstance(entity.score, bool) or not isinstance(entity.score, int | float | None):
            raise BadLineError(f"expected a number as the score of an entity, got {shorten(str(entity.score))}")
        entities.append(entity)
    return AnnotatedText(checked_text(text, "text", item), in_order(entities), other_keys(item))


def in_order(entities: Iterable[Entity]) -> list[Entity]:
    """Entities by start, end and type."""
    return sorted(entities, key=lambda entity: entity[:3])


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[int], list[int]]:
    """A text of tokens, where each begins in it, and where it ends (exclusive), in code points.

    Between two tokens stands a space, unless one of them is of a script without spaces there, such as Chinese.
    """
    starts, ends, parts = [0], [len(tokens[0])], [tokens[0]]
    for left, right in pairwise(tokens):
        parts += ["" if _is_wide(left[-1:]) or _is_wide(right[:1]) else " ", right]
        starts.append(ends[-1] + len(parts[-2]))
        ends.append(starts[-1] + len(right))
    return "".join(parts), starts, ends


def _is_wide(character: str) -> bool:
    return character != "" and unicodedata.east_asian_width(character) in "WF"
