"""Texts → tokens to tag, and tags → entities in the text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch

from bertorch.data.lines import HALF_PAIR
from bertorch.data.tags import TagSet
from bertorch.errors import UserError
from bertorch.training.entity_f1 import EntityFinder

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
    """

    type: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class TaggedText:
    """A text with what was found in it.

    Attributes:
        tokens: that were tagged.
        tags: (tokens), a tag for each.
        entities: in the order of the text.
    """

    tokens: list[str]
    tags: list[str]
    entities: list[Entity]


@dataclass(frozen=True)
class Sentence:
    """The tokens of a text, and where they stand in it.

    Attributes:
        source: the text, or the tokens themselves.
        tokens: of the text.
        spans: start and end of each in the text, or its own number and the next.
    """

    source: str | list[str]
    tokens: list[str]
    spans: list[tuple[int, int]]

    @classmethod
    def of(cls, source: str | Sequence[str], split: str) -> Self:
        """Cut a text into tokens, or take tokens as they are.

        Args:
            source: the text, or a list of tokens.
            split: a name of `SPLITS`, for a text.

        Raises:
            UserError: it is neither.
        """
        parts = [source] if isinstance(source, str) else source
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise UserError(f"expected a text or a list of tokens, got {source!r}")
        if any(map(HALF_PAIR.search, parts)):
            raise UserError(f"expected text, got half a surrogate pair: {source!r}")
        if isinstance(source, str):
            found = list(SPLITS[split].finditer(source))
            return cls(source, [match.group() for match in found], [match.span() for match in found])
        tokens = list(source)
        return cls(tokens, tokens, [(number, number + 1) for number in range(len(tokens))])

    def __len__(self) -> int:
        return len(self.tokens)

    def entity(self, type_: str, first: int, end: int) -> Entity:
        """The entity of the tokens `first : end`."""
        start, stop = self.spans[first][0], self.spans[end - 1][1]
        text = self.source[start:stop] if isinstance(self.source, str) else joined(self.tokens[first:end])
        return Entity(type_, start, stop, text)


def joined(tokens: Sequence[str]) -> str:
    """Tokens as a text: Latin words with a space between them, everything else end to end."""
    text = tokens[0] if tokens else ""
    for token in tokens[1:]:
        gap = " " if text[-1:].isascii() and token[:1].isascii() and text[-1:].isalnum() and token[:1].isalnum() else ""
        text += gap + token
    return text


def entities_in(tags: TagSet, ids: np.ndarray, lengths: Sequence[int]) -> Iterator[list[tuple[int, int, str]]]:
    """The entities of each sentence: first token, end and type.

    Args:
        tags: the tags and their scheme.
        ids: (K,) int64, the tags of all sentences, end to end.
        lengths: tokens of each sentence.
    """
    bounds = np.concatenate([[0], lengths]).cumsum()  # (N+1,)
    cpu = torch.device("cpu")
    ends, types = EntityFinder(tags, cpu)(torch.from_numpy(ids), torch.from_numpy(bounds))
    firsts = ends.nonzero().squeeze(1).numpy()  # (entities,)
    of_sentence = np.searchsorted(firsts, bounds)  # (N+1,)
    for number, offset in enumerate(bounds[:-1]):
        yield [
            (int(first - offset), int(ends[first] - offset), tags.types[int(types[first])])
            for first in firsts[of_sentence[number] : of_sentence[number + 1]]
        ]


def tagged(tags: TagSet, sentences: Sequence[Sentence], ids: np.ndarray) -> list[TaggedText]:
    """Sentences with their tags and entities; the arguments are those of `entities_in`."""
    found = entities_in(tags, ids, [len(sentence) for sentence in sentences])
    results = []
    start = 0
    for sentence, entities in zip(sentences, found, strict=True):
        names = [tags.tags[tag] for tag in ids[start : start + len(sentence)]]
        start += len(sentence)
        placed = [sentence.entity(type_, first, end) for first, end, type_ in entities]
        results.append(TaggedText(sentence.tokens, names, placed))
    return results
