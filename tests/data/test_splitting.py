import numpy as np
import pytest
import torch

from bertorch.data.dataset import Subset, split_off
from bertorch.errors import UserError
from tests.small_tasks import classification_data, tagged_data


@pytest.mark.parametrize(
    ("size", "ratio", "expected"), [(10, 0.3, 3), (10, 0.01, 1), (2, 0.5, 1), (97, 0.25, 24), (10, 0.9, 9)]
)
def test_both_parts_are_the_whole_each_in_its_order(size, ratio, expected):
    train, dev = split_off(classification_data(size), ratio, seed=1)
    assert (len(train), len(dev)) == (size - expected, expected)
    assert sorted([*train.chosen, *dev.chosen]) == list(range(size))
    for part in (train, dev):
        assert (np.diff(part.chosen) > 0).all()


def test_the_seed_alone_decides():
    draws = [
        split_off(classification_data(50, seed=content), 0.2, seed=seed)[1]
        for content, seed in ((0, 1), (5, 1), (0, 2))
    ]
    assert np.array_equal(draws[0].chosen, draws[1].chosen)
    assert not np.array_equal(draws[0].chosen, draws[2].chosen)


@pytest.mark.parametrize("make", [classification_data, tagged_data], ids=["texts", "tagged"])
def test_examples_of_a_part_are_those_of_the_whole(make):
    whole = make(12)
    part = Subset(whole, np.array([1, 4, 5, 11]))
    chosen, numbers = np.array([3, 0]), np.array([11, 1])
    assert np.array_equal(part.lengths, whole.lengths[[1, 4, 5, 11]])
    assert part.label_count(chosen) == whole.label_count(numbers)
    ours, theirs = vars(part.batch(chosen)), vars(whole.batch(numbers))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(("size", "ratio"), [(1, 0.1), (4, 0.9)])
def test_a_part_without_examples_is_refused(size, ratio):
    with pytest.raises(UserError, match=f"--dev_ratio {ratio}: expected more training examples .* got {size}"):
        split_off(classification_data(size), ratio, seed=0)
