import numpy as np
import pytest

from bertorch.data.schedule import TrainingSchedule, epoch_order, evaluation_batches, share


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [epoch_order(50, seed=seed, epoch=epoch).tolist() for seed, epoch in [(1, 1), (1, 1), (1, 2), (2, 1)]]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize(("size", "batch_size", "accumulation"), [(20, 8, 1), (21, 4, 2), (3, 8, 2), (16, 8, 1)])
def test_every_example_comes_once_an_epoch(size, batch_size, accumulation):
    schedule = TrainingSchedule(size, batch_size, accumulation, seed=1)
    steps = list(schedule.steps(epoch=1))
    assert len(steps) == schedule.steps_per_epoch
    assert all(len(step) == accumulation for step in steps[:-1])
    batches = [batch for step in steps for batch in step]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert sorted(np.concatenate(batches)) == list(range(size))


@pytest.mark.parametrize("last", [0, 1, 2, 3, 4, 6, 7, 9])
@pytest.mark.parametrize("after", [0, 1, 3, 5, 6])
def test_the_steps_of_a_run_go_on_over_its_epochs_up_to_the_last(last, after):
    schedule = TrainingSchedule(21, 4, 2, seed=1)  # 3 steps an epoch: batches 1-2, 3-4, 5-6
    steps = list(schedule.all_steps(last, after=after))
    expected = [(number, (number - 1) // 3 + 1, 2 * ((number - 1) % 3) + 2) for number in range(after + 1, last + 1)]
    assert [step[:3] for step in steps] == expected
    for step in steps:
        batches = list(schedule.steps(step.epoch))[(step.number - 1) % 3]
        assert all(np.array_equal(*pair) for pair in zip(step.batches, batches, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shares_are_even_slices(world_size):
    shares = [share(np.arange(10, 17), rank, world_size).tolist() for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == list(range(10, 17))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_an_evaluation_counts_every_example_once(world_size, batch_size):
    lengths = np.array([5, 3, 9, 3])
    batches = [
        batch for rank in range(world_size) for batch in evaluation_batches(lengths, batch_size, rank, world_size)
    ]
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert sorted(np.concatenate(batches)) == [0, 1, 2, 3]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("tokens", [0, 50, 1000, 10**6])
def test_short_examples_fill_a_batch_up_to_so_many_tokens(world_size, tokens):
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    seen = []
    for rank in range(world_size):
        batches = list(evaluation_batches(lengths, 4, rank, world_size, tokens=tokens))
        for batch, after in zip(batches, [*batches[1:], None], strict=True):
            block = len(batch) * lengths[batch].max()
            assert len(batch) == 4 or block <= tokens or after is None
            if after is not None:
                assert len(batch) >= 4
                assert (len(batch) + 1) * lengths[batch].max() > tokens  # one more would have been too many
        firsts = [lengths[batch[0]] for batch in batches]
        assert firsts == sorted(firsts, reverse=True)  # the longest first: what does not fit into memory shows at once
        seen += batches
    assert sorted(np.concatenate(seen)) == list(range(500))
