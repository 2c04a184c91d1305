"""Entities that may be nested, from sentences through datasets and batches, and back."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bertorch import distributed
from bertorch.data.cache import open_dataset
from bertorch.data.dataset import Subset, labels_each, split_off
from bertorch.data.folding import assign_folds
from bertorch.data.schedule import evaluation_batches, share
from bertorch.data.several_files import SeveralFiles
from bertorch.data.span_dataset import EntityBatch, SpanDataset, is_nested, tokenize_sentences
from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences, read_tag_set, read_tagged_sentences
from bertorch.tasks.tagging import tagged_sentences
from tests.conftest import NER, NESTED, TINY, run_processes

TYPES = 4


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def random_sentences(count: int, *, longest: int = 12, seed: int = 0, nested: bool = True) -> TaggedSentences:
    """Words of one or several pieces, and any entities, of a sentence each once, or none of which overlap."""
    generator = np.random.default_rng(seed)
    vocabulary = ["好", "reinforcement", "2024", "\u200b", "北", "京", "transformers"]
    tokens, spans = [], []
    for size in generator.integers(1, longest + 1, count):
        tokens.append([vocabulary[index] for index in generator.integers(0, len(vocabulary), size)])
        bounds = generator.integers(0, size, (generator.integers(0, 6), 2))
        found = {(min(a, b), max(a, b) + 1, generator.integers(TYPES)) for a, b in bounds.tolist()}
        kept: list[tuple[int, int, int]] = []
        for one in sorted(found):
            if nested or all(one[0] >= end for _, end, _ in kept):
                kept.append(one)
        spans.append(np.array(kept, np.int64).reshape(-1, 3))
    return TaggedSentences(tokens, spans=spans)


def of_batch(batch: EntityBatch) -> list[list[list[int]]]:
    """The entities of each example, from the rows of a batch without filler."""
    found: list[list[list[int]]] = [[] for _ in range(len(batch.cu_words) - 1)]
    for example, *span in batch.spans.tolist():
        found[example].append(span)
    return found


def expected_of(sentences: TaggedSentences, indices) -> list[list[list[int]]]:
    return [sentences.spans[index].tolist() for index in indices]


@pytest.mark.parametrize("max_length", [3, 5, 8, 64])
def test_entities_come_back_from_a_batch_whatever_the_windows(tokenizer, max_length):
    """Also those that lie in several windows, as the words of a sentence are one sequence."""
    sentences = random_sentences(40)
    dataset = tokenize_sentences(tokenizer, sentences, max_length=max_length)
    assert isinstance(dataset, SpanDataset)
    indices = np.random.default_rng(1).permutation(40)
    batch = dataset.batch(indices)
    assert batch.size > 40 or max_length == 64
    assert of_batch(batch) == expected_of(sentences, indices)
    assert batch.labels.tolist() == [len(sentences.spans[index]) for index in indices]
    assert (batch.labels.dtype, batch.spans.dtype) == (torch.int64, torch.int64)
    assert batch.spans[:, 0].tolist() == sorted(batch.spans[:, 0].tolist())
    words = [len(sentences.tokens[index]) for index in indices]
    assert batch.cu_words.diff().tolist() == words
    first = [pieces[0] for index in indices for pieces in map(partial(pieces_of, tokenizer), sentences.tokens[index])]
    assert batch.input_ids[batch.word_starts].tolist() == first
    assert dataset.lengths.tolist() == [len(tokens) for tokens in sentences.tokens]


def pieces_of(tokenizer, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id]


def test_the_tokens_and_windows_are_those_of_a_tagged_dataset(tokenizer):
    sentences = random_sentences(30)
    ours = tokenize_sentences(tokenizer, sentences, max_length=8)
    tagged = tokenize_sentences(tokenizer, TaggedSentences.untagged(sentences.tokens), max_length=8)
    assert isinstance(tagged, TaggedDataset)
    indices = np.array([3, 29, 0, 0])
    batch, expected = ours.batch(indices), tagged.batch(indices)
    for name, value in vars(expected).items():
        if name != "labels":
            assert np.array_equal(getattr(batch, name), value), name
    assert np.array_equal(ours.hashes(indices), tagged.hashes(indices))
    assert not ours.cut(indices).any()


def test_sentences_without_entities(tokenizer):
    dataset = tokenize_sentences(
        tokenizer, TaggedSentences.untagged([["好"], ["北", "京"]], as_spans=True), max_length=8
    )
    batch = dataset.batch(np.array([1, 0]))
    assert (batch.spans.shape, batch.labels.tolist()) == ((0, 4), [0, 0])
    assert not dataset.is_nested
    assert dataset.labels_of(np.arange(2)).tolist() == [0, 0]
    filled = batch.filled(16)
    assert set(map(tuple, filled.spans.tolist())) == {(2, 0, 1, 0)}
    empty = dataset.batch(np.arange(0))
    assert (empty.size, len(empty.labels), empty.spans.shape) == (0, 0, (0, 4))


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 127, 128, 500])
def test_a_filled_batch_has_one_of_few_shapes_and_the_same_entities(tokenizer, count):
    many = np.array([(index % 8, 9 + index // 8, 0) for index in range(count)], np.int64).reshape(-1, 3)
    sentences = TaggedSentences([["好"] * 40 * 2] * 2, spans=[many, many[:0]])
    batch = tokenize_sentences(tokenizer, sentences, max_length=64).batch(np.array([1, 0]))
    filled = batch.filled(64)
    size = 64
    while size < count + 1:
        size *= 2
    assert len(filled.spans) == size
    assert torch.equal(filled.spans[:count], batch.spans)
    assert filled.spans[count:].tolist() == [[2, 0, 1, 0]] * (size - count)
    assert filled.labels.tolist() == batch.labels.tolist() == [0, count]
    assert len(filled.word_starts) % 64 == 0 < len(filled.word_starts) - len(batch.word_starts)
    assert filled.word_bounds.tolist() == [0, 80, 160, len(filled.word_starts)]  # filler is an example with words
    assert (filled.max_words, filled.has_filler) == (128, True)
    assert batch.word_bounds.tolist() == [0, 80, 160]


def test_all_examples_twice(tokenizer):
    sentences = random_sentences(6)
    batch = tokenize_sentences(tokenizer, sentences, max_length=8).batch(np.array([4, 2, 5]))
    doubled = batch.twice()
    assert of_batch(doubled) == expected_of(sentences, [4, 2, 5, 4, 2, 5])
    assert doubled.labels.tolist() == batch.labels.tolist() * 2
    assert doubled.twins.tolist() == doubled.filled(32).twins.tolist() == [3, 4, 5, 0, 1, 2]
    assert doubled.filled(32).spans[-1].tolist() == [6, 0, 1, 0]


def test_the_loss_is_a_mean_over_sentences(tokenizer):
    dataset = tokenize_sentences(tokenizer, random_sentences(20), max_length=64)
    indices = np.array([3, 7, 7, 1])
    assert dataset.label_count(indices) == len(dataset.batch(indices).labels) == 4
    assert labels_each(dataset, indices).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("block", [1, 2, 4096])
def test_whether_entities_overlap(tokenizer, block, monkeypatch):
    monkeypatch.setattr("bertorch.data.span_dataset._BLOCK", block)
    seen = set()
    for seed in range(30):
        sentences = random_sentences(2, longest=6, seed=seed, nested=seed % 2 == 0)
        expected = any(
            one is not other and one[0] < other[1] and other[0] < one[1]
            for spans in map(list, sentences.spans)
            for one in spans
            for other in spans
        )
        dataset = tokenize_sentences(tokenizer, sentences, max_length=64)
        assert sentences.is_nested == dataset.is_nested == is_nested(dataset) == expected
        seen.add(expected)
    assert seen == {False, True}


def test_whether_those_of_a_part_overlap(tokenizer):
    flat, nested = np.array([(0, 1, 0)], np.int64), np.array([(0, 1, 0), (0, 2, 1)], np.int64)
    sentences = TaggedSentences([["北", "京"]] * 3, spans=[flat, nested, flat])
    dataset = tokenize_sentences(tokenizer, sentences, max_length=8)
    assert is_nested(Subset(dataset, np.array([1])))
    assert not is_nested(Subset(dataset, np.array([0, 2])))
    assert not is_nested(Subset(Subset(dataset, np.array([0, 2])), np.array([1])))
    parts = [Subset(dataset, np.array([0])), dataset]
    assert is_nested(SeveralFiles(["a", "b"], parts, "equal"))
    assert not is_nested(SeveralFiles(["a", "b"], parts[:1] * 2, "equal"))
    assert not is_nested(tokenize_sentences(tokenizer, TaggedSentences.untagged([["好"]]), max_length=8))


def test_folds_and_parts_of_entities(tokenizer):
    tags = read_tag_set(str(NESTED / "labels.txt"), "bios")
    sentences = read_tagged_sentences(str(NESTED / "train.json"), tags, as_spans=True)
    dataset = tokenize_sentences(tokenizer, sentences, max_length=32)
    counts = np.bincount(np.concatenate([spans[:, 2] for spans in sentences.spans]))
    labels = [
        min(((counts[type_], type_ + 1) for type_ in spans[:, 2]), default=(0, 0))[1] for spans in sentences.spans
    ]
    assert dataset.labels_of(np.arange(len(dataset))).tolist() == labels  # the rarest type, from 1, or 0
    folds = assign_folds(dataset, 3, seed=1)
    for label in set(labels):
        sizes = np.bincount(folds[np.array(labels) == label], minlength=4)[1:]
        assert sizes.max() - sizes.min() <= 1
    train, dev = split_off(dataset, 0.25, seed=1)
    chosen = np.array([5, 0])
    assert of_batch(dev.batch(chosen)) == expected_of(sentences, dev.chosen[chosen])
    assert (len(train) + len(dev), train.label_count(chosen)) == (len(dataset), 2)


OPTIONS = {"max_length": 24, "on_bad_line": "stop", "strict": False, "split": "characters"}


def read_nested(*, as_spans: bool = True) -> partial:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tags = read_tag_set(str(NESTED / "labels.txt"), "bios")
    return partial(tagged_sentences, tokenizer=tokenizer, tags=tags, as_spans=as_spans, **OPTIONS)


def in_each_process(cache_dir: Path) -> None:
    """Each process opens the cached dataset and takes its share of an epoch, and of an evaluation."""
    dataset = open_dataset(read_nested(), str(NESTED / "train.json"), str(cache_dir))
    assert dataset.is_nested
    rank, world_size = distributed.rank(), distributed.world_size()
    order = np.random.default_rng(0).permutation(len(dataset))
    batches = [share(batch, rank, world_size) for batch in np.split(order, range(10, len(order), 10))]
    evaluated = list(evaluation_batches(dataset.lengths, 8, rank, world_size))
    for name, indices_of in (("train", batches), ("eval", evaluated)):
        rows: dict[int, list[list[int]]] = {}
        for indices in indices_of:
            rows |= zip(indices.tolist(), of_batch(dataset.batch(indices)), strict=True)
        Path(cache_dir / f"{name}.{rank}").write_text(json.dumps(rows))


@pytest.mark.slow
def test_each_entity_is_in_one_process(tmp_path):
    run_processes(2, in_each_process, tmp_path)
    tags = read_tag_set(str(NESTED / "labels.txt"), "bios")
    sentences = read_tagged_sentences(str(NESTED / "train.json"), tags, as_spans=True)
    expected = expected_of(sentences, range(len(sentences)))
    for name in ("train", "eval"):
        parts = [json.loads((tmp_path / f"{name}.{rank}").read_text()) for rank in range(2)]
        assert not parts[0].keys() & parts[1].keys()
        found = parts[0] | parts[1]
        assert [found[str(index)] for index in range(len(found))] == expected
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_the_cache_keeps_the_kind_of_a_dataset(tmp_path):
    """The same file as spans and as tags is two datasets, each of its kind."""
    path, names = str(NER / "dev.json"), read_tag_set(str(NER / "labels.txt"), "bios")
    for _ in range(2):
        as_spans, as_tags = (
            open_dataset(partial(read_nested(as_spans=each), tags=names), path, str(tmp_path)) for each in (True, False)
        )
        assert (type(as_spans), type(as_tags)) == (SpanDataset, TaggedDataset)
        assert not as_spans.is_nested
    folders = list(tmp_path.iterdir())
    assert len(folders) == 2
    for folder in folders:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {"kind": "Other"}))  # damaged, so built again
    assert isinstance(open_dataset(partial(read_nested(), tags=names), path, str(tmp_path)), SpanDataset)


@pytest.mark.parametrize("as_list", [False, True])
def test_tags_and_the_same_entities_are_the_same_dataset(tokenizer, as_list, tmp_path):
    """The samples' tags, read by hand, as lines with entities: what a head of tags learns from is the same."""
    tags = read_tag_set(str(NER / "labels.txt"), "bios")
    lines = []
    for row in map(json.loads, (NER / "train.json").read_text().splitlines()):
        entities: list[dict] = []
        for index, tag in enumerate(row["label"]):
            if tag[0] in "BS":
                entities.append({"start": index, "end": index + 1, "type": tag[2:]})
            elif tag[0] == "I":
                entities[-1]["end"] += 1
        assert all(len(token) == 1 and not token.isspace() for token in row["text"])
        text = row["text"] if as_list else "".join(row["text"])
        lines.append(json.dumps({"text": text, "entities": entities}))
    (tmp_path / "train.json").write_text("\n".join(lines))
    read = partial(tagged_sentences, tokenizer=tokenizer, tags=tags, **OPTIONS)
    for as_spans in (False, True):
        ours = read(str(tmp_path / "train.json"), as_spans=as_spans)
        expected = read(str(NER / "train.json"), as_spans=as_spans)
        batch, other = (each.batch(np.arange(len(each))) for each in (ours, expected))
        for name, value in vars(other).items():
            assert np.array_equal(getattr(batch, name), value), name
        assert sum(map(len, lines)) > 10_000
