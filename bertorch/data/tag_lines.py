"""Lines with the tokens of a sentence and a tag for each: `{"text": ["我", "们"], "label": ["O", "O"]}`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bertorch.data.json_lines import AS_WRITTEN, column_of_value, is_strings, parse_object, refuse_half_pairs
from bertorch.data.lines import BadLineError, shorten
from bertorch.data.tags import TagSet
from bertorch.files import to_json

TAGGED_FORM = '{"text": ["我", "们"], "label": ["O", "O"]}'


def parse_tagged(line: str) -> tuple[list[str], list[str]]:
    """The tokens of a line and a tag for each, of any scheme; errors as in `read_tagged_sentences`."""
    return tokens_and_tags(line, parse_object(line, TAGGED_FORM, AS_WRITTEN))


def tokens_and_tags(line: str, parsed: dict[str, Any]) -> tuple[list[str], list[str]]:
    """As `parse_tagged`, from the object that `AS_WRITTEN` made of the line."""
    tokens, tags = parsed.get("text"), parsed.get("label")
    if not is_strings(tokens) or not is_strings(tags):
        raise BadLineError(f"expected two lists of strings ({TAGGED_FORM}), got {shorten(line)}")
    if not tokens:
        raise BadLineError(f"expected at least one token ({TAGGED_FORM}), got none")
    if len(tokens) != len(tags):
        error = f"expected a tag for each of the {len(tokens)} tokens, got {len(tags)} tags"
        path = ("label", min(len(tokens), len(tags) - 1)) if tags else ("label",)
        raise BadLineError(error, column_of_value(line, *path))
    refuse_half_pairs(line, tokens)
    return tokens, tags


def format_tagged(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """The line that `parse_tagged` reads."""
    return to_json({"text": tokens, "label": tags})


def find_violations(tags: TagSet, sentences: Iterable[np.ndarray]) -> Iterator[tuple[int, int, str]]:
    """The first violation of the scheme in each sentence that has one: indices of sentence and token, description."""
    first = ((sentence, ids, tags.first_violation(ids)) for sentence, ids in enumerate(sentences))
    return ((sentence, token, tags.describe(ids, token)) for sentence, ids, token in first if token is not None)
