"""Texts → tokens: the one place that cuts them."""

import re
import unicodedata
from functools import cache

from bertorch.config import SPLITS

CHARACTERS, WORDS = SPLITS
_CHARACTERS = re.compile(r"\S")
# Han, kana, hangul and what belongs to them are tokens by themselves; other letters and digits make words.
_LETTER = "[^\\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
_WORDS = re.compile(rf"{_LETTER}+|\S")
_STARTS_WORD = re.compile(_LETTER)
_PLANES_OF_MARKS = (range(0x300, 0x1F000), range(0xE0100, 0xE01F0))


def cut_text(text: str, split: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The tokens of a text, none of which has white space, as a name of `SPLITS` says; start and end of each in it."""
    found = list(_pattern(text, split).finditer(text))
    return [match.group() for match in found], [match.span() for match in found]


def _pattern(text: str, split: str) -> re.Pattern[str]:
    if split == CHARACTERS:
        return _CHARACTERS
    return _WORDS if text.isascii() else _words_with_marks()


@cache
def _words_with_marks() -> re.Pattern[str]:
    """As `_WORDS`, which is quicker; combining marks, such as accents, belong to what stands before them."""
    marks = (chr(code) for plane in _PLANES_OF_MARKS for code in plane if unicodedata.category(chr(code))[0] == "M")
    mark = f"[{''.join(marks)}]"
    return re.compile(rf"{_LETTER}+(?:{mark}+{_LETTER}*)*|\S{mark}*")


def spaced(token: str, split: str) -> str:
    """A token as the tokenizer is to see it: after a space, if the tokens are words and it begins like one.

    Byte-level tokenizers, such as RoBERTa's, tell a word after a space from the same letters within a word, and have
    seen nearly all words after one; to most others it is the same.
    """
    return f" {token}" if split == WORDS and _STARTS_WORD.match(token) else token
