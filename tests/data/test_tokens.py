from typing import ClassVar

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from bertorch.data.tokens import tokenize
from bertorch.errors import UserError
from tests.conftest import TINY

TEXTS = ["今天天气很好。", "好", "Hello, 世界！", "一二三四五六七八九十一二三四五六七八九十"]
OTHERS = ["明天会下雨吗？", "这句话比第一句长得多，所以先从它这里截断", "ok", "短"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


class WithCodeOfItsOwn(BertTokenizer):
    """A fast tokenizer that does something in Python around the call of its backend."""

    def _encode_plus(self, text, *others, **options):
        return super()._encode_plus([line.replace("好", "坏") for line in text], *others, **options)


@pytest.mark.parametrize(
    ("kind", "truncation_side"),
    [(BertTokenizer, "right"), (BertTokenizer, "left"), (BertTokenizerLegacy, "right"), (WithCodeOfItsOwn, "right")],
)
@pytest.mark.parametrize("chunk", [1, 3, 2048])
@pytest.mark.parametrize("columns", [[TEXTS], [TEXTS, OTHERS]])
def test_the_store_holds_what_the_tokenizer_gives(kind, truncation_side, columns, chunk, monkeypatch):
    monkeypatch.setattr("bertorch.data.tokens.CHUNK", chunk)
    tokenizer = kind.from_pretrained(TINY, truncation_side=truncation_side)
    tokenizer(["what an earlier call asked for"], truncation=True, max_length=5, padding="max_length")
    store = tokenize(tokenizer, columns, max_length=16)
    assert len(store) == len(TEXTS)
    assert (store.input_ids.dtype, store.token_type_ids.dtype, store.offsets.dtype) == (np.int32, np.int8, np.int64)
    for number, texts in enumerate(zip(*columns, strict=True)):
        expected = tokenizer(*[[text] for text in texts], truncation=True, max_length=16, return_token_type_ids=True)
        tokens = slice(store.offsets[number], store.offsets[number + 1])
        assert store.input_ids[tokens].tolist() == expected["input_ids"][0]
        assert store.token_type_ids[tokens].tolist() == expected["token_type_ids"][0]
    assert store.lengths.max() == 16


@pytest.mark.parametrize("kind", [BertTokenizer, BertTokenizerLegacy, WithCodeOfItsOwn])
@pytest.mark.parametrize("truncation_side", ["right", "left"])
@pytest.mark.parametrize("num_texts", [1, 2])
def test_a_text_is_cut_if_it_has_more_tokens_than_fit(kind, truncation_side, num_texts):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 30 // num_texts, (num_texts, 200))
    # a space, and a character that the tokenizer drops, after the last token
    columns = [["天" * length + end for length, end in zip(row, [" ", "\x07"] * 100, strict=True)] for row in lengths]
    tokenizer = kind.from_pretrained(TINY, truncation_side=truncation_side)
    store = tokenize(tokenizer, columns, max_length=16)
    whole = np.array([len(row) for row in tokenizer(*map(list, columns), verbose=False)["input_ids"]])
    assert store.cut.dtype == np.bool_
    assert store.cut.tolist() == (whole > 16).tolist()
    assert (whole == 16).any()  # as long as it may be, and not cut


def test_a_pair_is_cut_at_its_longer_text(tokenizer):
    store = tokenize(tokenizer, [["好"], ["一二三四五六七八九十"]], max_length=8)
    assert tokenizer.decode(store.input_ids) == "[CLS] 好 [SEP] 一 二 三 四 [SEP]"
    assert store.token_type_ids.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_a_text_that_the_tokenizer_deletes_keeps_its_special_tokens(tokenizer):
    store = tokenize(tokenizer, [["\u200b\u200b", "好"]], max_length=8)
    assert store.lengths.tolist() == [2, 3]


def test_nul_bytes_and_control_characters_are_no_tokens(tokenizer):
    store = tokenize(tokenizer, [["好\0\x07吃\x7f", "好吃", "\0\0"]], max_length=8)
    sentences = np.split(store.input_ids, store.offsets[1:-1])
    assert sentences[0].tolist() == sentences[1].tolist()
    assert sentences[2].tolist() == [tokenizer.cls_token_id, tokenizer.sep_token_id]


def test_max_length_must_leave_room_for_text(tokenizer):
    with pytest.raises(UserError, match="--max_seq_length 4: expected at least 5"):
        tokenize(tokenizer, [["好"], ["坏"]], max_length=4)


class Recorded(BertTokenizer):
    """Remembers how many texts each call had, beside the calls that look whether texts are cut."""

    sizes: ClassVar[list[int]] = []

    def __call__(self, text, *others, **options):
        if options["max_length"] == 16:
            self.sizes.append(len(text))
        return super().__call__(text, *others, **options)


@pytest.mark.parametrize("columns", [1, 2])
def test_chunks_are_bounded_in_texts_and_characters(columns, tokenizer, monkeypatch):
    monkeypatch.setattr("bertorch.data.tokens.CHUNK", 4)
    monkeypatch.setattr("bertorch.data.tokens.CHUNK_CHARACTERS", 20 * columns)
    lengths = [1, 1, 1, 1, 1, 50, 3, 17, 1, 10, 10, 10]
    texts = [["天" * length for length in lengths]] * columns
    one_by_one = [tokenize(tokenizer, [[column[index]] for column in texts], 16) for index in range(len(lengths))]
    Recorded.sizes.clear()
    store = tokenize(Recorded.from_pretrained(TINY), texts, 16)
    assert Recorded.sizes == [4, 1, 1, 2, 2, 2]
    assert store.input_ids.tolist() == np.concatenate([one.input_ids for one in one_by_one]).tolist()
