"""Tag schemes of sequence labelling: what B-, I-, E-, S- and O mean, and which tag may follow which.

bio: B- begins an entity, I- continues it, O is outside. bios: S- is an entity of one token, and B- begins one of
several; where the label file has no S- for a type, its entities of one token are B-. bioes: E- also ends an entity of
several tokens, and those of one are always S-; M- is another spelling of I- (BMES).
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from bertorch.errors import UserError

_CODES = {"O": 0, "B": 1, "I": 2, "M": 2, "E": 3, "S": 4}
OUTSIDE, BEGIN, INSIDE, END, SINGLE = range(5)
Extent = tuple[int, int, str]  # first token, end (exclusive), type of an entity


@dataclass(frozen=True)
class Scheme:
    """What the tags of a scheme mean."""

    prefixes: tuple[str, ...]  # the letters before the dash
    closing: tuple[int, ...]  # codes of the tags that may be an entity's last

    @property
    def is_closed(self) -> bool:
        """Whether an entity of several tokens ends with a tag of its own."""
        return END in self.closing


SCHEMES = {
    "bio": Scheme(prefixes=("B", "I"), closing=(BEGIN, INSIDE)),
    "bios": Scheme(prefixes=("B", "I", "S"), closing=(INSIDE, SINGLE)),
    "bioes": Scheme(prefixes=("B", "I", "M", "E", "S"), closing=(END, SINGLE)),
}
# The letter with which a scheme writes each code. bmes is bioes with another letter inside entities.
SPELLINGS = {"bio": "OBIIB", "bios": "OBIIS", "bioes": "OBIES", "bmes": "OBMES"}
_TAG = re.compile(r"O|[BIMES]-[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_CONTINUED = (BEGIN, INSIDE)
_WITHIN = (INSIDE, END)


class TagSet:
    """The C tags of a label file under a scheme.

    The tags are in the order of their ids, `scheme` is a name of `SCHEMES`, and `source` the label file, for errors.

    Raises:
        UserError: a tag that the scheme does not have, or no O.
    """

    def __init__(self, tags: Sequence[str], scheme: str, source: str, because: str = "") -> None:
        self.tags = list(tags)
        self.scheme_name, self.scheme = scheme, SCHEMES[scheme]
        split = [tag.partition("-")[::2] for tag in tags]
        for line, (tag, (prefix, type_)) in enumerate(zip(tags, split, strict=True), start=1):
            if tag != "O" and (prefix not in self.scheme.prefixes or not type_):
                forms = ", ".join(f"{known}-…" for known in self.scheme.prefixes)
                raise UserError(
                    f"{source}:{line}: expected a tag of --tag {scheme} (O, {forms}), got {tag!r}; "
                    f"the schemes are {', '.join(SCHEMES)}{because}"
                )
        self.ids = {tag: index for index, tag in enumerate(tags)}
        if "O" not in self.ids:
            raise UserError(
                f"{source}: expected the tag O among the labels, got none; a file of types alone has no line such as "
                "B-PER"
            )
        self.types = list(dict.fromkeys(type_ for _, type_ in split if type_))  # of entities, as they first come
        self.codes = np.array([_CODES[prefix] for prefix, _ in split])  # (C,) int64: `OUTSIDE`, `BEGIN`, …
        indices = {type_: index for index, type_ in enumerate(self.types)}
        self.type_ids = np.array([indices.get(type_, -1) for _, type_ in split])  # (C,) int64, -1 for O

    @classmethod
    def of_types(cls, types: Sequence[str], scheme: str, source: str) -> Self:
        """The tags of entities of these types: O, then B-, I- and what else the scheme has, type by type."""
        letters = dict.fromkeys(SPELLINGS[scheme][BEGIN:])
        return cls(["O", *(f"{letter}-{type_}" for type_ in types for letter in letters)], scheme, source)

    def __len__(self) -> int:
        return len(self.tags)

    @cached_property
    def may_begin(self) -> np.ndarray:
        """(C,) bool, whether a tag may be a sentence's first."""
        return ~np.isin(self.codes, _WITHIN)

    @cached_property
    def may_end(self) -> np.ndarray:
        """(C,) bool, whether a tag may be a sentence's last."""
        may_end = (self.codes == OUTSIDE) | np.isin(self.codes, self.scheme.closing)
        if self.scheme.is_closed:
            return may_end
        return may_end | ((self.codes == BEGIN) & ~np.isin(self.type_ids, self.type_ids[self.codes == SINGLE]))

    @cached_property
    def may_follow(self) -> np.ndarray:
        """(C, C) bool, whether the tag of a column may follow that of a row."""
        return self.continues | (self.may_end[:, None] & self.may_begin)

    @cached_property
    def continues(self) -> np.ndarray:
        """(C, C) bool, whether the tag of a column continues the entity of that of a row."""
        same_type = self.type_ids[:, None] == self.type_ids
        return same_type & np.isin(self.codes, _CONTINUED)[:, None] & np.isin(self.codes, _WITHIN)

    def first_violation(self, ids: np.ndarray) -> int | None:
        """The index of the first tag of a sentence, (tokens,) ids, not none, that the scheme does not allow there."""
        wrong = np.concatenate([~self.may_begin[ids[:1]], ~self.may_follow[ids[:-1], ids[1:]]])  # (tokens,)
        wrong[-1] |= ~self.may_end[ids[-1]]
        return int(wrong.argmax()) if wrong.any() else None

    def describe(self, ids: np.ndarray, index: int) -> str:
        """A tag of a sentence with what stands before it, for errors."""
        before = f"after {self.tags[ids[index - 1]]}" if index else "at the beginning"
        end = " at the end" if index == len(ids) - 1 else ""
        return f"{self.tags[ids[index]]} {before}{end} (token {index + 1})"

    def encode(self, extents: Iterable[Extent], length: int) -> list[str]:
        """The tags of a sentence of `length` tokens with these entities, none of which overlap, in this set's spelling.

        In bios an entity of one token is B- where its type has no S-. Other tags that the set lacks are spelled as the
        scheme has them.
        """

        def spell(code: int, type_: str) -> str:
            if code == SINGLE and not self.scheme.is_closed and f"S-{type_}" not in self.ids:
                code = BEGIN
            with_m = f"M-{type_}" in self.ids and f"I-{type_}" not in self.ids
            spelling = "bmes" if with_m else self.scheme_name
            return f"{SPELLINGS[spelling][code]}-{type_}"

        return _tags_of(extents, length, spell)


