"""What stands more than once: within a file, and in train and dev alike.

Two examples are the same if their texts are, to the last character, whatever their labels are.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from bertorch.prepare.examples import Example

Texts = tuple[str, ...]


def overlap_report(splits: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Count and list what stands more than once.

    Args:
        splits: name of a split, such as train, → its examples.

    Returns:
        What JSON can hold: `splits`, of each its lines, how many of them repeat an earlier one of the same split, and
        how many texts have lines with different labels; and `shared`, of each two splits how many lines of either have
        their text in the other one too, and these texts with their line numbers and labels.
    """
    found = {name: _by_texts(examples) for name, examples in splits.items()}
    return {
        "splits": {
            name: {
                "lines": len(examples),
                "repeats": len(examples) - len(found[name]),
                "texts_with_different_labels": sum(len({e.labels for e in same}) > 1 for same in found[name].values()),
            }
            for name, examples in splits.items()
        },
        "shared": [_shared(found, pair) for pair in combinations(splits, 2)],
    }


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report's counts, to be read."""
    for name, counts in report["splits"].items():
        yield (
            f"{name}: {counts['lines']} lines, {counts['repeats']} of them repeat an earlier one; "
            f"{counts['texts_with_different_labels']} texts with different labels"
        )
    for shared in report["shared"]:
        (first, first_lines), (second, second_lines) = shared["lines"].items()
        yield (
            f"{first} and {second}: {second_lines} of the {report['splits'][second]['lines']} lines of {second} stand "
            f"in {first} too ({first_lines} lines there); {shared['texts_with_different_labels']} texts with different "
            "labels"
        )


def without_duplicates(examples: Sequence[Example], held_out: Sequence[Sequence[Example]]) -> list[Example]:
    """The examples of which no earlier one, and none of those held out (dev, test), has the same texts."""
    seen = {example.texts for split in held_out for example in split}
    kept = []
    for example in examples:
        if example.texts not in seen:
            seen.add(example.texts)
            kept.append(example)
    return kept


def _by_texts(examples: Sequence[Example]) -> dict[Texts, list[Example]]:
    found: defaultdict[Texts, list[Example]] = defaultdict(list)
    for example in examples:
        found[example.texts].append(example)
    return dict(found)


def _shared(found: Mapping[str, dict[Texts, list[Example]]], pair: tuple[str, str]) -> dict[str, Any]:
    first, second = (found[name] for name in pair)
    texts = [text for text in first if text in second]
    items = [
        {
            "texts": text,
            **{
                name: [{"line": example.number, "labels": example.labels} for example in found[name][text]]
                for name in pair
            },
        }
        for text in texts
    ]
    different = sum(len({example.labels for name in pair for example in found[name][text]}) > 1 for text in texts)
    return {
        "lines": {name: sum(len(found[name][text]) for text in texts) for name in pair},
        "texts_with_different_labels": different,
        "items": items,
    }
