"""Several training files: which examples share a batch, how often each file comes, and what is read of them."""

from collections import Counter

import numpy as np
import pytest

from bertorch.data.schedule import TrainingSchedule
from bertorch.data.several_files import MixedSchedule, SeveralFiles, schedule_of
from tests.small_tasks import contrastive_data, pair_data

SIZES = (21, 3, 9)
STARTS = (0, 21, 24)


def schedule(mix: str, batch_size: int = 4, accumulation: int = 1, seed: int = 7) -> MixedSchedule:
    return MixedSchedule(sum(SIZES), batch_size, accumulation, seed, sizes=SIZES, mix=mix)


def file_of(index: int) -> int:
    return sum(index >= start for start in STARTS) - 1


@pytest.mark.parametrize("mix", ["proportional", "equal"])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_a_batch_has_examples_of_one_file_and_none_twice(mix, accumulation):
    plan = schedule(mix, accumulation=accumulation)
    for epoch in (1, 2):
        steps = list(plan.steps(epoch))
        assert len(steps) == plan.steps_per_epoch
        batches = [batch.tolist() for step in steps for batch in step]
        assert all(len({file_of(index) for index in batch}) == 1 for batch in batches)
        assert all(len(set(batch)) == len(batch) <= 4 for batch in batches)
        assert Counter(file_of(batch[0]) for batch in batches) == dict(enumerate(plan.batches_by_file))


def test_proportional_has_every_example_once_an_epoch():
    plan = schedule("proportional")
    assert plan.batches_by_file == (6, 1, 3)
    for epoch in (1, 2, 3):
        assert sorted(np.concatenate(plan.batches(epoch))) == list(range(33))


def test_equal_has_as_many_batches_of_each_file_as_the_largest_has():
    plan = schedule("equal")
    assert plan.batches_by_file == (6, 6, 6)
    seen = Counter(np.concatenate(plan.batches(1)).tolist())
    assert all(seen[index] == 1 for index in range(21))
    assert all(seen[index] == 6 for index in range(21, 24))  # one batch a pass
    assert all(seen[index] == 2 for index in range(24, 33))  # three batches a pass
    passes = [batch.tolist() for batch in plan.batches(1) if file_of(batch[0]) == 1]
    assert len(set(map(tuple, passes))) > 1  # each pass has an order of its own


@pytest.mark.parametrize("mix", ["proportional", "equal"])
def test_what_is_left_over_of_a_file_is_no_batch_of_one_example(mix):
    """It would have no negatives, and come again with each pass over a small file."""
    plan = MixedSchedule(353, 32, 1, 7, sizes=(33, 320), mix=mix)
    sizes = [len(batch) for batch in plan.batches(1) if batch[0] < 33]
    passes = 1 if mix == "proportional" else 5
    assert sorted(sizes) == [16] * passes + [17] * passes


@pytest.mark.parametrize("mix", ["proportional", "equal"])
def test_the_batches_depend_on_seed_and_epoch_and_nothing_else(mix):
    def drawn(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in schedule(mix, seed=seed).batches(epoch)]

    assert drawn(1, 1) == drawn(1, 1)
    assert len({str(drawn(*each)) for each in [(1, 1), (1, 2), (2, 1), (2, 2)]}) == 4
    orders = {tuple(file_of(batch[0]) for batch in drawn(1, epoch)) for epoch in range(1, 9)}
    assert len(orders) > 4  # the files take turns in another order each epoch


@pytest.mark.parametrize("after", [0, 1, 7, 13, 20])
def test_a_resumed_run_has_the_same_steps(after):
    plan = schedule("equal", accumulation=2)
    whole = list(plan.all_steps(25))
    rest = list(plan.all_steps(25, after=after))
    assert [step[:3] for step in rest] == [step[:3] for step in whole[after:]]
    for one, other in zip(rest, whole[after:], strict=True):
        assert all(map(np.array_equal, one.batches, other.batches))


def test_the_schedule_of_one_file_is_as_it_was():
    plan = schedule_of(contrastive_data(21), 4, 2, 1)
    assert plan == TrainingSchedule(21, 4, 2, 1)
    expected = np.split(np.random.default_rng([1, 3]).permutation(21), range(4, 21, 4))
    assert all(map(np.array_equal, plan.batches(3), expected))


def test_several_files_are_one_after_the_other():
    first, second = pair_data(5), pair_data(7)
    joined = SeveralFiles("ab", [first, second], "equal")
    indices = np.array([11, 0, 4, 5, 6, 2])
    assert len(joined) == 12
    assert joined.label_count(indices) == 6
    for name in ("labels_of", "hashes", "cut"):
        rows = [
            getattr(first, name)(np.array([i])) if i < 5 else getattr(second, name)(np.array([i - 5])) for i in indices
        ]
        np.testing.assert_array_equal(getattr(joined, name)(indices), np.concatenate(rows))
    np.testing.assert_array_equal(joined.lengths, [*first.lengths, *second.lengths])
    assert joined.labels_of(indices[:0]).shape == (0,)
    assert schedule_of(joined, 4, 1, 9) == MixedSchedule(12, 4, 1, 9, sizes=(5, 7), mix="equal")


def test_a_batch_is_gathered_from_its_file():
    first, second = contrastive_data(5), contrastive_data(7, width=4)
    joined = SeveralFiles("ab", [first, second], "proportional")
    ours, theirs = joined.batch(np.array([9, 5])), second.batch(np.array([4, 0]))
    assert ours.input_ids.tolist() == theirs.input_ids.tolist()
    assert ours.text_ids.tolist() == theirs.text_ids.tolist()
    assert joined.batch(np.array([], np.int64)).text_ids.shape == (0, 2)
    with pytest.raises(ValueError, match="expected a batch of one file, got examples of 2"):
        joined.batch(np.array([4, 5]))
