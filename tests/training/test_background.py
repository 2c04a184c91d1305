"""Saves in the background: when they are made, in which order, and what a run does meanwhile."""

import threading
from pathlib import Path

import pytest

from bertorch import distributed
from bertorch.errors import UserError
from bertorch.training import background
from bertorch.training.background import BackgroundSaver
from bertorch.training.hooks import Hook
from bertorch.training.run_folder import RunFolder
from tests.conftest import run_processes
from tests.short_runs import assert_equal, config, fit, trained
from tests.small_tasks import DROPOUT, NO_DROPOUT, classification_data, classification_task

SECONDS = 60  # after which a test that waits has failed


@pytest.fixture
def now(monkeypatch):
    """A clock that the test turns: its one number is the time."""
    times = [100.0]
    monkeypatch.setattr(background.time, "monotonic", lambda: times[0])
    return times


class Blocked:
    """Something to write that waits for its permission."""

    def __init__(self, name: str, written: list[str]) -> None:
        self._name, self._written = name, written
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.began.set()
        assert self.may_end.wait(SECONDS)
        self._written.append(self._name)


def write(saver: BackgroundSaver, work, *, kind="all", replaces=False) -> None:
    saver.write(kind, saver.memory(kind), [work], replaces=replaces)


def test_regular_saves_keep_their_distance_and_others_do_not(now):
    saver, written = BackgroundSaver(30.0), []
    assert saver.takes(must=False)  # the first one
    now[0] += 29
    assert not saver.takes(must=False)
    assert saver.takes(must=True)
    now[0] += 30
    assert saver.takes(must=False)
    assert written == []


def test_a_save_that_falls_due_during_another_comes_later(now):
    saver, written = BackgroundSaver(30.0), []
    first = Blocked("first", written)
    assert saver.takes(must=False)
    write(saver, first)
    now[0] += 31
    assert not saver.takes(must=False)
    first.may_end.set()
    saver.wait()
    assert written == ["first"]
    assert saver.takes(must=False)


@pytest.mark.parametrize(("interval", "later", "must"), [(0.0, 0, False), (30.0, 1, True), (30.0, 60, False)])
def test_what_cannot_come_later_waits(interval, later, must, now):
    """With no interval, at the end, and where best weights would keep checkpoints from being written for long."""
    saver, written = BackgroundSaver(interval), []
    first = Blocked("first", written)
    saver.takes(must=False)
    write(saver, first)
    now[0] += later
    threading.Timer(0.05, first.may_end.set).start()
    assert saver.takes(must=must)
    assert written == ["first"]


def test_newer_weights_take_the_place_of_those_that_wait():
    saver, written = BackgroundSaver(30.0), []
    works = [Blocked(name, written) for name in ("running", "waiting", "newest")]
    write(saver, works[0], kind="weights", replaces=True)
    assert works[0].began.wait(SECONDS)
    write(saver, works[1], kind="weights", replaces=True)
    write(saver, works[2], kind="weights", replaces=True)
    for work in works:
        work.may_end.set()
    saver.wait()
    assert written == ["running", "newest"]


def test_memory_is_used_again_when_its_save_is_written():
    saver, written = BackgroundSaver(30.0), []
    work, memory = Blocked("first", written), saver.memory("all")
    saver.write("all", memory, [work])
    assert saver.memory("all") is not memory
    work.may_end.set()
    saver.wait()
    assert saver.memory("all") is memory


def fails() -> None:
    raise UserError("--saved_dir folder: full")


def test_an_error_of_writing_comes_with_the_next_save():
    saver = BackgroundSaver(30.0)
    write(saver, fails)
    with pytest.raises(UserError, match="full"):
        saver.wait()
    saver.check()  # is told once
    write(saver, fails)
    saver.write("all", saver.memory("all"), [])  # is written after the one that fails
    with pytest.raises(UserError, match="full"):
        saver.takes(must=True)


def test_at_the_end_of_a_run_by_another_error_it_is_logged(log_lines):
    saver = BackgroundSaver(30.0)
    write(saver, fails)
    saver.close()
    assert log_lines == ["--saved_dir folder: full"]


class Opens(Hook):
    """Lets an event happen after an update."""

    def __init__(self, event: threading.Event, update: int) -> None:
        self._event, self._left = event, update

    def after_update(self) -> None:
        self._left -= 1
        if not self._left:
            self._event.set()


@pytest.mark.parametrize("settings", [{}, {"save_best_model": True}])
def test_a_save_is_of_its_step_though_training_has_gone_on(settings, tmp_path, monkeypatch):
    """The first save, of step 3, may not begin before the update of step 6; against a run that waits for each."""
    original, saved = RunFolder.save_weights, {}
    may_write = threading.Event()

    def noting(self, weights, savables):
        assert may_write.wait(SECONDS)
        saved.setdefault(self._name, {name: tensor.clone() for name, tensor in weights.items()})
        original(self, weights, savables)

    monkeypatch.setattr(RunFolder, "save_weights", noting)
    monkeypatch.setattr("bertorch.training.loop.build_hooks", lambda *_: [Opens(may_write, 6)])
    data, dev = classification_data(32), classification_data(10, seed=1)
    for name, interval in (("late", 30.0), ("at once", 0.0)):
        task = classification_task(**DROPOUT)
        trained(tmp_path / name, task, data, dev, save_steps=3, save_interval=interval, **settings)
    assert_equal(saved[str(tmp_path / "late")], saved[str(tmp_path / "at once")])


def test_a_short_run_saves_at_the_first_time_that_is_due_and_in_the_end(tmp_path, monkeypatch):
    steps = []
    original = RunFolder.save_checkpoint
    monkeypatch.setattr(
        RunFolder, "save_checkpoint", lambda self, step, *rest: [steps.append(step), original(self, step, *rest)]
    )
    trained(tmp_path, classification_task(**NO_DROPOUT), classification_data(32), save_steps=2, save_interval=30.0)
    assert steps == [2, 8]


def full_disk(folder: Path) -> None:
    def raises(self, *_):
        raise UserError(f"--saved_dir {folder}: expected a folder with room")

    RunFolder.save_weights = raises
    task = classification_task(**NO_DROPOUT)
    with pytest.raises(UserError, match="expected a folder with room"):
        fit(config(folder, save_steps=2, batch_size=4), task, classification_data(32), None)
    (folder / f"rank{distributed.rank()}").touch()


def test_an_error_of_writing_ends_the_run_on_all_processes(tmp_path):
    run_processes(2, full_disk, tmp_path)
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1"}


def test_the_state_at_the_save_is_that_of_its_step(tmp_path, monkeypatch):
    """Values that are lists, such as the history of evaluations, are copied too."""
    states = {}
    monkeypatch.setattr(
        RunFolder, "save_checkpoint", lambda self, step, parts, _: states.update({step: parts["progress"].values})
    )
    trained(tmp_path, classification_task(**NO_DROPOUT), classification_data(32), classification_data(9), save_steps=2)
    assert {step: [each["step"] for each in values["history"]] for step, values in states.items()} == {
        2: [2], 4: [2, 4], 6: [2, 4, 6], 8: [2, 4, 6, 8]
    }  # fmt: skip


def test_it_is_known_when_a_save_was_written():
    saver, written = BackgroundSaver(30.0), []
    before, work = background.time.perf_counter(), Blocked("first", written)
    write(saver, work)
    assert work.began.wait(SECONDS)
    assert background.wrote_since(background.time.perf_counter())
    work.may_end.set()
    saver.wait()
    assert background.wrote_since(before)
    assert not background.wrote_since(background.time.perf_counter())
