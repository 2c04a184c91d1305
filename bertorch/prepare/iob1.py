"""IOB1, the tag scheme of CoNLL-2003: B- only begins an entity directly behind another one of its type, else I- does.

References:
    Ramshaw and Marcus 1995, https://aclanthology.org/W95-0107; Tjong Kim Sang and De Meulder 2003,
    https://aclanthology.org/W03-0419.
"""

from collections.abc import Iterable, Iterator, Sequence

PREFIXES = ("B", "I")


def _split(tags: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Prefix and type of each tag, and the type of the tag before it; "" for O and before the first one."""
    before = ""
    for tag in tags:
        prefix, _, type_ = tag.partition("-")
        yield prefix, type_, before
        before = type_


def to_bio(tags: Sequence[str]) -> list[str]:
    """The tags of a sentence in bio: an I- that begins an entity becomes B-."""
    return [
        f"B-{type_}" if prefix == "I" and type_ != before else tag
        for tag, (prefix, type_, before) in zip(tags, _split(tags), strict=True)
    ]


def first_violation(tags: Sequence[str]) -> int | None:
    """The index of the first B- that is not directly behind an entity of its type; in bio it is no violation."""
    wrong = (index for index, (prefix, type_, before) in enumerate(_split(tags)) if prefix == "B" and type_ != before)
    return next(wrong, None)


def is_iob1(sentences: Iterable[Sequence[str]]) -> bool:
    """Whether the tags are in IOB1 rather than in bio: fewer sentences violate the former.

    In IOB1 nearly each sentence with entities violates bio, and the other way round, so that slips do not decide.
    """
    violations = violations_of_bio = 0
    for tags in sentences:
        if not {tag[0] for tag in tags} <= {*PREFIXES, "O"}:
            return False
        violations += first_violation(tags) is not None
        violations_of_bio += to_bio(tags) != list(tags)
    return violations < violations_of_bio
