"""The options of `bertorch.prepare`."""

import argparse

from bertorch.data.tags import SPELLINGS
from bertorch.prepare.clue import TASKS
from bertorch.prepare.tables import DELIMITERS
from bertorch.prepare.tag_columns import LAYOUTS


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The parser: a sub-command each, whose name it leaves in `command`.

    Args:
        description: the text over `--help`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, (add, help_text) in {
        "clue": (_add_clue, "JSON lines of CLUE"),
        "columns": (_add_columns, "tagged text in columns → JSON lines"),
        "tags": (_add_tags, "JSON lines with tags in another scheme"),
        "csv": (_add_csv, "CSV with a header → columns with tabs"),
        "labels": (_add_labels, "a label file from data"),
        "split": (_add_split, "train, dev and test from one file"),
        "dedupe": (_add_dedupe, "what stands more than once, and train without it"),
    }.items():
        command = commands.add_parser(
            name,
            help=help_text,
            description=help_text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        add(command)
        command.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("--input_file", required=True)
    command.add_argument("--output_file", required=True)


def _add_clue(command: argparse.ArgumentParser) -> None:
    command.add_argument("task", choices=TASKS)
    _add_files(command)
    command.add_argument("--label_file", help="also write the task's label file")
    _add_target(command)
    command.add_argument("--unlabelled", action="store_true", help="write texts only, as of a test set without labels")
    command.add_argument(
        "--longest", action="store_true", help="of entities that overlap (cluener) keep the longest; else an error"
    )


def _add_target(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--to", dest="to_scheme", choices=sorted(SPELLINGS), default="bios", help="the scheme of the tags written"
    )


def _add_schemes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--from",
        dest="from_scheme",
        choices=["auto", *sorted(SPELLINGS)],
        default="auto",
        help="the scheme of the tags read; auto goes by their letters",
    )
    _add_target(command)
    command.add_argument("--strict", action="store_true", help="tags out of the scheme's order are an error")


def _add_columns(command: argparse.ArgumentParser) -> None:
    _add_files(command)
    _add_schemes(command)
    command.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="auto",
        help="rows: a token and its tag a line; sentences: tokens, tab, tags; auto goes by the first line",
    )
    command.add_argument(
        "--first_character",
        action="store_true",
        help="only the first character of each token: behind it, weiboNER_2nd_conll has its place in the word",
    )


def _add_tags(command: argparse.ArgumentParser) -> None:
    _add_files(command)
    _add_schemes(command)


def _add_csv(command: argparse.ArgumentParser) -> None:
    _add_files(command)
    command.add_argument(
        "--columns", required=True, type=lambda names: names.split(","), help="names in the header, in the order wanted"
    )
    command.add_argument("--delimiter", choices=sorted(DELIMITERS), default="comma", help="tab: without quotes")
    command.add_argument("--encoding", default="utf-8", help="such as gb18030")
    command.add_argument(
        "--map_label",
        action="append",
        default=[],
        type=_mapping,
        metavar="VALUE=LABEL",
        help="what to write for a value of the last column; once for each value",
    )


def _mapping(text: str) -> tuple[str, str]:
    value, sign, label = text.partition("=")
    if not (sign and label.strip()):
        raise argparse.ArgumentTypeError(f"expected VALUE=LABEL, got {text!r}")
    return value, label


def _add_texts(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--texts",
        type=int,
        choices=(1, 2),
        help="columns that are texts; by default all but the last, or the only one: set it for pairs without a label",
    )


def _add_labels(command: argparse.ArgumentParser) -> None:
    command.add_argument("--input_file", required=True, nargs="+")
    command.add_argument("--output_file", required=True)
    _add_texts(command)
    command.add_argument("--order", choices=("sorted", "first", "frequency"), default="sorted")


def _ratio(text: str) -> float:
    ratio = float(text)
    if not 0 <= ratio < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to less than 1, got {text}")
    return ratio


def _add_split(command: argparse.ArgumentParser) -> None:
    command.add_argument("--input_file", required=True)
    command.add_argument("--output_dir", required=True, help="for train, dev and test, with the suffix of the input")
    command.add_argument("--dev_ratio", type=_ratio, default=0.1)
    command.add_argument("--test_ratio", type=_ratio, default=0.0)
    command.add_argument("--seed", type=int, default=1000)
    _add_texts(command)


def _add_dedupe(command: argparse.ArgumentParser) -> None:
    command.add_argument("--train_file", required=True)
    command.add_argument("--dev_file")
    command.add_argument("--test_file")
    command.add_argument("--output_file", help="train without repeats, and without what stands in dev or test")
    command.add_argument("--report_file", help="the counts, and what stands in two files, as JSON")
    _add_texts(command)
