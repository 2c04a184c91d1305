"""Against scikit-learn, seqeval and plain loops."""

import numpy as np
import pytest
from bertorch.inference.entities import entities_in
from bertorch.inference.scores import Span, best_threshold, class_report, entity_report
from seqeval.metrics import classification_report as entity_classification_report
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from bertorch.data.tags import TagSet

LABELS = ["a", "b", "c", "none"]


def test_classes_as_scikit_learn_has_them():
    rng = np.random.default_rng(3)
    gold, predicted = rng.integers(0, 3, (2, 200))
    report = class_report(gold, predicted, LABELS)
    options = {"labels": range(4), "zero_division": 0}
    assert report["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    assert report["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro", **options))
    assert report["micro_f1"] == pytest.approx(f1_score(gold, predicted, average="micro", **options))
    assert report["confusion_matrix"] == confusion_matrix(gold, predicted, labels=range(4)).tolist()
    expected = classification_report(gold, predicted, target_names=LABELS, output_dict=True, **options)
    for label in LABELS:
        assert list(report["labels"][label].values()) == pytest.approx(list(expected[label].values()))


@pytest.mark.parametrize("decimals", [1, 6])
def test_no_threshold_is_better(decimals):
    rng = np.random.default_rng(4)
    positive = rng.random(60) < 0.4
    cosines = (rng.normal(size=60) + positive).round(decimals).astype(np.float32)
    best = best_threshold(cosines, positive)

    def scores(threshold):
        taken = cosines >= threshold
        return accuracy_score(positive, taken), f1_score(positive, taken, zero_division=0)

    tried = [scores(threshold) for threshold in [*np.unique(cosines), cosines.max() + 1]]
    assert best["accuracy"] == pytest.approx(max(accuracy for accuracy, _ in tried))
    assert best["f1"] == pytest.approx(max(f1 for _, f1 in tried))
    assert scores(best["accuracy_threshold"])[0] == pytest.approx(best["accuracy"])
    assert scores(best["f1_threshold"])[1] == pytest.approx(best["f1"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_pair_at_all_may_be_best(dtype):
    cosines = np.array([0.9, 0.8, 0.1], dtype=dtype)
    best = best_threshold(cosines, np.array([False, False, True]))
    assert best["accuracy"] == pytest.approx(2 / 3)
    assert not (cosines >= best["accuracy_threshold"]).any()
    assert best["f1"] == pytest.approx(0.5)
    assert (cosines >= best["f1_threshold"]).all()


def test_a_threshold_between_neighbours_parts_them():
    low = np.float32(0.9)
    cosines = np.array([np.nextafter(low, np.float32(1)), low])
    best = best_threshold(cosines, np.array([True, False]))
    assert best["accuracy"] == 1
    for kind in (np.float32, np.float64):
        assert (cosines.astype(kind) >= best["accuracy_threshold"]).tolist() == [True, False]


def test_entities_strict_as_seqeval_has_them():
    tags = TagSet(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], "bio", "labels.txt")
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 12, 40)
    sides = []
    for _ in range(2):
        ids = rng.integers(0, 5, lengths.sum())
        found = enumerate(entities_in(tags, ids, lengths))
        names = [[tags.tags[tag] for tag in part] for part in np.split(ids, lengths.cumsum()[:-1])]
        sides.append(([Span(number, *each) for number, entities in found for each in entities], names))
    (gold, gold_names), (predicted, predicted_names) = sides
    report = entity_report(gold, predicted, tags.types)
    expected = entity_classification_report(
        gold_names, predicted_names, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    for ours, theirs in (("PER", "PER"), ("LOC", "LOC"), ("micro average", "micro avg")):
        assert list(report["strict"][ours].values()) == pytest.approx(list(expected[theirs].values()))


def test_lenient_entities_share_a_token_and_have_the_same_type():
    gold = [Span(0, 0, 3, "PER"), Span(0, 5, 6, "LOC"), Span(1, 0, 2, "PER")]
    predicted = [Span(0, 1, 2, "PER"), Span(0, 2, 4, "PER"), Span(0, 5, 6, "PER"), Span(2, 0, 2, "PER")]
    report = entity_report(gold, predicted, ["PER", "LOC"])
    assert report["lenient"]["PER"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert report["lenient"]["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert report["lenient"]["micro average"] == {
        "precision": 2 / 4,
        "recall": 1 / 3,
        "f1": pytest.approx(0.4),
        "support": 3,
    }
    assert report["strict"]["micro average"]["f1"] == 0
