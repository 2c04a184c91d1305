"""Long texts as windows: against transformers' own windows, and by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from bertorch.data.dataset import Dataset
from bertorch.data.tokens import TextWindows, tokenize, tokenize_windows
from bertorch.data.windowed_dataset import WindowedDataset
from bertorch.errors import UserError
from tests.conftest import TINY

SENTENCE = "今天天气很好，明天会下雨吗？我们去公园走一走，然后回家吃饭。"
TEXTS = ["好", SENTENCE, SENTENCE * 3, "Hello, 世界！", SENTENCE[:13], SENTENCE[:14], SENTENCE[:15], "\u200b"]
QUERIES = ["天气", "好", "今天", "问一问明天", "好吗", "一", "", "天气好"]
ROOM = 14  # of a text in 16 tokens


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def robertas():
    """Two separators between the texts of a pair, and one type of tokens."""
    words = ["<s>", "</s>", "<pad>", "<unk>", *map(str, range(60))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")


def cut(found: TextWindows) -> list[bool]:
    """Whether a text has tokens that are in none of its windows."""
    return found.store.cut[found.offsets[1:] - 1].tolist()


def windows_of(result, index: int) -> list[list[int]]:
    """Token ids of the windows of an input."""
    bounds = [result.store.offsets[window : window + 2] for window in range(*result.offsets[index : index + 2])]
    return [result.store.input_ids[start:end].tolist() for start, end in bounds]


def types_of(result, index: int) -> list[list[int]]:
    bounds = [result.store.offsets[window : window + 2] for window in range(*result.offsets[index : index + 2])]
    return [result.store.token_type_ids[start:end].tolist() for start, end in bounds]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("chunk", [1, 3, 2048])
@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_windows_of_a_text_are_those_of_transformers(side, chunk, most, monkeypatch):
    monkeypatch.setattr("bertorch.data.tokens.CHUNK", chunk)
    tokenizer = BertTokenizer.from_pretrained(TINY, truncation_side=side)
    tokenizer(["what an earlier call asked for"], truncation=True, max_length=5, padding="max_length")
    found = tokenize_windows(tokenizer, [TEXTS], 16, most)
    for index, text in enumerate(TEXTS):
        expected = tokenizer(text, truncation=True, max_length=16, stride=ROOM // 4, return_overflowing_tokens=True)[
            "input_ids"
        ]
        assert windows_of(found, index) == expected[:most]
        assert cut(found)[index] == (len(expected) > most)
    assert not found.store.token_type_ids.any()
    assert found.store.lengths.max() == 16


@pytest.mark.parametrize("most", [1, 2, 100])
def test_windows_of_a_pair_have_its_first_text_in_each(tokenizer, most):
    found = tokenize_windows(tokenizer, [QUERIES, TEXTS], 16, most)
    for index, pair in enumerate(zip(QUERIES, TEXTS, strict=True)):
        query = tokenizer(pair[0], add_special_tokens=False)["input_ids"]
        expected = tokenizer(
            *pair,
            truncation="only_second",
            max_length=16,
            stride=(13 - len(query)) // 4,
            return_overflowing_tokens=True,
        )["input_ids"]
        assert windows_of(found, index) == expected[:most]
        assert cut(found)[index] == (len(expected) > most)
        for types, ids in zip(types_of(found, index), windows_of(found, index), strict=True):
            assert types == [0] * (len(query) + 2) + [1] * (len(ids) - len(query) - 2)


def test_windows_with_the_special_tokens_of_another_model(robertas):
    long = " ".join(map(str, range(30)))
    found = tokenize_windows(robertas, [["57 58"], [long]], 16, 3)
    room = 10  # 16 − 4 special tokens − 2
    starts = [0, 8, 16]
    inner = [[4 + number for number in range(start, min(start + room, 30))] for start in starts]
    assert windows_of(found, 0) == [[0, 61, 62, 1, 1, *numbers, 1] for numbers in inner]
    assert not found.store.token_type_ids.any()
    assert cut(found) == [True]  # 26 to 29
    assert cut(tokenize_windows(robertas, [["57 58"], [long]], 16, 4)) == [False]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("一二三四五六七八九十", "好", (10, 1, False)),  # 10 + 1 + 3 of 16
        ("一二三四五六七八九十一二三四五", "好", (12, 1, True)),  # what the second one leaves
        ("一二三四五六七八九十一二三四五", "好" * 7, (6, 1, True)),  # half of 13
        ("一二三四五六七八九十一二三四五", "好" * 9, (6, 2, True)),
        ("一二三四五六", "好" * 9, (6, 2, False)),
    ],
)
def test_a_first_text_leaves_room_for_the_second(tokenizer, first, second, expected):
    """`expected`: the tokens of the first one, the windows, and whether the pair is cut."""
    found = tokenize_windows(tokenizer, [[first], [second]], 16, 4)
    query = tokenizer(first, add_special_tokens=False)["input_ids"][: expected[0]]
    assert (len(query), len(windows_of(found, 0)), cut(found)[0]) == expected
    for ids in windows_of(found, 0):
        assert ids[1 : ids.index(tokenizer.sep_token_id)] == query
        assert len(ids) <= 16


@pytest.mark.parametrize("columns", [[TEXTS], [QUERIES, TEXTS]])
@pytest.mark.parametrize("max_length", [128, 200])
def test_a_text_that_fits_has_the_tokens_that_it_always_has(tokenizer, robertas, columns, max_length):
    for each in (tokenizer, robertas):
        found, expected = tokenize_windows(each, columns, max_length, 3), tokenize(each, columns, max_length)
        assert found.store.input_ids.tolist() == expected.input_ids.tolist()
        assert found.store.token_type_ids.tolist() == expected.token_type_ids.tolist()
        assert found.store.offsets.tolist() == expected.offsets.tolist()
        assert found.offsets.tolist() == list(range(len(TEXTS) + 1))
        assert not any(cut(found))


def test_every_token_of_a_text_is_in_a_window_and_neighbours_overlap(tokenizer):
    (ids,) = (tokenizer(SENTENCE * 5, add_special_tokens=False)["input_ids"],)
    windows = [window[1:-1] for window in windows_of(tokenize_windows(tokenizer, [[SENTENCE * 5]], 16, 100), 0)]
    joined = windows[0]
    for one, other in pairwise(windows):
        assert one[-3:] == other[:3]  # a quarter of 14
        joined = joined + other[3:]
    assert joined == ids


@pytest.mark.parametrize("columns", [[["好" * 50]], [["坏" * 50], ["好" * 50]]])
def test_the_smallest_length_still_has_windows(tokenizer, columns):
    smallest = 2 + len(columns) * 2 - 1
    found = tokenize_windows(tokenizer, columns, smallest, 7)
    assert found.store.lengths.tolist() == [smallest] * 7
    with pytest.raises(UserError, match=f"--max_seq_length {smallest - 1}: expected at least {smallest}"):
        tokenize_windows(tokenizer, columns, smallest - 1, 7)


class WithCodeOfItsOwn(BertTokenizer):
    def _encode_plus(self, text, *others, **options):
        return super()._encode_plus(text, *others, **options)


@pytest.mark.parametrize("kind", [BertTokenizerLegacy, WithCodeOfItsOwn])
def test_a_tokenizer_that_cannot_give_windows_is_refused(kind):
    with pytest.raises(UserError, match=f"--windows 2: expected a fast tokenizer .*, got {kind.__name__}; leave out"):
        tokenize_windows(kind.from_pretrained(TINY), [TEXTS], 16, 2)


def test_a_batch_has_all_windows_of_its_examples(tokenizer):
    data = WindowedDataset.of_windows(tokenizer, [TEXTS], np.arange(len(TEXTS)), max_length=16, windows=3)
    found = tokenize_windows(tokenizer, [TEXTS], 16, 3)
    assert data.lengths.tolist() == [sum(map(len, windows_of(found, index))) for index in range(len(TEXTS))]
    indices = [2, 0, 1]
    batch = data.batch(np.array(indices))
    windows = [window for index in indices for window in windows_of(found, index)]
    assert batch.input_ids.tolist() == [token for window in windows for token in window]
    assert batch.cu_seqlens.tolist() == np.cumsum([0, *map(len, windows)]).tolist()
    assert batch.window_counts.tolist() == [3, 1, 3]
    assert (batch.labels.tolist(), batch.size, batch.tokens) == (indices, 7, sum(map(len, windows)))
    assert batch.filled(64).window_counts is batch.window_counts
    assert [part.window_counts for part in batch.split(3)] == [None] * 3
    assert batch.to(torch.device("meta")).window_counts.is_meta
    empty = data.batch(np.arange(0))
    assert (empty.size, empty.window_counts.tolist()) == (0, [])


def test_each_candidate_of_a_group_has_windows(tokenizer):
    """Rows of three columns: the first text with each of the others."""
    columns = [QUERIES[:3], TEXTS[:3], [SENTENCE * 2, "好", SENTENCE]]
    data = WindowedDataset.of_windows(tokenizer, columns, np.zeros(3, np.int64), max_length=16, windows=2)
    pairs = [(row[0], candidate) for row in zip(*columns, strict=True) for candidate in row[1:]]
    alone = tokenize_windows(tokenizer, [list(column) for column in zip(*pairs, strict=True)], 16, 2)
    assert data.sentences.tolist() == [[0, 1], [2, 3], [4, 5]]
    batch = data.batch(np.array([1, 2]))
    expected = [window for index in (2, 3, 4, 5) for window in windows_of(alone, index)]
    assert batch.input_ids.tolist() == [token for window in expected for token in window]
    assert batch.window_counts.tolist() == [2, 1, 2, 2]
    sums = [[sum(map(len, windows_of(alone, 2 * row + column))) for column in (0, 1)] for row in range(3)]
    assert data.lengths.tolist() == np.max(sums, axis=1).tolist()


def test_one_window_is_what_a_dataset_without_windows_holds(tokenizer):
    """Of texts: a pair's ordinary truncation takes from the longer text."""
    labels = np.arange(len(TEXTS))
    ordinary = Dataset.of_sequences(tokenizer, [TEXTS], labels, max_length=16)
    windowed = WindowedDataset.of_windows(tokenizer, [TEXTS], labels, max_length=16, windows=1)
    assert windowed.lengths.tolist() == ordinary.lengths.tolist()
    ours, expected = (data.batch(np.arange(len(TEXTS))) for data in (windowed, ordinary))
    assert ours.input_ids.tolist() == expected.input_ids.tolist()
    assert ours.cu_seqlens.tolist() == expected.cu_seqlens.tolist()
