"""Texts → tokens: the one place that cuts them."""

import re

from bertorch.config import SPLITS

CHARACTERS, WORDS = SPLITS
_CHARACTERS = re.compile(r"\S")
# Han, kana, hangul and what belongs to them are tokens by themselves; other letters and digits make words.
_LETTER = "[^\\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
_WORDS = re.compile(rf"{_LETTER}+|\S")
_PATTERNS = {CHARACTERS: _CHARACTERS, WORDS: _WORDS}  # how `--split` cuts plain text
_STARTS_WORD = re.compile(_LETTER)


def cut_text(text: str, split: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The tokens of a text, none of which has white space, as a name of `SPLITS` says; start and end of each in it."""
    found = list(_PATTERNS[split].finditer(text))
    return [match.group() for match in found], [match.span() for match in found]


def spaced(token: str, split: str) -> str:
    """A token as the tokenizer is to see it: after a space, if the tokens are words and it begins like one.

    Byte-level tokenizers, such as RoBERTa's, tell a word after a space from the same letters within a word, and have
    seen nearly all words after one; to most others it is the same.
    """
    return f" {token}" if split == WORDS and _STARTS_WORD.match(token) else token
