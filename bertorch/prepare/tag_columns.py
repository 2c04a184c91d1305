"""Tagged text in columns, the form in which most sets of named entities are published, and tags in another scheme.

Two layouts: `rows` has a token and its tag on a line, behind one space or tab, and a blank line after each sentence;
`sentences` has a sentence a line, its tokens with a space between them, a tab, and its tags.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from loguru import logger

from bertorch.data.lines import SHOWN_FLAWS, BadLineError, read_numbered_rows, shorten
from bertorch.data.tagged_sentences import format_tagged, parse_tagged
from bertorch.data.tags import SCHEMES, TagSet, convert_tags, is_tag, scheme_of
from bertorch.errors import UserError
from bertorch.prepare.examples import MEND

LAYOUTS = ("auto", "rows", "sentences")


@dataclass(frozen=True)
class Sentence:
    """A tagged sentence.

    Attributes:
        tokens, tags: one of each for every token.
        lines: the line that each token stands on, from 1.
    """

    tokens: list[str]
    tags: list[str]
    lines: list[int]


def read_tag_json(path: str) -> list[Sentence]:
    """Read JSON lines, whatever the scheme of their tags is.

    Raises:
        UserError: a missing file, or malformed lines: not of the form, or a tag of no scheme.
    """

    def parse(line: str) -> tuple[list[str], list[str]]:
        tokens, tags = parse_tagged(line)
        return tokens, [_checked(tag) for tag in tags]

    rows = read_numbered_rows(path, parse, on_bad_line="stop", remedy=MEND)
    return [Sentence(tokens, tags, [number] * len(tokens)) for number, (tokens, tags) in rows]


def read_tag_columns(path: str, layout: str, *, first_character: bool) -> list[Sentence]:
    """Read tagged text in columns.

    Args:
        path: the file.
        layout: `rows`, `sentences`, or `auto`, which is `sentences` if the first line is one of several tokens.
        first_character: whether only the first character of each token counts: behind it weiboNER_2nd_conll has the
            character's place in its word.

    Raises:
        UserError: a missing file, or malformed lines: no token, no tag, one of no scheme, another number of tags than
            of tokens.
    """

    def parse(line: str) -> tuple[list[str], list[str]] | None:
        nonlocal layout
        if not line:
            return None
        if layout == "auto":
            tokens, _, tags = line.partition("\t")
            layout = "sentences" if " " in tokens and " " in tags else "rows"
        return _sentence(line) if layout == "sentences" else _row(line)

    rows = read_numbered_rows(path, parse, on_bad_line="stop", remedy=MEND, blank_lines=True)
    sentences: list[Sentence] = []
    is_open = False  # whether the next row goes on with the last sentence
    for number, row in rows:
        if row is not None:
            tokens, tags = row
            if not is_open:
                sentences.append(Sentence([], [], []))
            sentences[-1].tokens.extend([token[0] for token in tokens] if first_character else tokens)
            sentences[-1].tags.extend(tags)
            sentences[-1].lines.extend([number] * len(tokens))
        is_open = row is not None and layout == "rows"
    return sentences


def _row(line: str) -> tuple[list[str], list[str]]:
    # Only a tab and a space separate: some files have a wide space as a token.
    mark = "\t" if "\t" in line else " "
    token, _, tag = line.rstrip(" \t").rpartition(mark)
    if not token or "\t" in token or " " in token.strip(" "):
        raise BadLineError(f"expected a token, a space or a tab, and its tag, got {shorten(line)}")
    return [token], [_checked(tag)]


def _sentence(line: str) -> tuple[list[str], list[str]]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise BadLineError(f"expected tokens, a tab and tags (--layout sentences), got {len(columns)} columns")
    tokens, tags = (column.strip(" ").split(" ") for column in columns)
    if len(tokens) != len(tags):
        raise BadLineError(f"expected a tag for each of the {len(tokens)} tokens, got {len(tags)} tags")
    if "" in tokens:
        raise BadLineError(f"expected one space between tokens, got an empty token, {tokens.index('') + 1}")
    return tokens, [_checked(tag) for tag in tags]


def _checked(tag: str) -> str:
    if not is_tag(tag):
        raise BadLineError(f"expected a tag such as O or B-PER, got {shorten(tag)}")
    return tag


def tagged_lines(path: str, sentences: Sequence[Sentence], *, source: str, target: str, strict: bool) -> list[str]:
    """The JSON lines of sentences, with their tags in another scheme.

    Args:
        path: where they come from, for messages.
        sentences: as read.
        source: the scheme that they are in, a name of `SPELLINGS`, or `auto`, which goes by the letters of the tags.
        target: the scheme to write, a name of `SPELLINGS`.
        strict: whether tags out of the scheme's order are an error; else they are counted in a warning, and keep their
            places, see `convert_tags`.

    Raises:
        UserError: a tag that the source does not have, or tags out of order.
    """
    tags = sorted({tag for sentence in sentences for tag in sentence.tags} | {"O"})
    scheme = scheme_of(tags) if source == "auto" else {"bmes": "bioes"}.get(source, source)
    if source == "auto":
        logger.info("{}: the tags are in {}", path, scheme)
    _require_tags(path, sentences, scheme)
    _tell_offences(path, sentences, TagSet(tags, scheme, path), strict=strict)
    singles = {tag.removeprefix("S-") for tag in tags if tag.startswith("S-")}
    return [format_tagged(each.tokens, convert_tags(each.tags, scheme, target, singles)) for each in sentences]


def _require_tags(path: str, sentences: Sequence[Sentence], scheme: str) -> None:
    for sentence in sentences:
        for tag, line in zip(sentence.tags, sentence.lines, strict=True):
            if tag != "O" and tag.partition("-")[0] not in SCHEMES[scheme].prefixes:
                raise UserError(f"{path}:{line}: expected a tag of --from {scheme}, got {tag!r}; try --from auto")


def _tell_offences(path: str, sentences: Sequence[Sentence], tags: TagSet, *, strict: bool) -> None:
    ids = {tag: number for number, tag in enumerate(tags.tags)}
    offences = []
    for sentence in sentences:
        numbers = np.array([ids[tag] for tag in sentence.tags], dtype=np.int64)
        place = tags.first_violation(numbers)
        if place is not None:
            offences.append(f"{path}:{sentence.lines[place]}: {tags.describe(numbers, place)}")
    if not offences:
        return
    told = f"{path}: sentences with tags out of the order of {tags.scheme_name}: {len(offences)}"
    if strict:
        raise UserError("\n".join([f"{told}; expected none with --strict", *offences[:SHOWN_FLAWS]]))
    logger.warning("{}; they keep their places. The first: {}", told, offences[0])
