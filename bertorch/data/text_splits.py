"""Texts → tokens: the one place that cuts them."""

import re

from bertorch.config import SPLITS

_CHARACTERS = re.compile(r"\S")
# Han, kana, hangul and what belongs to them are tokens by themselves; other letters and digits make words.
_WORDS = re.compile("[^\\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+|\\S")
_PATTERNS = dict(zip(SPLITS, (_CHARACTERS, _WORDS), strict=True))  # how `--split` cuts plain text


def cut_text(text: str, split: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The tokens of a text, none of which has white space, as a name of `SPLITS` says; start and end of each in it."""
    found = list(_PATTERNS[split].finditer(text))
    return [match.group() for match in found], [match.span() for match in found]
