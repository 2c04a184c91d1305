import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bertorch.data.dataset import Dataset, TextRows
from bertorch.data.tokens import TokenStore
from tests.conftest import TINY

SENTENCES = [[2, 7, 3], [2, 3], [2, 8, 9, 10, 3], [2, 11, 3]]


@pytest.fixture
def dataset():
    tokens = np.concatenate(SENTENCES).astype(np.int32)
    offsets = np.array([0, 3, 5, 10, 13])
    types = (np.arange(len(tokens)) % 2).astype(np.int8)
    store = TokenStore(tokens, types, offsets, np.zeros(4, dtype=np.bool_))
    return Dataset(store, np.arange(4)[:, None], labels=np.array([0, 1, 1, 0]))


def test_a_batch_is_its_sentences_end_to_end(dataset):
    batch = dataset.batch(np.array([2, 0]))
    assert batch.input_ids.tolist() == SENTENCES[2] + SENTENCES[0]
    assert batch.token_type_ids.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 5, 8]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.input_ids.dtype == batch.token_type_ids.dtype == batch.position_ids.dtype == torch.int64
    assert batch.sentence_ids.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert (batch.max_seqlen, batch.size, batch.labels.tolist()) == (5, 2, [1, 0])


def test_an_example_may_have_several_sentences(dataset):
    pairs = Dataset(dataset.store, np.array([[0, 3], [2, 2], [3, 1]]), labels=np.array([0.5, 1.5, 2.5]))
    assert len(pairs) == 3
    assert pairs.lengths.tolist() == [3, 5, 3]
    batch = pairs.batch(np.array([2, 0]))
    assert batch.input_ids.tolist() == SENTENCES[3] + SENTENCES[1] + SENTENCES[0] + SENTENCES[3]
    assert batch.labels.tolist() == [2.5, 0.5]
    assert batch.size == 4


@pytest.mark.parametrize("sentences", [1, 2, 3, 4, 7])
def test_the_parts_of_a_batch_are_batches_of_fewer_sentences(dataset, sentences):
    numbers = np.array([2, 0, 1, 3])
    parts = list(dataset.batch(numbers).split(sentences))
    expected = [dataset.batch(numbers[start : start + sentences]) for start in range(0, 4, sentences)]
    assert len(parts) == len(expected)
    for part, alone in zip(parts, expected, strict=True):
        assert part.max_seqlen == alone.max_seqlen
        assert len(part.labels) == 0
        for name in ("input_ids", "token_type_ids", "position_ids", "cu_seqlens"):
            assert torch.equal(getattr(part, name), getattr(alone, name))
            assert getattr(part, name).dtype == getattr(alone, name).dtype


def test_a_batch_without_examples_has_no_parts(dataset):
    empty = dataset.batch(np.arange(0))
    assert (empty.size, empty.max_seqlen, len(empty.input_ids), list(empty.split(2))) == (0, 0, 0, [])


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def test_a_text_that_occurs_again_is_stored_once_and_keeps_its_number(tokenizer):
    columns = [["今天", "明天", "今天"], ["后天", "今天", "昨 天"]]
    data = TextRows.tokenized(tokenizer, columns, max_length=16)
    assert len(data.store) == 4
    assert data.sentences.tolist() == [[0, 2], [1, 0], [0, 3]]
    batch = data.batch(np.array([1]))
    assert tokenizer.decode(batch.input_ids) == "[CLS] 明 天 [SEP] [CLS] 今 天 [SEP]"
    assert batch.text_ids.tolist() == [[1, 0]]
    scored = Dataset.of_sentences(tokenizer, columns, np.array([1.0, 2.0, 3.0]), max_length=16)
    assert scored.labels.tolist() == [1, 2, 3]
    assert np.array_equal(scored.sentences, data.sentences)


def test_a_pair_that_is_encoded_together_is_one_sentence(tokenizer):
    data = Dataset.of_sequences(tokenizer, [["今天"], ["后天"]], np.array([1]), max_length=16)
    batch = data.batch(np.array([0]))
    assert tokenizer.decode(batch.input_ids) == "[CLS] 今 天 [SEP] 后 天 [SEP]"
    assert (batch.size, batch.labels.tolist()) == (1, [1])


def test_to_moves_every_tensor(dataset):
    moved = dataset.batch(np.array([1])).to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("multiple", [4, 8, 128])
def test_filler_makes_a_round_number_of_tokens_and_belongs_to_no_sentence(dataset, multiple):
    batch = dataset.batch(np.array([2, 0]))  # 8 tokens
    filled = batch.filled(multiple)
    assert len(filled.input_ids) == {4: 12, 8: 16, 128: 128}[multiple]  # one token of filler at least
    assert filled.max_seqlen == {4: 8, 8: 8, 128: 128}[multiple]
    for name in ("input_ids", "token_type_ids", "position_ids"):
        tensor = getattr(filled, name)
        assert tensor[:8].tolist() == getattr(batch, name).tolist()
        assert not tensor[8:].any()
    assert filled.cu_seqlens is batch.cu_seqlens
    assert filled.labels is batch.labels
    assert filled.size == 2
    assert filled.bounds.tolist() == [0, 5, 8, len(filled.input_ids)]
    assert filled.sentence_ids.tolist() == [0] * 5 + [1] * 3 + [2] * (len(filled.input_ids) - 8)
    assert batch.bounds is batch.cu_seqlens


def test_a_batch_is_ready_for_the_cpu_as_it_is(dataset):
    batch = dataset.batch(np.array([2, 0]))
    assert batch.ready_for(torch.device("cpu")) is batch
