"""Texts that occur more than once, within a file or in train and dev alike, whatever their labels are."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from bertorch.prepare.examples import Example, by_texts

Groups = Mapping[tuple[str, ...], list[Example]]


def overlap_report(splits: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Count and list the texts that occur more than once.

    Args:
        splits: name of a split, such as train, → its examples.

    Returns:
        JSON values: `splits`, for each its lines, how many of them repeat an earlier one of the same split, and how
        many texts have lines with different labels; and `shared`, for each two splits how many lines of either have
        their text in the other one too, and these texts with their line numbers and labels.
    """
    groups = {name: by_texts(examples) for name, examples in splits.items()}
    return {
        "splits": {
            name: {
                "lines": len(examples),
                "repeats": len(examples) - len(groups[name]),
                "texts_with_different_labels": sum(map(_labels_differ, groups[name].values())),
            }
            for name, examples in splits.items()
        },
        "shared": [_shared(groups, pair) for pair in combinations(splits, 2)],
    }


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The counts of the report in words."""
    for name, counts in report["splits"].items():
        yield (
            f"{name}: {counts['lines']} lines, {counts['repeats']} of them repeat an earlier one; "
            f"{counts['texts_with_different_labels']} texts with different labels"
        )
    for shared in report["shared"]:
        (first, first_lines), (second, second_lines) = shared["lines"].items()
        lines = report["splits"][second]["lines"]
        yield (
            f"{first} and {second}: {second_lines} of the {lines} lines of {second} are also in {first} "
            f"({first_lines} lines there); {shared['texts_with_different_labels']} texts with different labels"
        )


def without_duplicates(examples: Sequence[Example], held_out: Sequence[Sequence[Example]]) -> list[Example]:
    """The first example of each text, without the texts of the held-out splits (dev, test)."""
    excluded = {example.texts for split in held_out for example in split}
    return [group[0] for texts, group in by_texts(examples).items() if texts not in excluded]


def _labels_differ(examples: Sequence[Example]) -> bool:
    return len({example.labels for example in examples}) > 1


def _shared(groups: Mapping[str, Groups], pair: tuple[str, str]) -> dict[str, Any]:
    first, second = (groups[name] for name in pair)
    texts = [text for text in first if text in second]
    return {
        "lines": {name: sum(len(groups[name][text]) for text in texts) for name in pair},
        "texts_with_different_labels": sum(_labels_differ(first[text] + second[text]) for text in texts),
        "items": [{"texts": text} | {name: _places(groups[name][text]) for name in pair} for text in texts],
    }


def _places(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [{"line": example.line_number, "labels": example.labels} for example in examples]
