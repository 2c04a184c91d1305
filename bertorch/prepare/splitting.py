"""Train, dev and test from one file."""

import random
from collections.abc import Mapping, Sequence

from bertorch.errors import UserError
from bertorch.prepare.examples import Example, by_texts

REST = "train"


def split_examples(
    examples: Sequence[Example], ratios: Mapping[str, float], *, seed: int, source: str
) -> dict[str, list[Example]]:
    """Draw parts at random; examples of the same texts stay together, so that no part has another's texts.

    Args:
        examples: of one file.
        ratios: name of a part → its share of the examples; the rest is `train`.
        seed: the same one draws the same parts.
        source: the file, for errors.

    Returns:
        The parts in the order of the file, train first, without those of share 0. A part has its share, rounded, or is
        larger by repeats of its last text.

    Raises:
        UserError: a part would be empty.
    """
    drawn = list(by_texts(examples).values())
    groups = len(drawn)
    random.Random(seed).shuffle(drawn)
    part_of: dict[tuple[str, ...], str] = {}
    for name, ratio in ratios.items():
        room = round(ratio * len(examples))
        while room > 0 and drawn:
            group = drawn.pop()
            room -= len(group)
            part_of[group[0].texts] = name
    parts: dict[str, list[Example]] = {name: [] for name in (REST, *(name for name in ratios if ratios[name]))}
    for example in examples:
        parts[part_of.get(example.texts, REST)].append(example)
    for name, part in parts.items():
        if not part:
            expected = f"enough different texts for an example in {name}"
            raise UserError(f"{source}: expected {expected}, got {groups} in all")
    return parts
