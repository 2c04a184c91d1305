"""The files of sequence labelling: JSON lines with the tokens of a sentence and their tags."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from loguru import logger

from bertorch.data.lines import HALF_PAIR, BadLineError, read_rows, shorten, some, stream_rows
from bertorch.data.tags import TagSet

_TAGGED_FORM = '{"text": ["我", "们"], "label": ["O", "O"]}'
_TOKENS_FORM = '{"text": ["我", "们"]} or {"text": "我们"}'
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: set[str] = set()
    for key, _ in pairs:
        if key in keys:
            raise BadLineError(f"expected each key once ({_TAGGED_FORM}), got {shorten(key)} again")
        keys.add(key)
    return dict(pairs)


# No number is of use here, and Python refuses to read those of more than 4300 digits.
_JSON = json.JSONDecoder(
    object_pairs_hook=_each_key_once,
    parse_int=lambda _: None,
    parse_float=lambda _: None,
    parse_constant=lambda _: None,
)


@dataclass(frozen=True)
class TaggedSentences:
    """Sentences of tokens with a tag for each.

    Attributes:
        tokens: the tokens of each of N sentences, at least one.
        tags: (tokens,) int64 for each sentence, tag ids.
    """

    tokens: list[list[str]]
    tags: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.tokens)


def read_tagged_sentences(
    path: str, tags: TagSet, *, strict: bool = False, on_bad_line: str = "stop"
) -> TaggedSentences:
    """Read `{"text": ["我", "们"], "label": ["O", "O"]}` lines: the tokens of a sentence and a tag for each.

    Args:
        path: the file.
        tags: the tags known.
        strict: whether a tag where the scheme does not allow it, such as I- without B-, is a flaw; else such lines are
            kept, and counted in the log.
        on_bad_line: `stop` raises, `skip` drops malformed lines and logs how many.

    Raises:
        UserError: a missing or empty file, or malformed lines: no JSON object of this form, a key that comes twice, no
            token, half a surrogate pair in one, another number of tags than of tokens, a tag that is not known. The
            column named is that of the first offence in the line.
    """
    ids = {tag: index for index, tag in enumerate(tags.tags)}

    def parse(line: str) -> tuple[list[str], np.ndarray]:
        tokens, labels = parse_tagged(line)
        for place, label in enumerate(labels):
            if label not in ids:
                flaw = f"expected one of the tags ({some(tags.tags)}), got {shorten(label)} for token {place + 1}"
                raise BadLineError(flaw, _column_of(line, "label", place))
        sentence = np.array([ids[label] for label in labels], dtype=np.int64)
        offence = tags.first_violation(sentence) if strict else None
        if offence is not None:
            flaw = f"expected tags in the order of the scheme, got {tags.describe(sentence, offence)}"
            raise BadLineError(flaw, _column_of(line, "label", offence))
        return tokens, sentence

    rows = read_rows(path, parse, on_bad_line=on_bad_line)
    sentences = TaggedSentences([tokens for tokens, _ in rows], [sentence for _, sentence in rows])
    _tell_offences(path, tags, sentences.tags)
    return sentences


def stream_untagged(path: str) -> Iterator[str | list[str]]:
    """Read plain text, a sentence a line, or JSON lines: `{"text": ["我", "们"]}` with tokens, or `{"text": "我们"}`.

    The first line decides which of the two the file is. Other keys, such as `label`, are left out.

    Args:
        path: the file, or `-` for what is piped in.

    Raises:
        UserError: a missing or empty file, or a malformed line.
    """
    is_json: bool | None = None

    def parse(line: str) -> str | list[str]:
        nonlocal is_json
        if is_json is None:
            is_json = _text_of(line) is not None
        if not is_json:
            return line
        text = _text_of(line)
        if isinstance(text, str) and text.strip() and not HALF_PAIR.search(text):
            return text
        if _is_strings(text) and text and not any(map(HALF_PAIR.search, text)):
            return text
        raise BadLineError(f"expected {_TOKENS_FORM} in each line, got {shorten(line)}")

    return stream_rows(path, parse)


def _text_of(line: str) -> Any:
    """What a line of JSON has under `text`, None if it is no such line."""
    try:
        parsed = _JSON.decode(line)
    except (json.JSONDecodeError, RecursionError, BadLineError):
        return None
    return parsed.get("text") if isinstance(parsed, dict) else None


def _tell_offences(path: str, tags: TagSet, sentences: list[np.ndarray]) -> None:
    """Warn of tags out of the scheme's order, which count as the metric has it: not as part of an entity."""
    offences = [(number, tags.first_violation(sentence)) for number, sentence in enumerate(sentences)]
    found = [(number, place) for number, place in offences if place is not None]
    if found:
        number, place = found[0]
        logger.warning(
            "{}: sentences with tags out of the scheme's order: {}; the first is sentence {}: {}",
            path,
            len(found),
            number + 1,
            tags.describe(sentences[number], place),
        )


def parse_tagged(line: str) -> tuple[list[str], list[str]]:
    """The tokens of a line and a tag for each, whatever the tags are.

    Raises:
        BadLineError: it has not the form, see `read_tagged_sentences`.
    """
    try:
        parsed = _JSON.decode(line)
    except json.JSONDecodeError as error:
        raise BadLineError(f"expected a JSON object ({_TAGGED_FORM}), got: {error.msg}", error.colno) from error
    except RecursionError as error:
        raise BadLineError(f"expected a JSON object ({_TAGGED_FORM}), got one nested too deeply") from error
    if not isinstance(parsed, dict) or not all(_is_strings(parsed.get(key)) for key in ("text", "label")):
        raise BadLineError(f"expected two lists of strings ({_TAGGED_FORM}), got {shorten(line)}")
    tokens, labels = parsed["text"], parsed["label"]
    if not tokens:
        raise BadLineError(f"expected at least one token ({_TAGGED_FORM}), got none")
    if len(tokens) != len(labels):
        flaw = f"expected a tag for each of the {len(tokens)} tokens, got {len(labels)} tags"
        raise BadLineError(flaw, _column_of(line, "label", min(len(tokens), len(labels) - 1)))
    if "\\" in line:  # only an escape can give half a pair: UTF-8 has none
        for place, token in enumerate(tokens):
            if HALF_PAIR.search(token):
                flaw = f"expected text, got half a surrogate pair in token {place + 1}: {shorten(token)}"
                raise BadLineError(flaw, _column_of(line, "text", place))
    return tokens, labels


def format_tagged(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """The line that `parse_tagged` reads."""
    return json.dumps({"text": tokens, "label": tags}, ensure_ascii=False)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _column_of(line: str, key: str, place: int) -> int:
    """Where in a line of JSON an item of a list of strings stands, in characters from 1; -1 is where the list begins.

    Args:
        line: an object, as it was read without a flaw.
        key: of the object itself, not of one inside it.
        place: the item's number.
    """
    end = line.index("{") + 1
    name = None
    while name != key:
        name, end = _JSON.raw_decode(line, _past_signs(line, end))
        beginning = _past_signs(line, end)
        _, end = _JSON.raw_decode(line, beginning)
    if place < 0:
        return beginning + 1
    return next(islice(_STRING.finditer(line, beginning), place, None)).start() + 1


def _past_signs(line: str, start: int) -> int:
    """Where the next value or key begins, behind white space, comma and colon."""
    while line[start] in " \t\r,:":
        start += 1
    return start
