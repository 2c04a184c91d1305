"""Texts → the tokens that a tagger sees, and entities → their positions in the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from bertorch.config import SPLITS
from bertorch.data.lines import HALF_PAIR
from bertorch.data.spans import Span
from bertorch.data.text_splits import cut_text
from bertorch.errors import UserError


class Entity(NamedTuple):
    """An entity in a text; positions are characters of a plain text, or tokens of a list of tokens."""

    type: str  # such as `PER`
    start: int
    end: int  # exclusive
    text: str
    score: float  # the probability of exactly this entity, see `SpanBatch.scores`


@dataclass(frozen=True)
class TaggedText:
    """A text with what was found in it."""

    tokens: list[str]
    tags: list[str]  # a tag for each token; none where entities overlap, which tags cannot spell
    entities: list[Entity]  # in the order of the text


@dataclass(frozen=True)
class TextTokens:
    """The tokens of a text, and their positions in it."""

    source: str | list[str]  # the text, or the tokens themselves
    tokens: list[str]
    offsets: list[tuple[int, int]]  # start and end of each in the text, or its own index and the next
    more: Mapping[str, Any] = field(default_factory=dict)  # other keys of the line, for that of the result

    @classmethod
    def of(cls, source: str | Sequence[str], split: str) -> Self:
        """Cut a text into tokens as `split` says, or take a list of tokens as it is.

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
            return cls(source, *cut_text(source, split))
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
    text = ""
    for token in tokens:
        ends = text[-1:] + token[:1]
        text += " " + token if text and token and ends.isascii() and ends.isalnum() else token
    return text
