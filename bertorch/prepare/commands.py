"""The commands of `bertorch.prepare`: the options of each, the files that it writes, and what it does."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loguru import logger
from typing_extensions import override

from bertorch.config import option
from bertorch.data.lines import shorten
from bertorch.data.readers import NOT_IN_LABELS
from bertorch.data.tags import SPELLINGS
from bertorch.errors import UserError
from bertorch.files import to_json, write_files, write_lines
from bertorch.prepare.annotated_texts import require_types
from bertorch.prepare.annotation_commands import Brat, Doccano, LabelStudio
from bertorch.prepare.clue import TASKS, clue_labels, convert_clue
from bertorch.prepare.command import Command, FileCommand, RowsCommand, write
from bertorch.prepare.examples import Example, collect_labels, has_texts_for_labels, read_examples, with_types
from bertorch.prepare.splits import overlap_report, report_lines, split_examples, without_duplicates
from bertorch.prepare.tables import DELIMITERS, convert_table
from bertorch.prepare.tag_columns import LAYOUTS, SOURCES, Sentence, read_tag_columns, read_tag_json, tagged_lines


@dataclass(frozen=True, kw_only=True)
class _TagCommand(FileCommand):
    to: str = option("bios", choices=tuple(sorted(SPELLINGS)), help="tag scheme to write")


@dataclass(frozen=True, kw_only=True)
class _TextsCommand(Command):
    texts: int | None = option(
        None,
        minimum=1,
        help="how many columns are texts; by default all but the last; set it for texts without labels",
    )
    label_separator: str | None = option(None, help="stands between the labels of a text, which has several or none")


@dataclass(frozen=True, kw_only=True)
class _GroupsCommand(_TextsCommand):
    group_by: int | None = option(
        None,
        minimum=1,
        metavar="COLUMN",
        help="examples belong together if this column is the same, counted from 1, such as a premise; by default all "
        "their texts",
    )

    def _read(self, path: str) -> list[Example]:
        examples = read_examples(path, self.texts, group_by=self.group_by, label_separator=self.label_separator)
        if self.texts is None and has_texts_for_labels(examples):
            logger.warning(
                "{}: nearly all of the last columns are different; if they are texts, without labels, say --texts {}",
                path,
                len(examples[0].texts) + 1,
            )
        return examples


@dataclass(frozen=True, kw_only=True)
class Clue(_TagCommand):
    """Convert the JSON lines of a CLUE task."""

    task: str = option(positional=True, choices=TASKS, help="the task")
    label_file: str | None = option(None, help="also write the task's label file")
    unlabelled: bool = option(False, help="write texts only, as of a test set without labels")
    longest: bool = option(False, help="keep the longest of overlapping entities (cluener); else they are an error")

    @override
    def run(self) -> None:
        lines = convert_clue(
            self.input_file, self.task, scheme=self.to, unlabelled=self.unlabelled, longest=self.longest
        )
        write(self.output_file, lines)
        if self.label_file is not None:
            write(self.label_file, clue_labels(self.task, self.to))


@dataclass(frozen=True, kw_only=True)
class Tags(_TagCommand):
    """Convert the tags of JSON lines into another scheme."""

    from_: str = option(
        "auto",
        choices=SOURCES,
        help="tag scheme to read; auto goes by the tags' prefixes, and takes iob1 for bio where fewer sentences "
        "violate it",
    )
    strict: bool = option(False, help="tags that violate the scheme are an error, not a warning")

    def _read(self) -> list[Sentence]:
        return read_tag_json(self.input_file)

    @override
    def run(self) -> None:
        lines = tagged_lines(self.input_file, self._read(), source=self.from_, target=self.to, strict=self.strict)
        write(self.output_file, lines)


@dataclass(frozen=True, kw_only=True)
class Columns(Tags):
    """Convert tagged text in columns into JSON lines."""

    layout: str = option(
        "auto", choices=LAYOUTS, help="rows: a token and its tag a line; sentences: tokens, tab, tags; auto: detect"
    )
    first_character: bool = option(
        False, help="keep the first character of each token only, as weiboNER_2nd_conll needs it"
    )

    def _read(self) -> list[Sentence]:
        return read_tag_columns(self.input_file, self.layout, first_character=self.first_character)


@dataclass(frozen=True, kw_only=True)
class Csv(FileCommand, RowsCommand):
    """Convert CSV with a header into columns with tabs."""

    columns: str = option(help="column names of the header, with commas between them, in the order to write")
    delimiter: str = option("comma", choices=tuple(sorted(DELIMITERS)), help="between cells; tab: without quotes")
    encoding: str = option("utf-8", help="of the file, such as gb18030")
    map_label: tuple[str, ...] = option(
        (), metavar="VALUE=LABEL", help="write LABEL for VALUE in the last column; once for each value"
    )

    def __post_init__(self) -> None:
        for text in self.map_label:
            if not all(part.strip() for part in text.partition("=")[1:]):
                raise UserError(f"--map_label: expected VALUE=LABEL, got {text!r}")
        if len(self._labels) < len(self.map_label):
            raise UserError("--map_label: expected each value once, got one of them twice")

    @property
    def _labels(self) -> dict[str, str]:
        return dict(text.split("=", 1) for text in self.map_label)

    @override
    def run(self) -> None:
        columns, form = self.columns.split(","), {"delimiter": self.delimiter, "encoding": self.encoding}
        lines = convert_table(self.input_file, columns, labels=self._labels, on_bad_row=self.on_bad_row, **form)
        write(self.output_file, lines)


@dataclass(frozen=True, kw_only=True)
class Labels(_TextsCommand):
    """Collect a label file from data."""

    input_file: tuple[str, ...] = option(help="one or several files to read")
    output_file: str = option(help="the label file to write")
    order: str = option(
        "sorted",
        choices=("sorted", "first", "frequency"),
        help="sorted, by first occurrence, or the most frequent first",
    )

    @override
    def run(self) -> None:
        source = ", ".join(self.input_file)
        read = partial(read_examples, num_texts=self.texts, label_separator=self.label_separator)
        examples = [example for path in self.input_file for example in read(path)]
        if any(example.has_entities for example in examples):
            labels = collect_labels(with_types(examples, source), self.order)
            if not labels:
                raise UserError(f"{source}: expected at least one type of entities, got none")
            require_types(labels, source)
        else:
            labels = collect_labels(examples, self.order)
            if len(labels) < 2:
                raise UserError(f"{source}: expected at least two labels, got {labels or 'none'}")
        for label in filter(NOT_IN_LABELS.search, labels):
            raise UserError(f"{source}: expected labels without control characters, got {shorten(label)}")
        write(self.output_file, labels)


@dataclass(frozen=True, kw_only=True)
class Split(_GroupsCommand):
    """Split a file into train, dev and test, without a text that is in two of them."""

    input_file: str = option(help="the file to split")
    output_dir: str = option(help="folder for train, dev and test, with the suffix of the input")
    dev_ratio: float = option(0.1, help="share of the examples for dev")
    test_ratio: float = option(0.0, help="share of the examples for test")
    seed: int = option(1000, help="the same seed draws the same examples")

    def __post_init__(self) -> None:
        for name, ratio in self._ratios.items():
            if not 0 <= ratio < 1:
                raise UserError(f"--{name}_ratio: expected a share from 0 to less than 1, got {ratio:g}")
        if (both := self.dev_ratio + self.test_ratio) >= 1:
            raise UserError(f"--dev_ratio, --test_ratio: expected less than 1 together, got {both:g}")

    @property
    def _ratios(self) -> dict[str, float]:
        return {"dev": self.dev_ratio, "test": self.test_ratio}

    @property
    def _parts(self) -> dict[str, str]:
        """The file of each part."""
        names = ["train", *(name for name, ratio in self._ratios.items() if ratio)]
        return {name: self._path(name) for name in names}

    def _path(self, part: str) -> str:
        return str(Path(self.output_dir) / f"{part}{Path(self.input_file).suffix}")

    @property
    @override
    def outputs(self) -> list[str]:
        return list(self._parts.values())

    @override
    def run(self) -> None:
        examples = self._read(self.input_file)
        parts = split_examples(examples, self._ratios, seed=self.seed, source=self.input_file)
        write_files({path: [example.line for example in parts[name]] for name, path in self._parts.items()})
        for name, path in self._parts.items():
            logger.info("{}: {} lines", path, len(parts[name]))
        for path in map(self._path, self._ratios):
            if path not in self.outputs and os.path.exists(path):
                logger.warning("{} is not of this split; if it is of an earlier one, train has lines of it now", path)


@dataclass(frozen=True, kw_only=True)
class Dedupe(_GroupsCommand):
    """Report texts that occur more than once, and write train without them."""

    train_file: str = option(help="training examples")
    dev_file: str | None = option(None, help="dev examples")
    test_file: str | None = option(None, help="test examples")
    output_file: str | None = option(None, help="write train without repeats and without what dev and test have")
    report_file: str | None = option(None, help="write the counts and the texts shared by two files as JSON")

    @override
    def run(self) -> None:
        files = {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}
        splits = {name: self._read(path) for name, path in files.items() if path is not None}
        if self.group_by is None:
            self._require_as_many_texts(splits)
        report = overlap_report(splits)
        for line in report_lines(report):
            logger.info("{}", line)
        if self.output_file is not None:
            train, *held_out = splits.values()
            write(self.output_file, [example.line for example in without_duplicates(train, held_out)])
        if self.report_file is not None:
            write_lines(self.report_file, [to_json(report, indent=2)])

    def _require_as_many_texts(self, splits: Mapping[str, list[Example]]) -> None:
        """An example is never that of another file if one has a text more."""
        counts = {name: len(examples[0].texts) for name, examples in splits.items()}
        if len(set(counts.values())) > 1:
            got = ", ".join(f"{count} in {name}" for name, count in counts.items())
            raise UserError(
                f"expected as many columns of texts in each file, got {got}: without labels the last is a text too; "
                "say how many with --texts"
            )


COMMANDS: dict[str, type[Command]] = {
    **{command.__name__.lower(): command for command in (Clue, Columns, Tags, Csv)},
    "doccano": Doccano,
    "label_studio": LabelStudio,
    "brat": Brat,
    **{command.__name__.lower(): command for command in (Labels, Split, Dedupe)},
}
