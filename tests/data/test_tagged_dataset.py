from operator import attrgetter

import numpy as np
import pytest
from transformers import AutoTokenizer

from bertorch.data.array_folder import array_names
from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.data.word_dataset import windows
from bertorch.errors import UserError
from tests.conftest import TINY

# English words of several pieces, digits, an emoji, full-width and rare characters, and what the tokenizer deletes.
WORDS = ["他", "reinforcement", "2024", "😀", "Ａ", "𠮷", " ", "\u200b", "\x07", "\0", "", "。"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def sentences(*lists: list[str]) -> TaggedSentences:
    """Each word is tagged with its number over all sentences, so that it can be told from the others."""
    ends = np.cumsum([len(words) for words in lists])
    return TaggedSentences(list(lists), np.split(np.arange(ends[-1]), ends[:-1]))


def pieces_of(tokenizer, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id]


def dataset(tokenizer, *lists: list[str], max_length: int = 128) -> TaggedDataset:
    return TaggedDataset.of(tokenizer, sentences(*lists), max_length=max_length)


def test_every_word_is_tagged_on_its_first_piece(tokenizer):
    data = dataset(tokenizer, ["好"], WORDS, ["a", "b"])
    batch = data.batch(np.array([1, 0]))
    pieces = [pieces_of(tokenizer, word) for word in WORDS]
    assert any(len(ids) > 1 for ids in pieces)
    assert pieces[WORDS.index("\u200b")] == [tokenizer.unk_token_id]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    flat = [piece for ids in pieces for piece in ids]
    assert batch.input_ids.tolist() == [cls, *flat, sep, cls, *pieces_of(tokenizer, "好"), sep]
    assert batch.cu_seqlens.tolist() == [0, len(flat) + 2, len(flat) + 5]
    assert batch.input_ids[batch.word_starts].tolist() == [ids[0] for ids in pieces] + pieces_of(tokenizer, "好")
    assert batch.labels.tolist() == [*range(1, 1 + len(WORDS)), 0]
    assert (batch.cu_words.tolist(), batch.max_words) == ([0, len(WORDS), len(WORDS) + 1], len(WORDS))
    assert data.lengths.tolist() == [1, len(WORDS), 2]
    assert data.label_count(np.array([2, 0])) == 3


def test_words_are_cut_as_transformers_cuts_them(tokenizer):
    words = [word for word in WORDS if tokenizer(word, add_special_tokens=False)["input_ids"]]
    encoded = tokenizer(words, is_split_into_words=True)
    batch = dataset(tokenizer, words).batch(np.array([0]))
    assert batch.input_ids.tolist() == encoded["input_ids"]
    first = [encoded.word_ids().index(number) for number in range(len(words))]
    assert batch.word_starts.tolist() == first


@pytest.mark.parametrize("room", [1, 2, 3, 4, 5, 8, 13, 100])
def test_windows_keep_every_word_once_with_context(room):
    generator = np.random.default_rng(0)
    for words in [1, 2, 3, 7, 30, 200]:
        pieces = generator.integers(1, (room + 1) // 2 + 1, words)
        cut = list(windows(pieces, room))
        assert [word for window in cut for word in range(window.kept_start, window.kept_end)] == list(range(words))
        for window in cut:
            assert window.start <= window.kept_start < window.kept_end <= window.end
            assert pieces[window.start : window.end].sum() <= room
            if room >= 8:  # a quarter of the room on either side, but for a word that does not fit
                left = pieces[window.start : window.kept_start].sum()
                right = pieces[window.kept_end : window.end].sum()
                assert window.start == 0 or left > room // 4 - pieces.max()
                assert window.end == words or right >= room // 4 or window.kept_end == window.kept_start + 1


@pytest.mark.parametrize("max_length", [3, 4, 5, 8, 16, 31])
def test_a_long_sentence_loses_nothing(tokenizer, max_length):
    words = ["一", "reinforcement", "二", "\u200b", "三", "transformers", "四"] * 9
    whole = dataset(tokenizer, ["好"], words, max_length=max_length)
    batch = whole.batch(np.array([1, 0]))
    assert batch.size > 2
    assert batch.max_seqlen <= max_length
    first = [pieces_of(tokenizer, word)[0] for word in [*words, "好"]]
    assert batch.input_ids[batch.word_starts].tolist() == first
    assert batch.labels.tolist() == [*range(1, len(words) + 1), 0]
    assert batch.cu_words.tolist() == [0, len(words), len(words) + 1]
    assert whole.lengths.tolist() == [1, len(words)]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_sentences_are_cut_a_chunk_at_a_time(tokenizer, chunk, monkeypatch):
    lists = [WORDS, ["好"], WORDS * 3, ["a", "b"], WORDS * 2]
    at_once = dataset(tokenizer, *lists, max_length=16)
    monkeypatch.setattr("bertorch.data.word_dataset.CHUNK", chunk)
    by_chunks = dataset(tokenizer, *lists, max_length=16)
    for name in array_names(TaggedDataset):
        ours, expected = attrgetter(name)(by_chunks), attrgetter(name)(at_once)
        assert ours.dtype == expected.dtype
        assert ours.tolist() == expected.tolist()


def test_an_empty_batch(tokenizer):
    batch = dataset(tokenizer, WORDS).batch(np.arange(0))
    assert (batch.size, len(batch.labels), batch.max_words, batch.cu_words.tolist()) == (0, 0, 0, [0])


def test_no_room_for_a_word(tokenizer):
    with pytest.raises(UserError, match="--max_seq_length 2: expected at least 3, a word among them"):
        dataset(tokenizer, WORDS, max_length=2)
