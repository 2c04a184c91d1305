"""Confident learning against plain loops, and against cleanlab where it is installed."""

import warnings

import numpy as np
import pytest

from bertorch.confident_learning import confident_joint, find_label_issues


def noisy(
    count: int, classes: int, seed: int, noise: float = 0.15, strength: float = 2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and given labels (N,), and probabilities (N, C) of a model that knows the true ones better than not."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, count)
    given = np.where(random.random(count) < noise, random.integers(0, classes, count), true)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), true] += strength
    probabilities = np.exp(logits)
    return true, given, probabilities / probabilities.sum(axis=1, keepdims=True)


def joint_by_loops(labels: list[int], probabilities: list[list[float]]) -> list[list[float]]:
    """Scaled to the counts of the given labels, not rounded."""
    classes = range(len(probabilities[0]))
    rows = list(zip(labels, probabilities, strict=True))
    thresholds = {}
    for label in classes:
        of_label = [row[label] for given, row in rows if given == label]
        if of_label:
            thresholds[label] = sum(of_label) / len(of_label)
    joint = [[0 for _ in classes] for _ in classes]
    for given, row in rows:
        confident = [label for label in thresholds if row[label] >= thresholds[label] - 1e-6]
        if confident:
            joint[given][max(confident, key=row.__getitem__)] += 1
    for label in classes:
        joint[label][label] = max(joint[label][label], 1)
    return [[count / sum(row) * labels.count(given) for count in row] for given, row in enumerate(joint)]


def issues_by_loops(labels: list[int], probabilities: list[list[float]], joint) -> set[int]:
    found = set()
    for given, counts in enumerate(joint):
        members = [index for index, label in enumerate(labels) if label == given]
        for true, count in enumerate(counts):
            if true != given and len(members) > 1:
                ranked = sorted(members, key=lambda index: probabilities[index][given] - probabilities[index][true])
                found |= set(ranked[:count])
    return {index for index in found if probabilities[index][labels[index]] < max(probabilities[index])}


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (3, 1), (5, 2), (8, 3)])
def test_against_plain_loops(classes, seed):
    _, labels, probabilities = noisy(300, classes, seed)
    joint = confident_joint(labels, probabilities)
    expected = joint_by_loops(labels.tolist(), probabilities.tolist())
    assert np.abs(joint - np.array(expected)).max() < 1  # rounded
    assert joint.sum(axis=1).tolist() == [(labels == label).sum() for label in range(classes)]
    found = np.flatnonzero(find_label_issues(labels, probabilities))
    assert set(found.tolist()) == issues_by_loops(labels.tolist(), probabilities.tolist(), joint.tolist())
    assert len(found) > 10


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_against_cleanlab(classes):
    """Where counts of the joint are rounded, equal remainders are taken in another order: then an example differs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filter_ = pytest.importorskip("cleanlab.filter")
    for seed in range(8):
        _, labels, probabilities = noisy(400, classes, seed)
        theirs = filter_.find_label_issues(labels, probabilities, n_jobs=1)
        assert (find_label_issues(labels, probabilities) != theirs).sum() <= (0 if classes <= 3 else 2)


def test_it_finds_the_labels_that_were_changed():
    true, labels, probabilities = noisy(2000, 4, seed=5, noise=0.1, strength=4.0)
    found, changed = find_label_issues(labels, probabilities), true != labels
    assert (found & changed).sum() / changed.sum() > 0.6
    assert (found & changed).sum() / found.sum() > 0.6


def test_a_label_without_examples_and_one_with_one():
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.6, 0.4, 0.0]])
    assert confident_joint(labels, probabilities)[2].tolist() == [0, 0, 0]
    assert find_label_issues(labels, probabilities).tolist() == [False, True, False, False]