def is_tag(text: str) -> bool:
    """Whether a text is a tag of any scheme."""
    return _TAG.fullmatch(text) is not None


def scheme_of(tags: Iterable[str]) -> str:
    """The name in `SCHEMES` of the simplest scheme that has all these tags.

    For all tags of a file it is the scheme: bios without S- has no entity of one token, and is bio; bioes without E-
    has no entity of several, and is bios.
    """
    prefixes = {tag.partition("-")[0] for tag in tags}
    return "bioes" if prefixes & {"E", "M"} else "bios" if "S" in prefixes else "bio"


def convert_tags(tags: Sequence[str], source: str, target: str, singles: Collection[str]) -> list[str]:
    """Write the tags of a sentence, each of the form that `is_tag` wants, in another scheme.

    Tags in order keep their entities. Tags out of order, such as E- without B-, are converted one by one; most
    stay out of order, but a lone B- of bios or bioes becomes an entity of one token in bio.

    Args:
        source: the scheme that they are in, a name of `SCHEMES`.
        target: the scheme to write, a name of `SPELLINGS`.
        singles: the types that have S- in the file. In bios a B- alone is an entity of one token where its type has
            none, as in `TagSet`; also in bioes, though out of order there, where no type has one.
    """
    split = [tag.partition("-")[::2] for tag in tags]
    scheme = SCHEMES[source]
    converted = []
    for (prefix, type_), (next_prefix, next_type) in zip(split, [*split[1:], ("O", "")], strict=True):
        code = _CODES[prefix]
        is_last = next_type != type_ or _CODES[next_prefix] not in _WITHIN
        is_single = not singles if scheme.is_closed else type_ not in singles  # a B- alone
        if code == BEGIN and is_last and is_single:
            code = SINGLE
        elif code == INSIDE and is_last and not scheme.is_closed:
            code = END
        converted.append("O" if code == OUTSIDE else f"{SPELLINGS[target][code]}-{type_}")
    return converted


def tag_entities(length: int, entities: Iterable[Extent], target: str) -> list[str]:
    """The tags, in a scheme of `SPELLINGS`, of `length` tokens with these entities, none of which overlap."""
    return _tags_of(entities, length, lambda code, type_: f"{SPELLINGS[target][code]}-{type_}")


def _tags_of(entities: Iterable[Extent], length: int, spell: Callable[[int, str], str]) -> list[str]:
    tags = ["O"] * length
    for start, end, type_ in entities:
        codes = [SINGLE] if end - start == 1 else [BEGIN, *[INSIDE] * (end - start - 2), END]
        tags[start:end] = [spell(code, type_) for code in codes]
    return tags
