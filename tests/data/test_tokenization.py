import numpy as np
import pytest
from transformers import AutoTokenizer

from bertorch.data import tokenization
from bertorch.data.tokenization import tokenize
from bertorch.errors import UserError
from tests.conftest import TINY

TEXTS = ["今天天气很好。", "好", "Hello, 世界！", "一二三四五六七八九十一二三四五六七八九十"]
OTHERS = ["明天会下雨吗？", "这句话比第一句长得多，所以先从它这里截断", "ok", "短"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.mark.parametrize("chunk", [1, 3, 2048])
@pytest.mark.parametrize("columns", [[TEXTS], [TEXTS, OTHERS]])
def test_the_store_holds_what_the_tokenizer_gives(tokenizer, columns, chunk, monkeypatch):
    monkeypatch.setattr(tokenization, "CHUNK", chunk)
    store = tokenize(tokenizer, columns, max_length=16)
    assert len(store) == len(TEXTS)
    assert (store.input_ids.dtype, store.token_type_ids.dtype, store.offsets.dtype) == (np.int32, np.int8, np.int64)
    for number, texts in enumerate(zip(*columns, strict=True)):
        expected = tokenizer(*texts, truncation=True, max_length=16)
        tokens = slice(store.offsets[number], store.offsets[number + 1])
        assert store.input_ids[tokens].tolist() == expected["input_ids"]
        assert store.token_type_ids[tokens].tolist() == expected["token_type_ids"]
    assert store.lengths.max() == 16


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
