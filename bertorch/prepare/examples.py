"""Files in the scripts' own forms, line by line, to be split and compared."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bertorch.data.entity_lines import ENTITY_FORM, entities_of, has_entities
from bertorch.data.json_lines import AS_WRITTEN, parse_object
from bertorch.data.lines import BadLineError, cell, read_numbered_rows, shorten, split_columns
from bertorch.data.tag_lines import TAGGED_FORM, tokens_and_tags
from bertorch.data.tags import is_tag
from bertorch.errors import UserError

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
REMEDY = "Fix them in the file; nothing was written."
REMEDY_OF_ROWS = "Fix them, or skip them with --on_bad_row skip; nothing was written."  # for a `RowsCommand`


@dataclass(frozen=True)
class Example:
    """One line of a file."""

    line_number: int  # from 1
    line: str
    texts: tuple[str, ...]  # the text columns, or of JSON that without white space; examples with equal ones are equal
    labels: tuple[str, ...]  # the label columns, the tags, or the types of the entities; empty without any
    column: str | None = None  # of `--group_by`
    has_entities: bool = False

    @property
    def group(self) -> tuple[str, ...]:
        """Examples with equal ones belong together: that column, or the texts."""
        return self.texts if self.column is None else (self.column,)


def columns_line(columns: Sequence[str]) -> str:
    """A line of columns, in which tabs and line breaks become a space; a `BadLineError` if a column is empty."""
    if not all(map(str.strip, columns)):
        raise BadLineError(f"expected no empty text or label, got {shorten(' | '.join(columns))}")
    return "\t".join(map(cell, columns))


def read_examples(
    path: str, num_texts: int | None = None, *, group_by: int | None = None, label_separator: str | None = None
) -> list[Example]:
    """Read JSON lines, if the first begins with a brace and has no tab, or lines of columns.

    JSON lines are of tagged sentences, whose labels are the tags, or of entities, whose labels are the types.

    The first `num_texts` columns are texts, the others labels; by default all but the last, or the only one. The column
    `group_by`, counted from 1, makes the groups; by default the texts do. With a `label_separator` the last column has
    any number of labels, or none.

    Raises:
        UserError: a missing or empty file, or malformed lines: another number of columns than in the first line.
    """
    is_json = False
    width = 0

    def parse(line: str) -> tuple[str, tuple[str, ...], tuple[str, ...], str | None, bool]:
        nonlocal is_json, width
        if not width:
            is_json = line.lstrip().startswith("{") and "\t" not in line
            width = 1 if is_json else line.count("\t") + 1
        if is_json:
            return line, *_of_json(line)
        texts = max(width - 1, 1) if num_texts is None else num_texts
        several = label_separator is not None and texts < width
        columns = split_columns(line, width, "as in the first line", last_may_be_blank=several)
        column = columns[group_by - 1] if group_by is not None and group_by <= width else None
        labels = columns[texts:]
        if several:
            last = labels.pop().strip()
            labels += last.split(label_separator) if last else []
        return line, tuple(columns[:texts]), tuple(map(str.strip, labels)), column, False

    rows = list(read_numbered_rows(path, parse, remedy=REMEDY))
    for option, columns in (("texts", num_texts), ("group_by", group_by)):
        if columns is not None and (is_json or columns > width):
            got = "JSON lines" if is_json else width
            raise UserError(f"{path}: expected {columns} or more columns (--{option} {columns}), got {got}")
    return [Example(number, *row) for number, row in rows]


def _of_json(line: str) -> tuple[tuple[str, ...], tuple[str, ...], None, bool]:
    """Of a line with tags or entities what an `Example` has after it: texts, labels, no column, whether entities."""
    parsed = parse_object(line, f"{TAGGED_FORM} or {ENTITY_FORM}", AS_WRITTEN)
    if not has_entities(parsed):
        tokens, tags = tokens_and_tags(line, parsed)
        return _without_spaces(tokens), tuple(tags), None, False
    source, entities = entities_of(line, parsed)
    return _without_spaces(source), tuple(type_ for _, _, type_ in entities), None, True


def _without_spaces(source: Iterable[str]) -> tuple[str]:
    """The one text of characters or tokens, which is the same in both forms of a sentence."""
    return ("".join("".join(source).split()),)


def has_texts_for_labels(examples: Sequence[Example]) -> bool:
    """Whether the one label of each looks like a text: more than half are different, and are no numbers."""
    labels = {example.labels[0] for example in examples if len(example.labels) == 1}
    return len(labels) > max(len(examples) / 2, 10) and not all(map(_NUMBER.fullmatch, labels))


def with_types(examples: Iterable[Example], source: str) -> list[Example]:
    """Examples of entities and of tags, with the types of the tags in their place, so that all labels are types.

    Raises:
        UserError: a label that is no tag.
    """
    return [each if each.has_entities else replace(each, labels=_types_of(each.labels, source)) for each in examples]


def _types_of(tags: Iterable[str], source: str) -> tuple[str, ...]:
    if other := next((tag for tag in tags if not is_tag(tag)), None):
        raise UserError(f"{source}: expected tags such as B-PER beside lines with entities, got {shorten(other)}")
    return tuple(tag.partition("-")[2] for tag in tags if tag != "O")


def collect_labels(examples: Sequence[Example], order: str) -> list[str]:
    """The labels, tags or types of entities of examples, for a label file.

    The order is `sorted` (O first, then numbers by value), `first` (as they first come) or `frequency` (the most
    frequent first, ties as they first come).
    """
    counts = Counter(label for example in examples for label in example.labels)
    if order == "first":
        return list(counts)
    if order == "frequency":
        return [label for label, _ in counts.most_common()]
    return sorted(counts, key=_sort_key)


def _sort_key(label: str) -> tuple[bool, float, str]:
    return label != "O", float(label) if _NUMBER.fullmatch(label) else math.inf, label
