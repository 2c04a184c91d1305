r"""Turn published datasets into the forms that the scripts read, and check, split and de-duplicate such files.

    python data/prepare.py clue tnews --input_file train.json --output_file train.tsv --label_file labels.txt
    python data/prepare.py columns --input_file train.char.bmes --output_file train.json --to bios
    python data/prepare.py tags --input_file train.json --output_file train.bio.json --to bio
    python data/prepare.py csv --input_file all.csv --output_file all.tsv --columns review,label \
        --map_label 0=negative --map_label 1=positive
    python data/prepare.py labels --input_file train.json dev.json --output_file labels.txt
    python data/prepare.py split --input_file all.tsv --output_dir parts --dev_ratio 0.1 --test_ratio 0.1
    python data/prepare.py dedupe --train_file train.tsv --dev_file dev.tsv --report_file report.json \
        --output_file train.clean.tsv

The forms are told in data/README.md. A malformed line is named as path:line, and then nothing is written. A file that
is there is replaced only with --overwrite.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch.data.lines import shorten
from bertorch.data.readers import NOT_IN_LABELS
from bertorch.errors import UserError, mistakes_told
from bertorch.files import refuse_existing, write_lines
from bertorch.prepare.clue import clue_labels, convert_clue
from bertorch.prepare.command_line import command_line
from bertorch.prepare.duplicates import overlap_report, report_lines, without_duplicates
from bertorch.prepare.examples import collect_labels, read_examples
from bertorch.prepare.splitting import split_examples
from bertorch.prepare.tables import convert_table
from bertorch.prepare.tag_columns import read_tag_columns, read_tag_json, tagged_lines

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> None:
    """The command.

    Raises:
        SystemExit: code 2 for a mistake of the user, without a traceback.
    """
    arguments = command_line(__doc__).parse_args(argv)
    with mistakes_told():
        refuse_existing(_outputs(arguments), overwrite=arguments.overwrite)
        COMMANDS[arguments.command](arguments)


def _outputs(arguments: Arguments) -> list[str]:
    """The files that a command is going to write."""
    options = vars(arguments)
    files = [options.get(name) for name in ("output_file", "label_file", "report_file")]
    parts = _part_files(arguments).values() if "output_dir" in options else ()
    return [file for file in (*files, *parts) if file is not None]


def _write(path: str, lines: Sequence[str]) -> None:
    write_lines(path, lines)
    logger.info("{}: {} lines", path, len(lines))


def _clue(arguments: Arguments) -> None:
    lines = convert_clue(
        arguments.input_file,
        arguments.task,
        scheme=arguments.to_scheme,
        unlabelled=arguments.unlabelled,
        longest=arguments.longest,
    )
    _write(arguments.output_file, lines)
    if arguments.label_file:
        _write(arguments.label_file, clue_labels(arguments.task, arguments.to_scheme))


def _columns(arguments: Arguments) -> None:
    path = arguments.input_file
    sentences = read_tag_columns(path, arguments.layout, first_character=arguments.first_character)
    _write(arguments.output_file, tagged_lines(path, sentences, **_schemes(arguments)))


def _tags(arguments: Arguments) -> None:
    path = arguments.input_file
    _write(arguments.output_file, tagged_lines(path, read_tag_json(path), **_schemes(arguments)))


def _schemes(arguments: Arguments) -> dict[str, Any]:
    return {"source": arguments.from_scheme, "target": arguments.to_scheme, "strict": arguments.strict}


def _csv(arguments: Arguments) -> None:
    labels = dict(arguments.map_label)
    if len(labels) < len(arguments.map_label):
        raise UserError("--map_label: expected each value once, got one of them twice")
    lines = convert_table(
        arguments.input_file,
        arguments.columns,
        delimiter=arguments.delimiter,
        encoding=arguments.encoding,
        labels=labels,
    )
    _write(arguments.output_file, lines)


def _labels(arguments: Arguments) -> None:
    examples = [example for path in arguments.input_file for example in read_examples(path, arguments.texts)]
    labels = collect_labels(examples, arguments.order)
    if len(labels) < 2:
        raise UserError(f"{', '.join(arguments.input_file)}: expected at least two labels, got {labels or 'none'}")
    for label in filter(NOT_IN_LABELS.search, labels):
        raise UserError(
            f"{', '.join(arguments.input_file)}: expected labels without control characters, got {shorten(label)}"
        )
    _write(arguments.output_file, labels)


def _split(arguments: Arguments) -> None:
    examples = read_examples(arguments.input_file, arguments.texts)
    parts = split_examples(examples, _ratios(arguments), seed=arguments.seed, source=arguments.input_file)
    for name, path in _part_files(arguments).items():
        _write(path, [example.line for example in parts[name]])


def _ratios(arguments: Arguments) -> dict[str, float]:
    return {"dev": arguments.dev_ratio, "test": arguments.test_ratio}


def _part_files(arguments: Arguments) -> dict[str, str]:
    folder, suffix = Path(arguments.output_dir), Path(arguments.input_file).suffix
    names = ["train", *(name for name, ratio in _ratios(arguments).items() if ratio)]
    return {name: str(folder / f"{name}{suffix}") for name in names}


def _dedupe(arguments: Arguments) -> None:
    files = {"train": arguments.train_file, "dev": arguments.dev_file, "test": arguments.test_file}
    splits = {name: read_examples(path, arguments.texts) for name, path in files.items() if path is not None}
    report = overlap_report(splits)
    for line in report_lines(report):
        logger.info("{}", line)
    if arguments.output_file:
        train, *held_out = splits.values()
        _write(arguments.output_file, [example.line for example in without_duplicates(train, held_out)])
    if arguments.report_file:
        write_lines(arguments.report_file, [json.dumps(report, ensure_ascii=False, indent=2)])


COMMANDS = {
    "clue": _clue,
    "columns": _columns,
    "tags": _tags,
    "csv": _csv,
    "labels": _labels,
    "split": _split,
    "dedupe": _dedupe,
}


if __name__ == "__main__":
    main()
