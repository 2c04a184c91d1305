"""Other programs on the cores of a run; what it has used is given, not measured."""

import pytest
import torch

from bertorch.training import cores
from bertorch.training.cores import CoreWatch, Usage, trial_speed
from tests.short_runs import stop_after, trained
from tests.small_tasks import classification_data, classification_task

IDLE, WAITING_FOR_A_DISK = Usage(10, 19.5, 90), Usage(10, 3, 90)
BESIDE_A_WRITER, CROWDED = Usage(10, 19, 9000), Usage(10, 12, 9000)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def told(monkeypatch, log_lines, two_threads):
    """What is logged of looks after intervals of this usage, with these speeds by the number of threads."""

    def told(*intervals: Usage, speeds=None, saving: bool = False) -> list[str]:
        now = Usage(100.0, 50.0, 7)
        monkeypatch.setattr(Usage, "now", lambda: now)
        monkeypatch.setattr(cores, "wrote_since", lambda _: saving)
        monkeypatch.setattr(cores, "trial_speed", (speeds or {}).__getitem__)
        watch = CoreWatch()
        for interval in intervals:
            now = Usage(*map(sum, zip(now, interval, strict=True)))
            watch.look()
        return log_lines

    return told


@pytest.mark.parametrize("used", [IDLE, WAITING_FOR_A_DISK, BESIDE_A_WRITER], ids=lambda used: str(tuple(used)))
def test_a_run_with_its_cores_to_itself_says_nothing(used, told):
    assert told(used, used, used) == []


def test_its_own_saves_are_no_other_program(told):
    assert told(CROWDED, CROWDED, saving=True) == []


def test_a_crowded_run_says_once_what_to_set_and_what_it_gains(told):
    (line,) = told(IDLE, CROWDED, CROWDED, speeds={2: 20.0, 1: 66.0})
    assert line.startswith("other programs hold the cores: 2 threads, which wait for each other, got 1.2 cores. ")
    assert "--threads 1 was 3.3 x as fast" in line
    assert torch.get_num_threads() == 2


def test_where_fewer_threads_gain_nothing_it_says_so(told):
    (line,) = told(CROWDED, CROWDED, speeds={2: 20.0, 1: 22.0})
    assert line.endswith("In a trial just now fewer threads were not faster")


def test_several_numbers_of_threads_are_tried(told):
    torch.set_num_threads(6)
    (line,) = told(CROWDED, speeds={6: 10.0, 3: 25.0, 1: 20.0})
    assert "--threads 3 was 2.5 x as fast" in line


def test_short_intervals_add_up_and_one_thread_waits_for_nobody(told):
    short = Usage(2, 1, 900)
    assert told(short, short) == []
    assert len(told(short, short, short, speeds={2: 1.0, 1: 2.0})) == 1
    torch.set_num_threads(1)
    assert len(told(CROWDED)) == 1  # no other


def test_a_trial_draws_no_random_numbers(two_threads, monkeypatch):
    monkeypatch.setattr(cores, "_TRIAL_SECONDS", 0.02)
    state = torch.get_rng_state()
    assert trial_speed(1) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_that_goes_on_with_other_threads_says_so(tmp_path, monkeypatch, log_lines, two_threads):
    stop_after(monkeypatch, 1)
    with pytest.raises(Exception, match="stopped after step 1"):
        trained(tmp_path, classification_task(), classification_data(16))
    stop_after(monkeypatch)
    torch.set_num_threads(1)
    trained(tmp_path, classification_task(), classification_data(16))
    assert "the checkpoint is of 2 thread(s), this run has 1: the same but for rounding" in log_lines
