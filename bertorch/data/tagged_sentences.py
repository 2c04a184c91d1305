"""Readers of sequence labelling: JSON lines with the tokens of a sentence and their tags."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeGuard

import numpy as np
from loguru import logger

from bertorch.data.json_lines import column_of_value, parse_object
from bertorch.data.lines import HALF_PAIR, BadLineError, first_few, read_rows, shorten, stream_rows
from bertorch.data.scratch import GrowingLists
from bertorch.data.tags import TagSet
from bertorch.data.texts import TextLists, columns_of
from bertorch.files import to_json

_TAGGED_FORM = '{"text": ["我", "们"], "label": ["O", "O"]}'
_TOKENS_FORM = '{"text": ["我", "们"]} or {"text": "我们"}'
# How an object or list of JSON begins, and hardly a sentence.
_JSON_START = re.compile(r'\s*(?:\[?\s*\{\s*["}]|\[\s*")')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for key, value in pairs:
        if key in parsed:
            raise BadLineError(f"expected each key once ({_TAGGED_FORM}), got {shorten(key)} again")
        parsed[key] = value
    return parsed


# Numbers are not used, and Python refuses to parse those of more than 4300 digits.
_NO_NUMBERS: dict[str, Any] = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), lambda _: None)
_JSON = json.JSONDecoder(object_pairs_hook=_unique_keys, **_NO_NUMBERS)


@dataclass(frozen=True)
class TaggedSentences:
    """N sentences, each of at least one token."""

    tokens: Sequence[list[str]]  # of each sentence
    tags: Sequence[np.ndarray]  # of each sentence (tokens,) int64, tag ids

    def __len__(self) -> int:
        return len(self.tokens)


def read_tagged_sentences(
    path: str, tags: TagSet, *, strict: bool = False, on_bad_line: str = "stop"
) -> TaggedSentences:
    """Read `{"text": ["我", "们"], "label": ["O", "O"]}` lines: the tokens of a sentence and a tag for each.

    A sentence with a tag that violates the scheme, such as I- without B-, is malformed if `strict`; else it is kept,
    and the log counts such sentences.

    Raises:
        UserError: a missing or empty file, or malformed lines, with the column of the first error in each: no JSON
            object of this form, a repeated key, no token, a lone surrogate, another number of tags than of tokens, an
            unknown tag.
    """

    def parse(line: str) -> tuple[list[str], np.ndarray]:
        tokens, names = parse_tagged(line)
        for index, name in enumerate(names):
            if name not in tags.ids:
                error = f"expected one of the tags ({first_few(tags.tags)}), got {shorten(name)} for token {index + 1}"
                raise BadLineError(error, _column_of(line, "label", index))
        tag_ids = np.array([tags.ids[name] for name in names], dtype=np.int64)  # (tokens,)
        violation = tags.first_violation(tag_ids) if strict else None
        if violation is not None:
            error = f"expected tags in the order of the scheme, got {tags.describe(tag_ids, violation)}"
            raise BadLineError(error, _column_of(line, "label", violation))
        return tokens, tag_ids

    growing = GrowingLists()

    def token_lists() -> Iterator[tuple[str]]:
        for tokens, tag_ids in read_rows(path, parse, on_bad_line=on_bad_line):
            growing.append(tag_ids)
            yield (json.dumps(tokens, ensure_ascii=False),)

    (token_texts,) = columns_of(token_lists())
    tag_ids = growing.finish()
    violations = iter(()) if strict else find_violations(tags, tag_ids)
    first = next(violations, None)
    if first is not None:  # the metric counts such tags as part of no entity
        sentence, _, description = first
        message = "{}: sentences with tags out of the scheme's order: {}; the first is sentence {}: {}"
        logger.warning(message, path, 1 + sum(1 for _ in violations), sentence + 1, description)
    return TaggedSentences(TextLists(token_texts), tag_ids)


def find_violations(tags: TagSet, sentences: Iterable[np.ndarray]) -> Iterator[tuple[int, int, str]]:
    """The first violation of the scheme in each sentence that has one: indices of sentence and token, description."""
    first = ((sentence, ids, tags.first_violation(ids)) for sentence, ids in enumerate(sentences))
    return ((sentence, token, tags.describe(ids, token)) for sentence, ids, token in first if token is not None)


def stream_untagged(path: str) -> Iterator[str | list[str]]:
    """Read plain text, a sentence a line, or JSON lines: `{"text": ["我", "们"]}` with tokens, or `{"text": "我们"}`.

    The first line decides between the two, and a line of the other kind, or JSON of another form, is malformed. Keys
    other than `text` are ignored. See `stream_rows` for errors.
    """
    is_json: bool | None = None

    def parse(line: str) -> str | list[str]:
        nonlocal is_json
        looks_like_json = _JSON_START.match(line) is not None
        is_json = looks_like_json if is_json is None else is_json
        if not is_json and looks_like_json:
            raise BadLineError(f"expected plain text, as the first line is, got JSON: {shorten(line)}")
        return _text_of(line) if is_json else line

    return stream_rows(path, parse)


def _text_of(line: str) -> str | list[str]:
    """The value of `text` in a line with a JSON object."""
    try:
        parsed = parse_object(line, _TOKENS_FORM, _JSON)
    except BadLineError:
        parsed = {}
    text: Any = parsed.get("text")
    texts = [text] if isinstance(text, str) and text.strip() else text
    if texts and _is_strings(texts) and not any(map(HALF_PAIR.search, texts)):
        return text
    got = f"the keys {first_few(list(parsed))}" if parsed and "text" not in parsed else shorten(line)
    raise BadLineError(f"expected {_TOKENS_FORM} in each line, got {got}")


def parse_tagged(line: str) -> tuple[list[str], list[str]]:
    """The tokens of a line and a tag for each, of any scheme; errors as in `read_tagged_sentences`."""
    parsed = parse_object(line, _TAGGED_FORM, _JSON)
    tokens, tags = parsed.get("text"), parsed.get("label")
    if not _is_strings(tokens) or not _is_strings(tags):
        raise BadLineError(f"expected two lists of strings ({_TAGGED_FORM}), got {shorten(line)}")
    if not tokens:
        raise BadLineError(f"expected at least one token ({_TAGGED_FORM}), got none")
    if len(tokens) != len(tags):
        error = f"expected a tag for each of the {len(tokens)} tokens, got {len(tags)} tags"
        raise BadLineError(error, _column_of(line, "label", min(len(tokens), len(tags) - 1)))
    if "\\" in line:  # UTF-8 has no lone surrogate; only an escape can be one
        for index, token in enumerate(tokens):
            if HALF_PAIR.search(token):
                error = f"expected text, got half a surrogate pair in token {index + 1}: {shorten(token)}"
                raise BadLineError(error, _column_of(line, "text", index))
    return tokens, tags


def format_tagged(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """The line that `parse_tagged` reads."""
    return to_json({"text": tokens, "label": tags})


def _is_strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _column_of(line: str, key: str, index: int) -> int:
    """The column, in characters from 1, of an item of the list of strings under a key; -1 is the list itself."""
    column = column_of_value(line, key, _JSON)
    return column if index < 0 else next(islice(_STRING.finditer(line, column - 1), index, None)).start() + 1
