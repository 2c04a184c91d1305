r"""Find training examples whose label is probably wrong, by confident learning, from out-of-fold probabilities.

    python -m bertorch.label_issues checkpoint/out_of_fold.tsv --output_file label_issues.tsv

The output has the number of each such example in the training file, its label, the label suggested, the probability
of its own label, and the text; the least probable label comes first. Of a tagger's file the rows are sentences with a
token whose tag is probably wrong, and the worst such token of each. How many there are by label is in the log.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loguru import logger

from bertorch import cli
from bertorch.config import option
from bertorch.data.lines import cell
from bertorch.errors import exit_on_user_error
from bertorch.files import is_stream, refuse_existing, whole_output

if TYPE_CHECKING:
    import numpy as np

    from bertorch.data.out_of_fold import OutOfFold


@dataclass(frozen=True, kw_only=True)
class LabelIssuesConfig:
    """Options of `bertorch.label_issues`."""

    input_file: str = option(
        positional=True,
        metavar="FILE",
        help="out-of-fold probabilities of the training examples, see Getting more accuracy",
    )
    output_file: str = option("label_issues.tsv", help="an example a line; - is standard output")
    overwrite: bool = option(False, help="replace --output_file if it exists")


def label_issues(config: LabelIssuesConfig) -> None:
    """Read, find, write, tell."""
    from bertorch.confident_learning import find_label_issues
    from bertorch.data.out_of_fold import read_out_of_fold

    if not is_stream(config.output_file):
        refuse_existing([config.output_file], overwrite=config.overwrite, inputs=[config.input_file])
    rows = read_out_of_fold(config.input_file)
    found = find_label_issues(rows.labels, rows.probabilities)  # (N,)
    lines = list(_of_sentences(rows, found) if rows.of_tokens else _of_examples(rows, found))
    texts = ["token", "tokens"] if rows.of_tokens else list(rows.texts)
    with whole_output(config.output_file, overwrite=config.overwrite) as file:
        for line in (["number", "label", "suggested", "probability", *texts], *lines):
            file.write("\t".join(map(cell, line)) + "\n")
    _tell(rows, found)
    noun = "sentences" if rows.of_tokens else "examples"
    logger.info("{}: {} of {} {}", config.output_file, len(lines), len(set(rows.numbers.tolist())), noun)


def _ranked(rows: "OutOfFold", found: "np.ndarray") -> Iterator[tuple[int, list[str]]]:
    """Of each row found its index and first columns, the least probable label first."""
    import numpy as np

    indices = np.flatnonzero(found)  # (M,)
    confidence = rows.probabilities[indices, rows.labels[indices]]  # (M,)
    suggested = rows.probabilities[indices].argmax(axis=1)  # (M,)
    for place in np.argsort(confidence, kind="stable").tolist():
        index = int(indices[place])
        labels = rows.label_names[rows.labels[index]], rows.label_names[suggested[place]]
        yield index, [str(rows.numbers[index]), *labels, f"{confidence[place]:.6f}"]


def _of_examples(rows: "OutOfFold", found: "np.ndarray") -> Iterator[list[str]]:
    for index, line in _ranked(rows, found):
        yield [*line, *(texts[index] for texts in rows.texts.values())]


def _of_sentences(rows: "OutOfFold", found: "np.ndarray") -> Iterator[list[str]]:
    """A line a sentence, with its worst token, counted from 1, and all its tokens."""
    (tokens,) = rows.texts.values()
    sentences: dict[int, list[int]] = {}  # number → indices of its rows
    for index, number in enumerate(rows.numbers.tolist()):
        sentences.setdefault(number, []).append(index)
    seen = set()
    for index, line in _ranked(rows, found):
        number = int(rows.numbers[index])
        if number not in seen:
            seen.add(number)
            members = sentences[number]
            place = f"{members.index(index) + 1} {tokens[index]}"
            yield [*line, place, " ".join(tokens[member] for member in members)]


def _tell(rows: "OutOfFold", found: "np.ndarray") -> None:
    """How many examples of each label were found, and what is suggested for them most often."""
    import numpy as np

    suggested = rows.probabilities.argmax(axis=1)  # (N,)
    noun = "tokens" if rows.of_tokens else "examples"
    for label, name in enumerate(rows.label_names):
        of_label = rows.labels == label  # (N,)
        issues = of_label & found  # (N,)
        often = ""
        if issues.any():
            counts = np.bincount(suggested[issues])  # (labels,)
            often = f", most often {rows.label_names[int(counts.argmax())]}: {counts.max()}"
        logger.info("{}: {} of {} {}{}", name, issues.sum(), of_label.sum(), noun, often)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; a user error exits with code 2."""
    config = cli.parse(LabelIssuesConfig, argv, __doc__)
    with exit_on_user_error():
        label_issues(config)


if __name__ == "__main__":
    main()
