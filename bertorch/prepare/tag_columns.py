"""Tagged text in columns, the form in which most sets of named entities are published, and tags in another scheme.

Two layouts: `rows` has a token and its tag on a line, separated by spaces or tabs, and a blank line after each
sentence; columns between the two, such as the part of speech in CoNLL-2003, are not read. `sentences` has a sentence a
line: its tokens with a space between them, a tab, and its tags.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from loguru import logger

from bertorch.data.lines import SHOWN_ERRORS, BadLineError, read_numbered_rows, shorten
from bertorch.data.tag_lines import find_violations, format_tagged, parse_tagged
from bertorch.data.tags import SCHEMES, SPELLINGS, TagSet, convert_tags, is_tag, scheme_of
from bertorch.errors import UserError
from bertorch.prepare import iob1
from bertorch.prepare.examples import REMEDY

LAYOUTS = ("auto", "rows", "sentences")
SOURCES = ("auto", *sorted({*SPELLINGS, "iob1"}))
_DOCUMENT = re.compile(r"-DOCSTART-(?:[ \t]|$)")  # begins a document in CoNLL-2003
_GAP = re.compile("[ \t]+")  # only these separate: some files have a wide space as a token
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

    Of rows the first column is the token and the last one the tag. Lines that begin with -DOCSTART- are counted, and
    end a sentence.

    Raises:
        UserError: a missing file, or malformed lines: no token, no tag, one of no scheme, another number of tags than
            of tokens, or of columns than in the first row.
    """
    width, documents = 0, 0  # columns of a row

    def parse(line: str) -> Tagged | None:
        nonlocal layout, width, documents
        if not line.strip():
            return None
        if layout != "sentences" and _DOCUMENT.match(line):
            documents += 1
            return None
        if layout == "auto":
            tokens, _, tags = line.partition("\t")
            layout = "sentences" if " " in tokens and " " in tags else "rows"
        if layout == "sentences":
            return _checked(*_sentence(line))
        width = width or max(2, len(_columns(line)))
        return _checked(*_row(line, width))

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
    if width > 2:
        logger.info("{}: {} columns; the first is the token, the last the tag", path, width)
    if documents:
        logger.info("{}: -DOCSTART- lines, which are part of no sentence: {}", path, documents)
    if not sentences:
        raise UserError(f"{path}: expected tokens with their tags, got none")
    return sentences


def _columns(line: str) -> list[str]:
    return line.rstrip(" \t").split("\t") if "\t" in line else _GAP.split(line.strip(" "))


def _row(line: str, width: int) -> Tagged:
    """The token and the tag of a row of that many columns, two of which may have a token of spaces."""
    if width == 2:
        token, _, tag = line.rstrip(" \t").rpartition("\t" if "\t" in line else " ")
        if not token or "\t" in token or " " in token.strip(" "):
            raise BadLineError(f"expected a token, a space or a tab, and its tag, got {shorten(line)}")
        return [token], [tag]
    columns = _columns(line)
    if len(columns) != width:
        expected = f"{width} columns as in the first row, a token first and its tag last"
        raise BadLineError(f"expected {expected}, got {len(columns)}: {shorten(line)}")
    if not columns[0]:
        raise BadLineError(f"expected a token in the first column, got {shorten(line)}")
    return [columns[0]], [columns[-1]]


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
        source: the scheme of their tags, a name of `SOURCES`; `auto` goes by their prefixes, and takes bio for iob1 if
            fewer sentences violate that.
        target: the scheme to write, a name of `SPELLINGS`.
        strict: whether violations of the scheme are an error; else a warning counts them, and they remain violations,
            see `convert_tags`.

    Raises:
        UserError: a tag that the source scheme does not have, or violations if `strict`.
    """
    scheme = _found_scheme(path, sentences) if source == "auto" else {"bmes": "bioes"}.get(source, source)
    prefixes = iob1.PREFIXES if scheme == "iob1" else SCHEMES[scheme].prefixes
    for sentence in sentences:
        for tag, line in zip(sentence.tags, sentence.lines, strict=True):
            if tag != "O" and tag.partition("-")[0] not in prefixes:
                raise UserError(f"{path}:{line}: expected a tag of --from {scheme}, got {tag!r}; try --from auto")
    tags = _tag_names(sentences)
    if scheme == "iob1":
        _report(path, scheme, _iob1_violations(path, sentences), strict=strict)
        sentences = [replace(each, tags=iob1.to_bio(each.tags)) for each in sentences]
        scheme = "bio"  # of which none of them violates the order
    else:
        hint = "; if the tags are in IOB1, name it with --from iob1" if (source, scheme) == ("auto", "bio") else ""
        _report(path, scheme, _violations(path, sentences, TagSet(tags, scheme, path)), strict=strict, hint=hint)
    singles = {tag.removeprefix("S-") for tag in tags if tag.startswith("S-")}
    return [format_tagged(each.tokens, convert_tags(each.tags, scheme, target, singles)) for each in sentences]


def _tag_names(sentences: Iterable[Sentence]) -> list[str]:
    return sorted({tag for sentence in sentences for tag in sentence.tags} | {"O"})


def _found_scheme(path: str, sentences: Sequence[Sentence]) -> str:
    scheme = scheme_of(_tag_names(sentences))
    if scheme == "bio" and iob1.is_iob1(sentence.tags for sentence in sentences):
        scheme = "iob1"
    logger.info("{}: the tags are in {}", path, scheme)
    return scheme


def _violations(path: str, sentences: Sequence[Sentence], tags: TagSet) -> list[str]:
    tag_ids = (np.array([tags.ids[tag] for tag in sentence.tags]) for sentence in sentences)  # (tokens,) int64
    return [
        f"{path}:{sentences[index].lines[token]}: {description}"
        for index, token, description in find_violations(tags, tag_ids)
    ]


def _iob1_violations(path: str, sentences: Iterable[Sentence]) -> list[str]:
    first = ((sentence, iob1.first_violation(sentence.tags)) for sentence in sentences)
    return [
        f"{path}:{sentence.lines[token]}: {sentence.tags[token]}, which is not directly behind an entity of its type "
        f"(token {token + 1})"
        for sentence, token in first
        if token is not None
    ]


def _report(path: str, scheme: str, violations: Sequence[str], *, strict: bool, hint: str = "") -> None:
    if not violations:
        return
    count = f"{path}: sentences with tags out of the order of {scheme}: {len(violations)}"
    if strict:
        raise UserError("\n".join([f"{count}; expected none with --strict{hint}", *violations[:SHOWN_ERRORS]]))
    logger.warning("{}; they are kept{}. The first: {}", count, hint, violations[0])
