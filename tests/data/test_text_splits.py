from transformers import AutoTokenizer

from bertorch.data.text_splits import cut_text, spaced
from tests.conftest import TINY


def test_words_stand_after_spaces_and_characters_do_not():
    """Chinese, Japanese and Korean characters and signs stand as they are."""
    tokens = ("London", "3", "é", "北", "か", "한", ".", "'", "_")
    assert [spaced(token, "words") for token in tokens] == [" London", " 3", " é", "北", "か", "한", ".", "'", "_"]
    assert [spaced(token, "characters") for token in tokens] == list(tokens)


def test_to_the_embedded_tokenizer_it_is_the_same():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert tokenizer(" London")["input_ids"] == tokenizer("London")["input_ids"]


def test_combining_marks_belong_to_what_stands_before_them():
    """Decomposed accents, vowel signs, and variants of an emoji and of a Chinese character."""
    words = ["Jose\u0301", "か\u3099", "नरेंद्र", "மோடி", "หนู", "❤\ufe0f", "葛\U000e0100", "城", "don", "'", "t", "_"]
    tokens, offsets = cut_text(" ".join(words), "words")
    assert tokens == words
    assert [" ".join(words)[start:end] for start, end in offsets] == words
    assert cut_text("\u0301a", "words")[0] == ["\u0301", "a"]
    assert cut_text("e\u0301", "characters")[0] == ["e", "\u0301"]
