"""Who writes in a place, and who has to wait."""

import errno
import os
import re
import signal
import socket
import time
from datetime import datetime

import pytest

from bertorch import atomic, distributed
from bertorch.errors import UserError
from bertorch.writer_lock import only_writer
from tests.conftest import fork, run_processes, wait_for


def take(path) -> None:
    with only_writer(path, "--saved_dir x"):
        pass


def hold(path, ready) -> None:
    with only_writer(path, "--saved_dir x"):
        ready.touch()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock."""
    process = fork(hold, tmp_path / "run" / ".lock", tmp_path / "ready")
    wait_for(tmp_path / "ready")
    yield process
    process.kill()


def test_the_second_is_told_who_holds_it_and_a_killed_one_holds_nothing(holder, tmp_path):
    path = tmp_path / "run" / ".lock"
    with pytest.raises(UserError) as refused:
        take(path)
    found = re.fullmatch(
        r"--saved_dir x: expected no other command that writes there, got process (\d+) on (\S+), since (.*); wait for "
        "its end, or name another place",
        str(refused.value),
    )
    assert (int(found[1]), found[2]) == (holder.pid, socket.gethostname())
    assert abs(datetime.fromisoformat(found[3]).timestamp() - time.time()) < 120
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert path.exists()
    take(path)
    assert not path.exists()


def test_all_processes_are_told(holder, tmp_path):
    run_processes(2, refused_everywhere, tmp_path / "run" / ".lock")


def refused_everywhere(path) -> None:
    with pytest.raises(UserError, match="got process"):
        take(path)
    path = path.with_name("other")
    with only_writer(path, "x"):
        distributed.barrier()
        assert path.exists()
        distributed.barrier()


def test_it_leaves_nothing(tmp_path):
    take(tmp_path / "new" / "folder" / ".lock")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    take(tmp_path / "mine" / ".lock")
    with only_writer(tmp_path / "run" / "1" / ".lock", "x"):
        (tmp_path / "run" / "1" / "file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "file", "mine", "run"]


def test_the_lock_of_one_who_came_after_the_folder_was_removed_stays(tmp_path):
    path = tmp_path / ".lock"
    with only_writer(path, "x"):
        path.unlink()
        with only_writer(path, "x"):
            pass
        path.write_text("of another")
    assert path.read_text() == "of another"


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, lock = tmp_path / ".lock", atomic.lock

    def late(descriptor):
        monkeypatch.setattr("bertorch.writer_lock.lock", lock)
        path.unlink()
        return lock(descriptor)

    monkeypatch.setattr("bertorch.writer_lock.lock", late)
    with only_writer(path, "x"):
        assert path.exists()
        with pytest.raises(UserError, match="got process"):
            take(path)


def test_a_file_system_without_locks_is_logged(tmp_path, monkeypatch, log_lines):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    with only_writer(tmp_path / ".lock", "--saved_dir x"):
        take(tmp_path / ".lock")
    assert (
        log_lines
        == ["--saved_dir x: this file system has no locks (No locks available); let no other command write there"] * 2
    )


def test_a_file_of_something_else_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_text("locked by hand")
    with pytest.raises(UserError, match="got .*/.lock, a file of something else; remove it"):
        take(tmp_path / ".lock")
    assert (tmp_path / ".lock").read_text() == "locked by hand"
    for left in ("", "process 12 on another, since yesterday"):  # by one that was killed
        (tmp_path / ".lock").write_text(left)
        take(tmp_path / ".lock")


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_what_somebody_else_put_in_its_place_is_neither_followed_nor_filled(kind, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / ".lock"
    victim.write_text("kept")
    {"link": path.symlink_to, "hard link": path.hardlink_to, "pipe": lambda _: os.mkfifo(path)}[kind](victim)
    with pytest.raises(UserError, match="x: expected .* got"):
        take(path)
    assert victim.read_text() == "kept"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--saved_dir x: expected a folder that can be written, got: File exists"):
        take(tmp_path / "file" / ".lock")


def test_a_folder_whose_name_is_too_long(tmp_path):
    message = "--saved_dir x: expected a folder that can be written, got: File name too long"
    with pytest.raises(UserError, match=message), only_writer(tmp_path / ("x" * 5000) / "lock", "--saved_dir x"):
        pass
