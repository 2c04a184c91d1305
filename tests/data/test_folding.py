"""Folds against what is asked of them: whole groups, even labels, even sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertorch.data.dataset import Dataset
from bertorch.data.folding import assign_folds, folds_digest, rarest_labels
from bertorch.data.tokens import TokenStore
from bertorch.errors import UserError
from tests.small_tasks import pair_data, tagged_data


def examples_of(texts: list[int], labels: list[int]) -> Dataset:
    """Examples of one token each, which is their text."""
    count = len(texts)
    ids, types = np.array(texts, np.int32), np.zeros(count, np.int8)
    store = TokenStore(ids, types, np.arange(count + 1), np.zeros(count, np.bool_))
    return Dataset(store, np.arange(count)[:, None], np.array(labels, np.int64))


def spread(values: np.ndarray, folds: np.ndarray, count: int) -> int:
    """By how much the counts of examples in the folds differ, of those where `values` is true."""
    sizes = np.bincount(folds[values], minlength=count + 1)[1:]
    return int(sizes.max() - sizes.min())


rows = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4)), min_size=6, max_size=80)
counts, seeds = st.integers(2, 6), st.integers(0, 3)


@given(st.lists(st.integers(0, 4), min_size=6, max_size=80), counts, seeds)
def test_different_texts_are_dealt_out_evenly(labels, count, seed):
    folds = assign_folds(examples_of(list(range(len(labels))), labels), count, seed=seed)
    assert spread(np.ones(len(labels), np.bool_), folds, count) <= 1
    for label in set(labels):
        assert spread(np.array(labels) == label, folds, count) <= 1


@given(rows, counts, seeds)
def test_equal_texts_stay_together_whatever_their_labels(rows, count, seed):
    texts, labels = map(list, zip(*rows, strict=True))
    examples = examples_of(texts, labels)
    if len(set(texts)) < count:
        with pytest.raises(UserError, match=f"--folds {count}: expected at least as many different texts"):
            assign_folds(examples, count, seed=seed)
        return
    folds = assign_folds(examples, count, seed=seed)
    assert set(folds) == set(range(1, count + 1))  # none is empty
    for text in set(texts):
        assert len(set(folds[np.array(texts) == text])) == 1
    np.testing.assert_array_equal(folds, assign_folds(examples, count, seed=seed))


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=12, max_size=80), counts)
def test_a_label_is_as_even_as_its_groups_allow(rows, count):
    """Texts have one label each here: text modulo 3."""
    texts = [text for text, _ in rows]
    labels = [text % 3 for text in texts]
    if len(set(texts)) < count:
        return
    folds = assign_folds(examples_of(texts, labels), count, seed=0)
    for label in set(labels):
        largest = max(texts.count(text) for text in texts if text % 3 == label)
        assert spread(np.array(labels) == label, folds, count) <= largest


def test_those_that_stand_alone_make_up_for_groups():
    texts = [0] * 5 + list(range(1, 16))  # one text five times, and fifteen others
    folds = assign_folds(examples_of(texts, [0] * 20), 4, seed=0)
    assert np.bincount(folds)[1:].tolist() == [5, 5, 5, 5]


def test_the_seed_decides():
    labels = [0, 1] * 20
    first, second = (assign_folds(examples_of(list(range(40)), labels), 4, seed=seed) for seed in (0, 1))
    assert (first != second).any()
    assert folds_digest(first) != folds_digest(second)
    assert folds_digest(first) == folds_digest(first.copy())


def test_a_pair_is_the_same_only_in_the_same_order():
    data = pair_data(60, texts=4)
    folds = assign_folds(data, 3, seed=0)
    of_pairs: dict[tuple[int, ...], set[int]] = {}
    for pair, fold in zip(data.sentences.tolist(), folds.tolist(), strict=True):
        of_pairs.setdefault(tuple(pair), set()).add(fold)
    assert all(len(found) == 1 for found in of_pairs.values())
    assert any(of_pairs[a, b] != of_pairs[b, a] for a, b in of_pairs if (b, a) in of_pairs)


@pytest.mark.parametrize("windows", [1, 2])
def test_a_sentence_counts_under_its_rarest_tag(windows):
    data = tagged_data(30, windows)
    sets = [set(data.labels_of(np.array([index])).tolist()) for index in range(30)]
    having = {tag: sum(tag in tags for tags in sets) for tag in set().union(*sets)}
    expected = [min(tags, key=lambda tag: (having[tag], tag)) for tags in sets]
    np.testing.assert_array_equal(rarest_labels(data), expected)
    folds = assign_folds(data, 3, seed=0)
    for tag in set(expected):
        assert spread(np.array(expected) == tag, folds, 3) <= 1


def test_the_rarest_label_of_one_is_that_label():
    np.testing.assert_array_equal(rarest_labels(examples_of([1, 2, 3], [2, 0, 2])), [2, 0, 2])
