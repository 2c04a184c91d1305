"""Entities and F1 against seqeval in its strict mode."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2, IOBES, Entities

from bertorch import distributed
from bertorch.data.spans import SpanBatch, SpanFinder
from bertorch.data.tags import TagSet
from bertorch.tasks.span_metric import SpanMetric
from bertorch.tasks.tag_heads import Decoded
from tests.conftest import run_processes

CPU = torch.device("cpu")
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
BIOS = [*BIO, "S-PER", "S-LOC", "S-ORG"]
BIOES = [*BIOS, "E-PER", "E-LOC", "E-ORG"]
SCHEMES = {"bio": (BIO, IOB2), "bios": (BIOS, IOB2), "bioes": (BIOES, IOBES)}


def random_sentences(tags: list[str], seed: int, sentences: int = 300) -> list[list[str]]:
    """Tags in any order at all, and now and then a run of one type, so that entities of several words occur."""
    generator = np.random.default_rng(seed)
    result = []
    for length in generator.integers(1, 12, sentences):
        sentence = [tags[number] for number in generator.integers(0, len(tags), length)]
        if generator.random() < 0.7:
            kind = generator.choice(["PER", "LOC"])
            of_kind = [tag for tag in tags if tag.endswith(kind)]
            weights = [3.0 if tag.startswith(("I", "E")) else 1.0 for tag in of_kind]
            sentence = list(generator.choice(of_kind, length, p=np.array(weights) / sum(weights)))
        result.append([str(tag) for tag in sentence])
    return result


def packed(sentences: list[list[str]], tags: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([tags.index(tag) for sentence in sentences for tag in sentence])
    return ids, torch.tensor([0, *map(len, sentences)]).cumsum(0).int()


def for_seqeval(sentences: list[list[str]], scheme: str) -> list[list[str]]:
    """seqeval does not know bios: S- becomes B-."""
    if scheme != "bios":
        return sentences
    return [[tag.replace("S-", "B-") for tag in sentence] for sentence in sentences]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_are_those_of_seqeval(scheme):
    """On sentences that are mostly malformed."""
    tags, seqeval_scheme = SCHEMES[scheme]
    tag_set = TagSet(tags, scheme, "labels.txt")
    sentences = random_sentences(tags, seed=1, sentences=2000)
    ids, cu_words = packed(sentences, tags)
    expected = {
        (index, entity.start, entity.end, entity.tag)
        for index, entities in enumerate(Entities(for_seqeval(sentences, scheme), seqeval_scheme).entities)
        for entity in entities
    }
    found = {(*extent, tag_set.types[kind]) for *extent, kind in SpanFinder(tag_set)(ids, cu_words).tolist()}
    assert found == expected
    assert sum(end - start > 2 for _, start, end, _ in found) > 50


@pytest.mark.parametrize(
    ("scheme", "sentence", "expected"),
    [
        ("bio", "I-PER I-PER", []),
        ("bio", "B-PER I-LOC I-PER", [(0, 1, "PER")]),
        ("bio", "B-PER I-PER B-PER", [(0, 2, "PER"), (2, 3, "PER")]),
        ("bios", "S-PER I-PER O S-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("bios", "S-PER I-LOC", [(0, 1, "PER")]),
        ("bioes", "B-PER I-PER", []),
        ("bioes", "B-PER E-PER E-PER S-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("bioes", "S-PER E-PER", [(0, 1, "PER")]),
        ("bioes", "B-PER E-LOC", []),
    ],
)
def test_malformed_sequences(scheme, sentence, expected):
    tags = SCHEMES[scheme][0]
    tag_set = TagSet(tags, scheme, "labels.txt")
    found = SpanFinder(tag_set)(*packed([sentence.split()], tags)).tolist()
    assert [(start, end, tag_set.types[kind]) for _, start, end, kind in found] == expected


def test_an_entity_ends_with_its_sentence():
    tag_set = TagSet(BIO, "bio", "labels.txt")
    assert SpanFinder(tag_set)(*packed([["O", "B-PER"], ["I-PER", "O"]], BIO)).tolist() == [[0, 1, 2, 0]]


class ScriptedTagger:
    """Its emissions are the tags that it predicts."""

    reads_spans = False

    def __init__(self, tags):
        self.tags = tags
        self._find = SpanFinder(tags)

    def loss(self, outputs, batch):
        return torch.tensor(2.0 * len(batch.labels))

    def decode(self, outputs, batch):
        extents = self._find(outputs, batch.cu_words)
        return Decoded(SpanBatch(extents, torch.ones(len(extents))), outputs)

    def gold_extents(self, batch):
        return self._find(batch.labels, batch.cu_words)


def metric_of(scheme: str, gold, predicted, batch_size: int, indices=None) -> SpanMetric:
    tags = SCHEMES[scheme][0]
    metric = SpanMetric(ScriptedTagger(TagSet(tags, scheme, "labels.txt")), CPU)
    for start in range(0, len(gold), batch_size):
        part = slice(start, start + batch_size)
        labels, cu_words = packed(gold[part], tags)
        batch = SimpleNamespace(labels=labels, cu_words=cu_words)
        metric.update(
            packed(predicted[part], tags)[0], batch, (np.arange(len(gold)) if indices is None else indices)[part]
        )
    metric.reduce()
    return metric


def gold_and_predicted(scheme: str):
    """Predictions that are right in two words of three."""
    tags = SCHEMES[scheme][0]
    gold, other = random_sentences(tags, seed=2), random_sentences(tags, seed=3)
    generator = np.random.default_rng(4)
    predicted = [
        [tag if generator.random() < 0.67 else other[number % len(other)][0] for tag in sentence]
        for number, sentence in enumerate(gold)
    ]
    return gold, predicted


@pytest.mark.parametrize("batch_size", [1, 7, 300])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_f1_is_that_of_seqeval(scheme, batch_size):
    gold, predicted = gold_and_predicted(scheme)
    metric = metric_of(scheme, gold, predicted, batch_size)
    texts = for_seqeval(gold, scheme), for_seqeval(predicted, scheme)
    options = {"mode": "strict", "scheme": SCHEMES[scheme][1]}
    assert metric.value == pytest.approx(f1_score(*texts, **options), abs=1e-12)
    assert 0.2 < metric.value < 0.9
    assert metric.line() == f"eval loss: 2.00000, F1: {metric.value:.5f}"
    numbers = metric.numbers()
    assert (next(iter(numbers)), numbers["F1"], numbers["loss"]) == (metric.name, metric.value, 2.0)
    assert numbers["F1"] == pytest.approx(
        2 * numbers["precision"] * numbers["recall"] / (numbers["precision"] + numbers["recall"])
    )

    header, *rows, total = metric.summary()
    assert header.split() == ["precision", "recall", "F1", "support"]
    by_type = [score(*texts, average=None, **options) for score in (precision_score, recall_score, f1_score)]
    for row in rows:
        kind, precision, recall, f1, support = row.split()
        place = ["LOC", "ORG", "PER"].index(kind)  # seqeval sorts them
        assert [precision, recall, f1] == [f"{scores[place]:.5f}" for scores in by_type]
        assert int(support) > 0
    assert total.startswith("micro average")
    assert total.split()[4] == f"{metric.value:.5f}"


def test_nothing_found_and_nothing_there():
    metric = metric_of("bio", [["O", "O"]], [["O", "O"]], 1)
    assert metric.line() == "eval loss: 2.00000, F1: 0.00000"


def measure_a_share(folder: Path) -> None:
    gold, predicted = gold_and_predicted("bios")
    rank = distributed.rank()
    metric = metric_of("bios", gold[rank::2], predicted[rank::2], 7, np.arange(len(gold))[rank::2])
    (folder / str(rank)).write_text("\n".join([metric.line(), *metric.summary()]))


@pytest.mark.slow
def test_two_processes_count_every_sentence_once(tmp_path):
    run_processes(2, measure_a_share, tmp_path)
    metric = metric_of("bios", *gold_and_predicted("bios"), 300)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["\n".join([metric.line(), *metric.summary()])] * 2


def test_the_report_has_strict_and_lenient_scores():
    gold = [["B-PER", "I-PER", "I-PER", "O", "O", "B-LOC"], ["B-PER", "I-PER"], ["O", "O"]]
    predicted = [["O", "B-PER", "B-PER", "I-PER", "O", "B-PER"], ["O", "O"], ["B-PER", "I-PER"]]
    report = metric_of("bio", gold, predicted, 2).report()
    assert report["examples"] == 3
    assert report["token_accuracy"] == pytest.approx(1 / 10)
    assert report["lenient"]["PER"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert report["lenient"]["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert report["lenient"]["micro average"] == {
        "precision": 2 / 4,
        "recall": 1 / 3,
        "f1": pytest.approx(0.4),
        "support": 3,
    }
    assert report["strict"]["micro average"]["f1"] == 0


def test_the_table_of_sentences_gives_f1():
    gold, predicted = gold_and_predicted("bio")
    metric = metric_of("bio", gold, predicted, 7)
    table = metric.example_table()
    (measure,) = table.measures.values()
    assert measure.of(table.arrays(measure)) == pytest.approx(metric.value, abs=1e-12)
    texts = [[Entities([sentence], IOB2).entities[0] for sentence in sentences] for sentences in (gold, predicted)]
    for index, entities in enumerate(zip(*texts, strict=True)):
        expected = [sorted([entity.start, entity.end, entity.tag] for entity in each) for each in entities]
        for name, of_sentence in zip(("gold", "predicted"), expected, strict=True):
            assert [[start, end, type_] for type_, start, end in table.columns[name][index]] == of_sentence
        assert table.columns["right"][index] == sum(entity in expected[1] for entity in expected[0])


# Entities that may overlap


class ScriptedPointer:
    """Its outputs are the entities that it predicts."""

    reads_spans = True

    def __init__(self, tags):
        self.tags = tags

    def loss(self, outputs, batch):
        return torch.tensor(2.0 * len(batch.labels))

    def decode(self, outputs, batch):
        return Decoded(SpanBatch(outputs, torch.ones(len(outputs))), None)

    def gold_extents(self, batch):
        return batch.spans


def metric_of_spans(tags: TagSet, gold, predicted, batch_size: int = 7) -> SpanMetric:
    """Of a set of (start, end, type) for each sentence."""
    metric = SpanMetric(ScriptedPointer(tags), CPU)

    def extents(sets) -> torch.Tensor:
        rows = [(number, *entity) for number, entities in enumerate(sets) for entity in entities]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)

    for start in range(0, len(gold), batch_size):
        part = slice(start, start + batch_size)
        batch = SimpleNamespace(labels=torch.tensor([len(each) for each in gold[part]]), spans=extents(gold[part]))
        metric.update(extents(predicted[part]), batch, np.arange(len(gold))[part])
    metric.reduce()
    return metric


def test_f1_of_entities_that_overlap():
    """By plain loops over the sets."""
    tags, generator = TagSet(BIO, "bio", "labels.txt"), np.random.default_rng(0)

    def random_set(count: int) -> set[tuple[int, int, int]]:
        starts, sizes, kinds = (generator.integers(0, high, count) for high in (4, 3, 2))
        rows = zip(starts, sizes, kinds, strict=True)
        return {(int(start), int(start + size + 1), int(kind)) for start, size, kind in rows}

    gold = [random_set(int(count)) for count in generator.integers(0, 6, 100)]
    predicted = [{each for each in entities if generator.random() < 0.6} | random_set(2) for entities in gold]
    metric = metric_of_spans(tags, gold, predicted)
    right = sum(len(one & other) for one, other in zip(gold, predicted, strict=True))
    precision, recall = (right / sum(map(len, sets)) for sets in (predicted, gold))
    f1 = 2 * precision * recall / (precision + recall)
    assert 0.3 < f1 < 0.9
    assert metric.value == pytest.approx(f1, abs=1e-12)
    assert metric.line() == f"eval loss: 2.00000, F1: {f1:.5f}"  # the loss is that of a sentence
    report = metric.report()
    assert "token_accuracy" not in report
    assert report["strict"]["micro average"]["support"] == sum(map(len, gold))
    for number, type_ in enumerate(["PER", "LOC"]):
        of_type = [sum(entity[2] == number for entity in entities) for entities in gold]
        assert report["strict"][type_]["support"] == sum(of_type)
    table = metric.example_table()
    (measure,) = table.measures.values()
    assert measure.of(table.arrays(measure)) == pytest.approx(f1, abs=1e-12)
    expected = [[[tags.types[kind], start, end] for start, end, kind in sorted(entities)] for entities in gold]
    assert table.columns["gold"] == expected


def test_without_overlaps_f1_is_that_of_tags():
    gold, predicted = gold_and_predicted("bioes")
    tags = TagSet(BIOES, "bioes", "labels.txt")

    def sets(sentences):
        found = SpanFinder(tags)(*packed(sentences, BIOES)).tolist()
        return [{tuple(each) for number, *each in found if number == index} for index in range(len(sentences))]

    expected = metric_of("bioes", gold, predicted, 7)
    metric = metric_of_spans(tags, sets(gold), sets(predicted))
    assert metric.value == expected.value
    assert metric.summary() == expected.summary()
    assert metric.value == pytest.approx(f1_score(gold, predicted, mode="strict", scheme=IOBES), abs=1e-12)
