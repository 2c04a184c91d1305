"""Random texts with entities, for the tests of annotation tools."""

import random

from bertorch.prepare.annotated_texts import AnnotatedText, Entity

# Chinese, outside the Basic Multilingual Plane too, an emoji of several code points, combining characters, CRLF, tabs.
PIECES = [
    *"张三在北京的大学abc DE,。",
    "𠮷野",
    "😀",
    "👩‍👩‍👧",
    "👨🏻‍🚒",
    "e\u0301",
    "n\u0303o",
    "\u3000",
    "🇨🇳",
    '"',
    "\\n",
]
BREAKS = ["\r\n", "\n", "\t", "\u2028"]
TYPES = ["PER", "LOC", "ORG", "时间"]


def utf16(text: str, index: int) -> int:
    """The offset of a code point in units of UTF-16."""
    return len(text[:index].encode("utf-16-le")) // 2


def random_text(chance: random.Random, *, breaks: bool = True, **more: object) -> AnnotatedText:
    """A text and up to 5 of its spans, which may overlap, none with white space at an end."""
    text = "字" + "".join(chance.choices(PIECES + (BREAKS if breaks else []), k=chance.randrange(1, 25)))
    entities = set()
    for _ in range(chance.randrange(6)):
        start = chance.randrange(len(text))
        end = chance.randrange(start, len(text)) + 1
        if text[start:end].strip() == text[start:end]:
            entities.add(Entity(start, end, chance.choice(TYPES)))
    return AnnotatedText(text, sorted(entities, key=lambda entity: entity[:3]), dict(more))


def random_texts(seed: int, count: int = 1000, *, breaks: bool = True) -> list[AnnotatedText]:
    chance = random.Random(seed)
    return [random_text(chance, breaks=breaks, id=number) for number in range(count)]
