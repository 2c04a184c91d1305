"""What a line with texts is made of, in columns and as a JSON object: the one place that knows the names."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bertorch.data.json_lines import (
    AS_WRITTEN,
    Number,
    WholeNumber,
    column_of_value,
    is_string,
    parse_object,
    shown,
)
from bertorch.data.lines import HALF_PAIR, BadLineError, first_few, object_in, shorten


class Value(NamedTuple):
    """What a value of JSON has to be."""

    kind: str  # for errors
    sample: str
    is_valid: Callable[[Any], bool]


def _is_label(value: Any) -> bool:
    return is_string(value) or isinstance(value, WholeNumber)


TEXT = Value("a text that is not empty", '"…"', lambda value: is_string(value) and bool(value.strip()))
STRING = Value("a text", '"…"', is_string)
ID = Value("an id as a string or whole number", '"…"', _is_label)
LABEL = Value("a label as a string or whole number", '"…"', _is_label)
LABELS = Value(
    "a list of labels, strings or whole numbers",
    '["…"]',
    lambda value: isinstance(value, list) and all(map(_is_label, value)),
)
NUMBER = Value("a finite number", "1.5", lambda value: isinstance(value, Number) and math.isfinite(float(value)))
TEXTS = Value(
    "a list of at least one text, none of them empty",
    '["…"]',
    lambda value: isinstance(value, list) and bool(value) and all(map(TEXT.is_valid, value)),
)


class LineForm(NamedTuple):
    """A line with texts, and a target beside them."""

    columns: str  # names of the columns, between `⇥`; the last one is the target
    keys: tuple[str, ...]  # of the texts in JSON
    targets: tuple[str, ...]  # keys of the target in JSON, the first of which that is there counts
    value: Value  # of the target

    @property
    def sample(self) -> str:
        """A JSON object of this form, for errors."""
        return _sample([*((key, TEXT) for key in self.keys), (self.targets[0], self.value)])


# By the name of the problem type and the number of texts.
LINE_FORMS = {
    ("single_label", 1): LineForm("text⇥label", ("text",), ("label",), LABEL),
    ("single_label", 2): LineForm("a⇥b⇥label", ("text_a", "text_b"), ("label",), LABEL),
    ("multi_label", 1): LineForm("text⇥labels", ("text",), ("labels",), LABELS),
    ("multi_label", 2): LineForm("a⇥b⇥labels", ("text_a", "text_b"), ("labels",), LABELS),
    ("score", 1): LineForm("text⇥score", ("text",), ("score", "label"), NUMBER),
    ("score", 2): LineForm("a⇥b⇥score", ("text_a", "text_b"), ("score", "label"), NUMBER),
    ("ranking", 2): LineForm("query⇥candidate⇥relevance", ("query", "candidate"), ("relevance",), NUMBER),
}
GROUP_KEYS = {"query": TEXT, "positive": TEXT, "negatives": TEXTS}
GROUP_SAMPLE = '{"query": "…", "positive": "…", "negatives": ["…"]}'
# The keys of an input without a target, by the number of its texts.
INPUT_KEYS: dict[int, list[tuple[str, ...]]] = {1: [("text",)], 2: [("text_a", "text_b"), ("query", "candidate")]}
_PAIR_KEYS = INPUT_KEYS[2][0]


def is_pair(parsed: dict[str, Any]) -> bool:
    """Whether a JSON object has the keys of a pair, and not that of a text."""
    return "text" not in parsed and any(parsed.keys() >= set(keys) for keys in INPUT_KEYS[2])


def has_texts(line: str) -> bool:
    """Whether a line is a JSON object with a key of a text."""
    parsed = object_in(line)
    return parsed is not None and any(
        key in parsed for choices in INPUT_KEYS.values() for keys in choices for key in keys
    )


def parse_labelled_object(line: str, form: LineForm, convert: Callable[[Any], Any]) -> tuple[list[str], Any]:
    """The texts of a line with a JSON object, and its target converted.

    Raises:
        BadLineError: it is no JSON object of this form, or `convert` raises it; with the column.
    """
    parsed = parse_object(line, form.sample, AS_WRITTEN)
    target = next((key for key in form.targets if key in parsed), form.targets[0])
    values = _values(line, parsed, {**dict.fromkeys(form.keys, TEXT), target: form.value}, form.sample)
    try:
        return values[:-1], convert(values[-1])
    except BadLineError as error:
        raise BadLineError(str(error), column_of_value(line, target)) from error


def parse_group(line: str, negatives: int) -> list[str]:
    """The query, the positive and the negatives of a line with a JSON object; as many as given, unless that is 0.

    Raises:
        BadLineError: it is no JSON object of this form; with the column.
    """
    query, positive, found = _values(line, parse_object(line, GROUP_SAMPLE, AS_WRITTEN), GROUP_KEYS, GROUP_SAMPLE)
    if negatives and len(found) != negatives:
        error = f"expected {negatives} negatives, as in the first line, got {len(found)} ({GROUP_SAMPLE})"
        raise BadLineError(error, column_of_value(line, "negatives"))
    return [query, positive, *found]


def parse_input(line: str, num_texts: int) -> tuple[str, ...]:
    """The texts of a line with a JSON object, one or two; for `num_texts=0` as many as it has.

    Raises:
        BadLineError: it is no JSON object with such texts; with the column.
    """
    choices = INPUT_KEYS[num_texts] if num_texts else [keys for each in INPUT_KEYS.values() for keys in each]
    sample = " or ".join(_sample([(key, TEXT) for key in keys]) for keys in choices)
    parsed = parse_object(line, sample, AS_WRITTEN)
    keys = next((keys for keys in choices if parsed.keys() >= set(keys)), choices[0])
    return tuple(_values(line, parsed, dict.fromkeys(keys, TEXT), sample))


def parse_document(line: str, *, has_title: bool) -> tuple[str, str]:
    """The id and the text of a line of a corpus or of queries, in BEIR's form, as its own models take it.

    With `has_title` a title, if there is one, stands before the text with a space between them.

    Raises:
        BadLineError: it is no JSON object of this form, or has no text; with the column, if there is one.
    """
    titled = {"title": STRING} if has_title else {}
    sample = _sample([("_id", ID), *titled.items(), ("text", STRING)])
    parsed = parse_object(line, sample, AS_WRITTEN)
    expected = {"_id": ID, "text": STRING} | (titled if parsed.get("title") is not None else {})
    name, text, *title = _values(line, parsed, expected, sample)
    text = " ".join([*title, text]).strip()
    if not text:
        raise BadLineError(f"expected a text that is not empty ({sample}), got none under the id {shorten(str(name))}")
    return str(name), text


def _values(line: str, parsed: dict[str, Any], expected: dict[str, Value], sample: str) -> list[Any]:
    """The values under the expected keys; further keys are ignored."""
    values = []
    for key, value in expected.items():
        if key not in parsed:
            hint = "; lines of pairs need --is_text_pair" if key == "text" and parsed.keys() >= set(_PAIR_KEYS) else ""
            got = f"the keys {first_few(list(parsed))}" if parsed else "no key"
            raise BadLineError(f'expected "{key}" ({sample}), got {got}{hint}')
        found = parsed[key]
        if not value.is_valid(found):
            error = f'expected {value.kind} as "{key}" ({sample}), got {shown(found)}'
            raise BadLineError(error, column_of_value(line, key))
        values.append(found)
    if "\\" in line:  # UTF-8 has no lone surrogate; only an escape can be one
        for key, found in zip(expected, values, strict=True):
            half = next(filter(HALF_PAIR.search, [found] if isinstance(found, str) else found), None)
            if half is not None:
                error = f'expected text, got half a surrogate pair in "{key}": {shorten(half)}'
                raise BadLineError(error, column_of_value(line, key))
    return values


def _sample(values: Sequence[tuple[str, Value]]) -> str:
    return "{" + ", ".join(f'"{key}": {value.sample}' for key, value in values) + "}"
