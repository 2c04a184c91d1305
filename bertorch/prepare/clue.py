"""The JSON lines of CLUE: an object a line, with keys that depend on the task."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from loguru import logger

from bertorch.data.lines import HALF_PAIR, BadLineError, read_numbered_rows, shorten, some
from bertorch.data.tagged_sentences import format_tagged
from bertorch.data.tags import SPELLINGS, tag_entities
from bertorch.prepare.examples import MEND, columns_line

# What OCNLI, as SNLI and MNLI, writes where the annotators did not agree; such lines are to be left out.
NO_MAJORITY = "-"
# First character, character behind the last, type.
Entity = tuple[int, int, str]
_NLI = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Form:
    """What the lines of a task hold.

    Attributes:
        texts: keys of the texts.
        label: keys that the label may have.
        labels: those there are, in the order of their ids.
        left_out: the label of lines that are left out, if there is one.
    """

    texts: tuple[str, ...]
    label: tuple[str, ...]
    labels: tuple[str, ...]
    left_out: str | None = None


_NLI_FORM = Form(("sentence1", "sentence2"), ("label", "gold_label"), _NLI, NO_MAJORITY)
FORMS = {
    "afqmc": Form(("sentence1", "sentence2"), ("label",), ("0", "1")),
    "cmnli": _NLI_FORM,
    "ocnli": _NLI_FORM,
    "tnews": Form(
        ("sentence",),
        ("label_desc",),
        (  # in the order of their numbers, 100 to 116
            "news_story",
            "news_culture",
            "news_entertainment",
            "news_sports",
            "news_finance",
            "news_house",
            "news_car",
            "news_edu",
            "news_tech",
            "news_military",
            "news_travel",
            "news_world",
            "news_stock",
            "news_agriculture",
            "news_game",
        ),
    ),
}
CLUENER_TYPES = (
    "address",
    "book",
    "company",
    "game",
    "government",
    "movie",
    "name",
    "organization",
    "position",
    "scene",
)
TASKS = (*sorted(FORMS), "cluener")


def clue_labels(task: str, scheme: str) -> list[str]:
    """The label file of a task; of CLUENER, the tags of all its types in a scheme, a name of `SPELLINGS`."""
    if task in FORMS:
        return list(FORMS[task].labels)
    letters = sorted(set(SPELLINGS[scheme]) - {"O"})
    return ["O", *(f"{letter}-{type_}" for letter in letters for type_ in CLUENER_TYPES)]


def convert_clue(path: str, task: str, *, scheme: str, unlabelled: bool, longest: bool) -> list[str]:
    """Convert a file of CLUE.

    Args:
        path: the file.
        task: one of `TASKS`.
        scheme: of the tags of CLUENER, a name of `SPELLINGS`.
        longest: whether only the longest of entities that overlap is kept in CLUENER; else they are an error.
        unlabelled: whether to write texts only, as of a test set, which has no labels.

    Returns:
        Lines `text⇥label`, `a⇥b⇥label`, JSON lines for CLUENER, or the texts.

    Raises:
        UserError: a missing file, or malformed lines.
    """

    def parse(line: str) -> str | None:
        read = _object(line)
        if task == "cluener":
            return _text(read, "text") if unlabelled else _tagged(read, scheme, longest=longest)
        form = FORMS[task]
        texts = [_text(read, key) for key in form.texts]
        if unlabelled:
            return columns_line(texts)
        label = _label(read, form)
        return None if label == form.left_out else columns_line([*texts, label])

    rows = read_numbered_rows(path, parse, on_bad_line="stop", remedy=MEND)
    lines = [line for _, line in rows if line is not None]
    if len(lines) < len(rows):
        logger.info("{}: lines without a majority label (-), left out: {}", path, len(rows) - len(lines))
    return lines


def _object(line: str) -> Mapping[str, Any]:
    try:
        read = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadLineError(f"expected a JSON object, got: {error.msg}", error.colno) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
        raise BadLineError(f"expected a JSON object, got: {error}") from error
    if not isinstance(read, dict):
        raise BadLineError(f"expected a JSON object, got {shorten(line)}")
    return read


def _text(read: Mapping[str, Any], key: str) -> str:
    text = read.get(key)
    if not isinstance(text, str):
        raise BadLineError(f"expected a text with the key {key!r}, got the keys {some(list(read))}")
    if HALF_PAIR.search(text):
        raise BadLineError(f"expected text, got half a surrogate pair: {shorten(text)}")
    return text


def _label(read: Mapping[str, Any], form: Form) -> str:
    """The label as text: AFQMC has "0" in one copy and 0 in another."""
    known = [*form.labels, *([form.left_out] if form.left_out else [])]
    found = next((read[key] for key in form.label if key in read), None)
    if found is None:
        raise BadLineError(
            f"expected a label with the key {' or '.join(map(repr, form.label))}, got the keys {some(list(read))}; "
            "convert a test set, which has none, with --unlabelled"
        )
    if str(found) not in known:
        raise BadLineError(f"expected one of the labels ({some(known)}), got {shorten(str(found))}")
    return str(found)


def _tagged(read: Mapping[str, Any], scheme: str, *, longest: bool) -> str:
    """A JSON line with each character as a token, from `{"name": {"叶老桂": [[9, 11]]}}`: first and last character."""
    text = _text(read, "text")
    if not text:
        raise BadLineError("expected a text, got an empty one")
    entities = _entities(read.get("label"), text)
    if longest:
        entities = _longest(entities)
    for (start, end, type_), (next_start, next_end, next_type) in pairwise(sorted(entities)):
        if next_start < end:
            raise BadLineError(
                f"expected entities that do not overlap, got {type_} {text[start:end]!r} at {start} and "
                f"{next_type} {text[next_start:next_end]!r} at {next_start}; --longest keeps the longest of them"
            )
    return format_tagged(list(text), tag_entities(len(text), entities, scheme))


def _longest(entities: list[Entity]) -> list[Entity]:
    """Without those that overlap a longer one, or an equally long one that begins before or comes first."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: (entity[0] - entity[1], entity[0])):
        if all(entity[1] <= start or end <= entity[0] for start, end, _ in kept):
            kept.append(entity)
    return kept


def _entities(label: Any, text: str) -> list[Entity]:
    if not isinstance(label, dict) or not all(isinstance(of_type, dict) for of_type in label.values()):
        raise BadLineError(
            f'expected a label such as {{"name": {{"叶老桂": [[9, 11]]}}}}, got {shorten(str(label))}; '
            "convert a test set, which has none, with --unlabelled"
        )
    entities = []
    for type_, of_type in label.items():
        if type_ not in CLUENER_TYPES:
            raise BadLineError(f"expected one of the types ({some(CLUENER_TYPES)}), got {shorten(type_)}")
        for surface, places in of_type.items():
            for place in places if isinstance(places, list) else [places]:
                match place:
                    case [int(start), int(end)] if start >= 0 and surface and text[start : end + 1] == surface:
                        entities.append((start, end + 1, type_))
                    case _:
                        raise BadLineError(
                            f"expected the first and last character of {shorten(surface)} in the text, "
                            f"got {shorten(str(place))}"
                        )
    return entities
