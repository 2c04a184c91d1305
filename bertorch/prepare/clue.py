"""The JSON lines of CLUE: an object a line, with keys that depend on the task."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from loguru import logger

from bertorch.data.json_lines import parse_object
from bertorch.data.lines import HALF_PAIR, BadLineError, first_few, read_rows, shorten
from bertorch.data.tag_lines import format_tagged
from bertorch.data.tags import SPELLINGS, Extent, tag_entities
from bertorch.prepare.examples import REMEDY, columns_line

# What OCNLI, like SNLI and MNLI, writes where the annotators did not agree; such lines are to be skipped.
NO_MAJORITY = "-"


@dataclass(frozen=True)
class Form:
    """The objects of a task."""

    texts: tuple[str, ...]  # keys of the texts
    label: tuple[str, ...]  # keys that the label may have
    label_names: tuple[str, ...]  # in the order of their ids
    skipped: str | None = None  # label of lines to skip


_PAIR = ("sentence1", "sentence2")
_NLI = Form(_PAIR, ("label", "gold_label"), ("entailment", "neutral", "contradiction"), NO_MAJORITY)
# In the order of their numbers, 100 to 116.
_TNEWS = "story culture entertainment sports finance house car edu tech military travel world stock agriculture game"
FORMS = {
    "afqmc": Form(_PAIR, ("label",), ("0", "1")),
    "cmnli": _NLI,
    "ocnli": _NLI,
    "tnews": Form(("sentence",), ("label_desc",), tuple(f"news_{name}" for name in _TNEWS.split())),
}
_TYPES = ("address", "book", "company", "game", "government", "movie", "name", "organization", "position", "scene")
TASKS = (*sorted(FORMS), "cluener")
_ENTITIES_FORM = '{"name": {"叶老桂": [[9, 11]]}}'


def clue_labels(task: str, scheme: str) -> list[str]:
    """The label file of a task; of CLUENER, the tags of all its types in a scheme, a name of `SPELLINGS`."""
    if task in FORMS:
        return list(FORMS[task].label_names)
    letters = sorted(set(SPELLINGS[scheme]) - {"O"})
    return ["O", *(f"{letter}-{type_}" for letter in letters for type_ in _TYPES)]


def convert_clue(path: str, task: str, *, scheme: str, unlabelled: bool, longest: bool) -> list[str]:
    """Convert a file of a task to lines `text⇥label`, `a⇥b⇥label`, JSON lines for CLUENER, or without labels.

    Args:
        scheme: of the tags of CLUENER, a name of `SPELLINGS`.
        unlabelled: whether to write texts only, for a test set without labels.
        longest: whether to keep only the longest of overlapping entities in CLUENER; else they are an error.

    Raises:
        UserError: a missing file, or malformed lines.
    """

    def parse(line: str) -> str | None:
        item = parse_object(line, f"a line of {task}")
        if task == "cluener":
            return _text(item, "text") if unlabelled else _tagged(item, scheme, longest=longest)
        form = FORMS[task]
        texts = [_text(item, key) for key in form.texts]
        if unlabelled:
            return columns_line(texts)
        label = _label(item, form)
        return None if label == form.skipped else columns_line([*texts, label])

    rows = list(read_rows(path, parse, remedy=REMEDY))
    lines = [line for line in rows if line is not None]
    if len(lines) < len(rows):
        logger.info("{}: skipped lines without a majority label (-): {}", path, len(rows) - len(lines))
    return lines


def _text(item: Mapping[str, Any], key: str) -> str:
    text = item.get(key)
    if not isinstance(text, str):
        raise BadLineError(f"expected a text with the key {key!r}, got the keys {first_few(list(item))}")
    if HALF_PAIR.search(text):
        raise BadLineError(f"expected text, got half a surrogate pair: {shorten(text)}")
    return text


def _label(item: Mapping[str, Any], form: Form) -> str:
    """The label as text: AFQMC has "0" in one copy and 0 in another."""
    label = next((item[key] for key in form.label if key in item), None)
    if label is None:
        raise BadLineError(
            f"expected a label with the key {' or '.join(map(repr, form.label))}, got the keys "
            f"{first_few(list(item))}; convert a test set, which has none, with --unlabelled"
        )
    if str(label) not in (*form.label_names, form.skipped):
        raise BadLineError(f"expected one of the labels ({first_few(form.label_names)}), got {shorten(str(label))}")
    return str(label)


def _tagged(item: Mapping[str, Any], scheme: str, *, longest: bool) -> str:
    """A JSON line with each character as a token."""
    text = _text(item, "text")
    if not text:
        raise BadLineError("expected a text, got an empty one")
    entities = list(_entities(item.get("label"), text))
    if longest:
        entities = _longest(entities)
    for (start, end, type_), (next_start, next_end, next_type) in pairwise(sorted(entities)):
        if next_start < end:
            raise BadLineError(
                f"expected entities that do not overlap, got {type_} {text[start:end]!r} at {start} and "
                f"{next_type} {text[next_start:next_end]!r} at {next_start}; --longest keeps the longest of them"
            )
    return format_tagged(list(text), tag_entities(len(text), entities, scheme))


def _longest(entities: list[Extent]) -> list[Extent]:
    """Without those that overlap a longer one, or an equally long one that begins before or comes first."""
    kept: list[Extent] = []
    for entity in sorted(entities, key=lambda entity: (entity[0] - entity[1], entity[0])):
        if all(entity[1] <= start or end <= entity[0] for start, end, _ in kept):
            kept.append(entity)
    return kept


def _entities(label: Any, text: str) -> Iterator[Extent]:
    """The entities of a label such as `{"name": {"叶老桂": [[9, 11]]}}`, with first and last character."""
    if not isinstance(label, dict) or not all(isinstance(of_type, dict) for of_type in label.values()):
        raise BadLineError(
            f"expected a label such as {_ENTITIES_FORM}, got {shorten(str(label))}; "
            "convert a test set, which has none, with --unlabelled"
        )
    for type_, of_type in label.items():
        if type_ not in _TYPES:
            raise BadLineError(f"expected one of the types ({first_few(_TYPES)}), got {shorten(type_)}")
        for surface, found in of_type.items():
            for bounds in found if isinstance(found, list) else [found]:
                match bounds:
                    case [int(start), int(end)] if start >= 0 and surface and text[start : end + 1] == surface:
                        yield start, end + 1, type_
                    case _:
                        expected = f"the first and last character of {shorten(surface)} in the text"
                        raise BadLineError(f"expected {expected}, got {shorten(str(bounds))}")
