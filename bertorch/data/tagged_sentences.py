"""Readers of sequence labelling: JSON lines with the tokens of a sentence and their tags."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from loguru import logger

from bertorch.data.entity_lines import ENTITY_FORM, has_entities, other_keys
from bertorch.data.entity_reader import EntityReader
from bertorch.data.json_lines import AS_WRITTEN, JSON, column_of_value, is_string, is_strings, parse_object
from bertorch.data.lines import HALF_PAIR, BadLineError, first_few, read_rows, shorten, stream_rows
from bertorch.data.readers import read_label_names
from bertorch.data.scratch import GrowingLists
from bertorch.data.spans import SpanLists, any_overlap
from bertorch.data.tag_lines import TAGGED_FORM, tokens_and_tags
from bertorch.data.tags import TagSet, is_tag
from bertorch.data.text_splits import CHARACTERS
from bertorch.data.texts import TextLists, columns_of

_FORMS = f"{TAGGED_FORM} or {ENTITY_FORM}"
_TOKENS_FORM = '{"text": ["我", "们"]} or {"text": "我们"}'
# How an object of JSON, or a list of them, begins, and hardly a sentence; and a list of texts, or a sentence.
_JSON_START = re.compile(r'\s*\[?\s*\{\s*["}]')
_LIST_START = re.compile(r'\s*\[\s*"')


@dataclass(frozen=True)
class TaggedSentences:
    """N sentences, each of at least one token, with their entities: as tags, or as spans, which may overlap."""

    tokens: Sequence[list[str]]  # of each sentence
    tags: Sequence[np.ndarray] = ()  # of each sentence (tokens,) int64, tag ids; none with `spans`
    # Of each sentence (entities, 3) int64: first token, end (exclusive), type, sorted; None with `tags`.
    spans: Sequence[np.ndarray] | None = None
    split: str = CHARACTERS  # what the tokens are, a name of `SPLITS`

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def untagged(cls, tokens: Sequence[list[str]], *, as_spans: bool = False, split: str = CHARACTERS) -> Self:
        """Sentences without labels: all tags are the first one, or there are no spans."""
        if as_spans:
            return cls(tokens, spans=[np.zeros((0, 3), np.int64) for _ in tokens], split=split)
        return cls(tokens, [np.zeros(len(each), np.int64) for each in tokens], split=split)

    @property
    def is_nested(self) -> bool:
        """Whether two spans of a sentence overlap; tags have no such spans."""
        return any(any_overlap(spans, np.zeros(len(spans))) for spans in self.spans or ())


def read_tag_set(path: str, scheme: str) -> TagSet:
    """Read a label file: tags, if a line is one, such as O or B-PER; else types, whose tags are those of the scheme.

    Raises:
        UserError: see `read_label_names` and `TagSet`; types may be only one.
    """
    names = read_label_names(path, least=1)
    tag = next(filter(is_tag, names), None)
    if tag is not None:
        return TagSet(read_label_names(path), scheme, path, because=f"; {tag!r} among them says that all are tags")
    return TagSet.of_types(names, scheme, path)


def read_tagged_sentences(
    path: str,
    tags: TagSet,
    *,
    strict: bool = False,
    on_bad_line: str = "stop",
    split: str = CHARACTERS,
    as_spans: bool = False,
) -> TaggedSentences:
    """Read lines of tokens with a tag for each, and lines with entities, whichever each is.

    A line with the key `label` is `{"text": ["我", "们"], "label": ["O", "O"]}`, one with `entities` that of
    `bertorch.data.entity_lines`, whose text, if it is no list of tokens, is cut as `split` says.

    A sentence with a tag that violates the scheme, such as I- without B-, is malformed if `strict`; else it is kept,
    and the log counts such sentences. The entities of tags are those that `SpanFinder` finds.

    Args:
        path: the file.
        tags: the tags and types that may occur.
        strict, on_bad_line, split: see above and `read_rows`.
        as_spans: whether entities are read as spans; as tags, overlapping ones make a line malformed.

    Raises:
        UserError: a missing or empty file, or malformed lines, with the column of the first error in each: no JSON
            object of these forms, a repeated key, no token, a lone surrogate, another number of tags than of tokens,
            an unknown tag or type, or what `entities_of` and `tokens_of` raise.
    """
    labels = SpanLists(tags) if as_spans else GrowingLists()
    read_entities = EntityReader(tags, split, as_spans=as_spans)
    violations = _Violations(tags)

    def parse(line: str) -> tuple[list[str], np.ndarray]:
        parsed = parse_object(line, _FORMS, AS_WRITTEN)
        return read_entities(line, parsed) if has_entities(parsed) else _tagged(line, parsed, tags, strict=strict)

    def token_lists() -> Iterator[tuple[str]]:
        for tokens, found in read_rows(path, parse, on_bad_line=on_bad_line):
            labels.append(found)
            violations.count(found)
            yield (json.dumps(tokens, ensure_ascii=False),)

    (token_texts,) = columns_of(token_lists())
    violations.log(path)
    tokens, finished = TextLists(token_texts), labels.finish()
    if as_spans:
        return TaggedSentences(tokens, spans=finished, split=split)
    return TaggedSentences(tokens, finished, split=split)


def _tagged(line: str, parsed: dict[str, Any], tags: TagSet, *, strict: bool) -> tuple[list[str], np.ndarray]:
    """The tokens of a line and their tag ids, (tokens,) int64."""
    tokens, names = tokens_and_tags(line, parsed)
    for index, name in enumerate(names):
        if name not in tags.ids:
            error = f"expected one of the tags ({first_few(tags.tags)}), got {shorten(name)} for token {index + 1}"
            raise BadLineError(error, column_of_value(line, "label", index))
    tag_ids = np.array([tags.ids[name] for name in names], dtype=np.int64)  # (tokens,)
    violation = tags.first_violation(tag_ids) if strict else None
    if violation is not None:
        error = f"expected tags in the order of the scheme, got {tags.describe(tag_ids, violation)}"
        raise BadLineError(error, column_of_value(line, "label", violation))
    return tokens, tag_ids


class _Violations:
    """Counts the sentences whose tags are out of the scheme's order."""

    def __init__(self, tags: TagSet) -> None:
        self._tags = tags
        self._sentences = self._count = 0
        self._first = ""

    def count(self, labels: np.ndarray) -> None:
        """Take the next sentence: tags (tokens,), or spans (entities, 3), of which there is nothing to say."""
        self._sentences += 1
        token = self._tags.first_violation(labels) if labels.ndim == 1 else None
        if token is not None:
            self._count += 1
            self._first = self._first or f"{self._sentences}: {self._tags.describe(labels, token)}"

    def log(self, path: str) -> None:
        """Warn of them, if there are any."""
        if self._count:  # the metric counts such tags as part of no entity
            message = "{}: sentences with tags out of the scheme's order: {}; the first is sentence {}"
            logger.warning(message, path, self._count, self._first)


