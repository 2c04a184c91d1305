"""Train, dev and test: draw them from one file, and find the texts that occur in several or more than once."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from operator import attrgetter
from typing import Any

from bertorch.errors import UserError
from bertorch.prepare.examples import Example

Groups = dict[tuple[str, ...], list[Example]]
_TEXTS, _GROUP = attrgetter("texts"), attrgetter("group")


def _grouped(examples: Sequence[Example], key: Callable[[Example], tuple[str, ...]]) -> Groups:
    """The examples with equal keys together, whatever their labels, in the order in which they first come."""
    groups: Groups = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example)
    return groups


def split_examples(
    examples: Sequence[Example], ratios: Mapping[str, float], *, seed: int, source: str
) -> dict[str, list[Example]]:
    """Draw parts at random; examples of the same group stay together, so that no part has another's texts.

    `ratios` are the shares of the parts beside train; `source` is the file, for errors. The result is train and the
    parts whose share is not 0, each in the order of the file. A part has its share, rounded, at least one example, or
    is larger by the rest of its last group.

    Raises:
        UserError: a part would be empty.
    """
    drawn = list(_grouped(examples, _GROUP).values())
    groups = len(drawn)
    random.Random(seed).shuffle(drawn)
    part_of: dict[tuple[str, ...], str] = {}
    for name, ratio in ratios.items():
        room = max(round(ratio * len(examples)), 1 if ratio else 0)
        while room > 0 and drawn:
            group = drawn.pop()
            room -= len(group)
            part_of[group[0].group] = name
    parts: dict[str, list[Example]] = {name: [] for name in ("train", *filter(ratios.get, ratios))}
    for example in examples:
        parts[part_of.get(example.group, "train")].append(example)
    if empty := next((name for name, part in parts.items() if not part), None):
        expected = f"enough different texts for an example in {empty}"
        raise UserError(f"{source}: expected {expected}, got {groups} in all")
    return parts


def overlap_report(splits: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Count and list the texts that occur more than once in splits, such as train, whatever their labels are.

    Returns:
        JSON values: `splits`, for each its lines, how many of them repeat an earlier one of the same split, and how
        many texts have lines with different labels; and `shared`, for each two splits how many lines of either have
        their text (or column, with `--group_by`) in the other one too, and these with their line numbers and labels.
    """
    texts = {name: _grouped(examples, _TEXTS) for name, examples in splits.items()}
    groups = {name: _grouped(examples, _GROUP) for name, examples in splits.items()}
    counts = {
        name: {
            "lines": len(examples),
            "repeats": len(examples) - len(texts[name]),
            "texts_with_different_labels": sum(map(_labels_differ, texts[name].values())),
        }
        for name, examples in splits.items()
    }
    return {"splits": counts, "shared": [_shared(groups, pair) for pair in combinations(splits, 2)]}


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
    """The first example of each text, without the groups of the held-out splits (dev, test)."""
    excluded = {example.group for split in held_out for example in split}
    return [group[0] for group in _grouped(examples, _TEXTS).values() if group[0].group not in excluded]


def _labels_differ(examples: Sequence[Example]) -> bool:
    return len({example.labels for example in examples}) > 1


def _shared(groups: Mapping[str, Groups], pair: tuple[str, str]) -> dict[str, Any]:
    first, second = (groups[name] for name in pair)
    texts = [text for text in first if text in second]
    return {
        "lines": {name: sum(len(groups[name][text]) for text in texts) for name in pair},
        "texts_with_different_labels": sum(_labels_differ(first[text] + second[text]) for text in texts),
        "items": [{"texts": text} | {name: _lines(groups[name][text]) for name in pair} for text in texts],
    }


def _lines(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [{"line": example.line_number, "labels": example.labels} for example in examples]
