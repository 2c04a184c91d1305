"""Texts → the tokens that a tagger sees, and entities → where they stand in the text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from bertorch.data.lines import HALF_PAIR
from bertorch.data.spans import Span
from bertorch.errors import UserError

_CHARACTERS = re.compile(r"\S")
# Han, kana, hangul and what belongs to them are tokens by themselves; other letters and digits make words.
_WORDS = re.compile("[^\\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+|\\S")
# How `--split` cuts plain text.
SPLITS = {"characters": _CHARACTERS, "words": _WORDS}


class Entity(NamedTuple):
    """An entity in a text.

    Attributes:
        type: such as `PER`.
        start, end: where it is, the end exclusive: in characters of a plain text, in tokens of a list of tokens.
        text: what stands there.
        score: the probability of exactly this entity.
    """

    type: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class TaggedText:
    """A text with what was found in it.

    Attributes:
        tokens: that were tagged.
        tags: a tag for each token.
        entities: in the order of the text.
    """

    tokens: list[str]
    tags: list[str]
    entities: list[Entity]


@dataclass(frozen=True)
class TextTokens:
    """The tokens of a text, and where they stand in it.

    Attributes:
        source: the text, or the tokens themselves.
        tokens: of the text.
        offsets: start and end of each in the text, or its own index and the next.
    """

    source: str | list[str]
    tokens: list[str]
    offsets: list[tuple[int, int]]

    @classmethod
    def of(cls, source: str | Sequence[str], split: str) -> Self:
        """Cut a text into tokens, or take a list of tokens as it is.

        Args:
            source: the text or tokens.
            split: a name of `SPLITS`, for a text.

        Raises:
            UserError: it is neither, or there is no such split.
        """
        if split not in SPLITS:
            raise UserError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        parts = [source] if isinstance(source, str) else source
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise UserError(f"expected a text or a list of tokens, got {source!r}")
        if any(map(HALF_PAIR.search, parts)):
            raise UserError(f"expected text, got half a surrogate pair: {source!r}")
        if isinstance(source, str):
            found = list(SPLITS[split].finditer(source))
            return cls(source, [match.group() for match in found], [match.span() for match in found])
        tokens = list(source)
        return cls(tokens, tokens, [(index, index + 1) for index in range(len(tokens))])

    def __len__(self) -> int:
        return len(self.tokens)

    def entity(self, span: Span) -> Entity:
        """The entity of a span of tokens."""
        start, end = self.offsets[span.start][0], self.offsets[span.end - 1][1]
        text = self.source[start:end] if isinstance(self.source, str) else joined(self.tokens[span.start : span.end])
        return Entity(span.type, start, end, text, span.score)


def joined(tokens: Sequence[str]) -> str:
    """Tokens as a text: Latin words with a space between them, everything else end to end."""
    text = tokens[0] if tokens else ""
    for token in tokens[1:]:
        gap = " " if text[-1:].isascii() and token[:1].isascii() and text[-1:].isalnum() and token[:1].isalnum() else ""
        text += gap + token
    return text
