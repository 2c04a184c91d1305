from transformers import AutoTokenizer

from bertorch.data.text_splits import spaced
from tests.conftest import TINY


def test_words_stand_after_spaces_and_characters_do_not():
    """Chinese, Japanese and Korean characters and signs stand as they are."""
    tokens = ("London", "3", "é", "北", "か", "한", ".", "'", "_")
    assert [spaced(token, "words") for token in tokens] == [" London", " 3", " é", "北", "か", "한", ".", "'", "_"]
    assert [spaced(token, "characters") for token in tokens] == list(tokens)


def test_to_the_embedded_tokenizer_it_is_the_same():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert tokenizer(" London")["input_ids"] == tokenizer("London")["input_ids"]
