"""Train, dev and test from one file."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from bertorch.errors import UserError
from bertorch.prepare.examples import Example

REST = "train"


def split_examples(
    examples: Sequence[Example], ratios: Mapping[str, float], *, seed: int, source: str
) -> dict[str, list[Example]]:
    """Draw parts at random; examples of the same texts stay together, so that no part has another's texts.

    Args:
        examples: of a file.
        ratios: name of a part → its share of the examples; what is left over is `train`.
        seed: the same one draws the same parts.
        source: the file, for errors.

    Returns:
        The parts, in the order of the file: train first, and without those of share 0. A part is as large as its share,
        rounded, or larger by the last of its repeated texts.

    Raises:
        UserError: a part would be empty.
    """
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        groups[example.texts].append(number)
    drawn = list(groups.values())
    random.Random(seed).shuffle(drawn)
    part_of = [REST] * len(examples)
    for name, ratio in ratios.items():
        room = round(ratio * len(examples))
        while room > 0 and drawn:
            group = drawn.pop()
            room -= len(group)
            for number in group:
                part_of[number] = name
    parts: dict[str, list[Example]] = {name: [] for name in (REST, *(name for name in ratios if ratios[name]))}
    for name, example in zip(part_of, examples, strict=True):
        parts[name].append(example)
    for name, part in parts.items():
        if not part:
            raise UserError(
                f"{source}: expected enough different texts for an example in {name}, got {len(groups)} in all"
            )
    return parts