class UntaggedLine(NamedTuple):
    """A text or its tokens, and the other keys of the line."""

    text: str | list[str]
    more: Mapping[str, Any] = {}  # such as an id


def stream_untagged(path: str) -> Iterator[UntaggedLine]:
    """Read plain text, a sentence a line, or JSON lines: `{"text": ["我", "们"]}` with tokens, or `{"text": "我们"}`.

    The first line decides between the two, and a line of the other kind, or JSON of another form, is malformed. See
    `stream_rows` for errors.
    """
    is_json: bool | None = None

    def parse(line: str) -> UntaggedLine:
        nonlocal is_json
        looks_like_json = _JSON_START.match(line) is not None or _is_list(line)
        is_json = looks_like_json if is_json is None else is_json
        if not is_json and looks_like_json:
            raise BadLineError(f"expected plain text, as the first line is, got JSON: {shorten(line)}")
        return _untagged(line) if is_json else UntaggedLine(line)

    return stream_rows(path, parse)


def _is_list(line: str) -> bool:
    """Whether a line is JSON of a list that begins with a text."""
    if not _LIST_START.match(line):
        return False
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), list)
    return False


def _untagged(line: str) -> UntaggedLine:
    """What is in a line with a JSON object that has the key `text`."""
    try:
        parsed = parse_object(line, _TOKENS_FORM, AS_WRITTEN)
    except BadLineError:
        parsed = {}
    text: Any = parsed.get("text")
    texts = [text] if is_string(text) and text.strip() else text
    if texts and is_strings(texts) and not any(map(HALF_PAIR.search, texts)):
        has_more = bool(other_keys(parsed))
        return UntaggedLine(text, other_keys(parse_object(line, _TOKENS_FORM, JSON)) if has_more else {})
    got = f"the keys {first_few(list(parsed))}" if parsed and "text" not in parsed else shorten(line)
    raise BadLineError(f"expected {_TOKENS_FORM} in each line, got {got}")
