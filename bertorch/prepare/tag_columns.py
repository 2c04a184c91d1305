"""Tagged text in columns, the form in which most sets of named entities are published, and tags in another scheme.

Two layouts: `rows` has a token and its tag on a line, separated by a space or tab, and a blank line after each
sentence; `sentences` has a sentence a line: its tokens with a space between them, a tab, and its tags.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from loguru import logger

from bertorch.data.lines import SHOWN_ERRORS, BadLineError, read_numbered_rows, shorten
from bertorch.data.tag_lines import find_violations, format_tagged, parse_tagged
from bertorch.data.tags import SCHEMES, TagSet, convert_tags, is_tag, scheme_of
from bertorch.errors import UserError
from bertorch.prepare.examples import REMEDY

LAYOUTS = ("auto", "rows", "sentences")
Tagged = tuple[list[str], list[str]]  # tokens and a tag for each


@dataclass(frozen=True)
class Sentence:
    """A sentence: its tokens, and for each a tag and a line number, from 1."""

    tokens: list[str]
    tags: list[str]
    lines: list[int]


def read_tag_json(path: str) -> list[Sentence]:
    """Read JSON lines with tags of any scheme; a tag of no scheme is a `UserError`."""
    rows = read_numbered_rows(path, lambda line: _checked(*parse_tagged(line)), remedy=REMEDY)
    return [Sentence(tokens, tags, [number] * len(tokens)) for number, (tokens, tags) in rows]


def read_tag_columns(path: str, layout: str, *, first_character: bool) -> list[Sentence]:
    """Read tagged text in columns.

    The layout is `rows`, `sentences`, or `auto`, which is `sentences` if the first line has several tokens.
    `first_character` keeps only that of each token: weiboNER_2nd_conll has the character's index in its word behind it.

    Raises:
        UserError: a missing file, or malformed lines: no token, no tag, one of no scheme, another number of tags than
            of tokens.
    """

    def parse(line: str) -> Tagged | None:
        nonlocal layout
        if not line.strip():
            return None
        if layout == "auto":
            tokens, _, tags = line.partition("\t")
            layout = "sentences" if " " in tokens and " " in tags else "rows"
        return _checked(*(_sentence(line) if layout == "sentences" else _row(line)))

    sentences: list[Sentence] = []
    is_open = False  # whether the next row belongs to the last sentence
    for number, row in read_numbered_rows(path, parse, blank_lines=True, remedy=REMEDY):
        if row is not None:
            tokens, tags = row
            if not is_open:
                sentences.append(Sentence([], [], []))
            sentences[-1].tokens.extend([token[0] for token in tokens] if first_character else tokens)
            sentences[-1].tags.extend(tags)
            sentences[-1].lines.extend([number] * len(tokens))
        is_open = row is not None and layout == "rows"
    return sentences


def _row(line: str) -> Tagged:
    # Only a tab and a space separate: some files have a wide space as a token.
    token, _, tag = line.rstrip(" \t").rpartition("\t" if "\t" in line else " ")
    if not token or "\t" in token or " " in token.strip(" "):
        raise BadLineError(f"expected a token, a space or a tab, and its tag, got {shorten(line)}")
    return [token], [tag]


def _sentence(line: str) -> Tagged:
    columns = line.split("\t")
    if len(columns) != 2:
        raise BadLineError(f"expected tokens, a tab and tags (--layout sentences), got {len(columns)} columns")
    tokens, tags = (column.strip(" ").split(" ") for column in columns)
    if len(tokens) != len(tags):
        raise BadLineError(f"expected a tag for each of the {len(tokens)} tokens, got {len(tags)} tags")
    if "" in tokens:
        raise BadLineError(f"expected one space between tokens, got an empty token, {tokens.index('') + 1}")
    return tokens, tags


def _checked(tokens: list[str], tags: list[str]) -> Tagged:
    for tag in tags:
        if not is_tag(tag):
            raise BadLineError(f"expected a tag such as O or B-PER, got {shorten(tag)}")
    return tokens, tags


def tagged_lines(path: str, sentences: Sequence[Sentence], *, source: str, target: str, strict: bool) -> list[str]:
    """The JSON lines of the sentences of a file, with their tags in another scheme.

    Args:
        source: the scheme of their tags, a name of `SPELLINGS`, or `auto`, which goes by their prefixes.
        target: the scheme to write, a name of `SPELLINGS`.
        strict: whether violations of the scheme are an error; else a warning counts them, and they remain violations,
            see `convert_tags`.

    Raises:
        UserError: a tag that the source scheme does not have, or violations if `strict`.
    """
    tags = sorted({tag for sentence in sentences for tag in sentence.tags} | {"O"})
    scheme = scheme_of(tags) if source == "auto" else {"bmes": "bioes"}.get(source, source)
    if source == "auto":
        logger.info("{}: the tags are in {}", path, scheme)
    for sentence in sentences:
        for tag, line in zip(sentence.tags, sentence.lines, strict=True):
            if tag != "O" and tag.partition("-")[0] not in SCHEMES[scheme].prefixes:
                raise UserError(f"{path}:{line}: expected a tag of --from {scheme}, got {tag!r}; try --from auto")
    _report_violations(path, sentences, TagSet(tags, scheme, path), strict=strict)
    singles = {tag.removeprefix("S-") for tag in tags if tag.startswith("S-")}
    return [format_tagged(each.tokens, convert_tags(each.tags, scheme, target, singles)) for each in sentences]


def _report_violations(path: str, sentences: Sequence[Sentence], tags: TagSet, *, strict: bool) -> None:
    tag_ids = (np.array([tags.ids[tag] for tag in sentence.tags]) for sentence in sentences)  # (tokens,) int64
    violations = [
        f"{path}:{sentences[index].lines[token]}: {description}"
        for index, token, description in find_violations(tags, tag_ids)
    ]
    if not violations:
        return
    count = f"{path}: sentences with tags out of the order of {tags.scheme_name}: {len(violations)}"
    if strict:
        raise UserError("\n".join([f"{count}; expected none with --strict", *violations[:SHOWN_ERRORS]]))
    logger.warning("{}; they are kept. The first: {}", count, violations[0])
