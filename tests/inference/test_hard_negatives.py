"""The choice of negatives, by definition and by enumeration."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from bertorch.inference.hard_negatives import Selection, draw_others


def selection(**changed):
    settings = {"num_negatives": 2, "relative_margin": 0.1, "sampling": "top", "fill": "drop", "seed": 0}
    return Selection(**settings | changed)


@pytest.mark.parametrize(
    ("positive", "scores", "suited"),
    [
        (1.0, [0.95, 0.9, 0.2, 0.91], [1, 2]),
        (-1.0, [-1.0, -1.05, -1.1, -2.0, 3.0], [2, 3]),  # of a cross-encoder: below the positive, not above it
        (0.0, [0.0, 0.1, -0.1], [0, 2]),
        (0.5, [0.1, 0.3, 0.1, 0.3], [1, 3, 0, 2]),  # of equal ones the earlier first
        (0.5, [], []),
    ],
)
def test_what_is_too_close_to_the_positive(positive, scores, suited):
    assert selection().suited(np.array(scores), positive).tolist() == suited


def test_a_sample_is_uniform_and_best_first():
    suited = np.array([7, 3, 5, 1])
    random = np.random.default_rng(0)
    counts = Counter(tuple(selection(sampling="random").sampled(suited, random).tolist()) for _ in range(3000))
    assert counts.keys() == {(7, 3), (7, 5), (7, 1), (3, 5), (3, 1), (5, 1)}  # each in the order of the suited
    assert max(counts.values()) < 1.25 * min(counts.values())
    assert selection(sampling="random", num_negatives=4).sampled(suited, random).tolist() == suited.tolist()


def test_others_are_any_that_are_not_forbidden():
    random = np.random.default_rng(0)
    for size in range(1, 6):
        for forbidden in (each for count in range(size) for each in combinations(range(size), count)):
            allowed = set(range(size)) - set(forbidden)
            for count in range(1, len(allowed) + 1):
                drawn = [draw_others(size, np.array(forbidden, int), count, random).tolist() for _ in range(40)]
                assert all(len(set(each)) == count for each in drawn)
                assert set().union(*drawn) == allowed
