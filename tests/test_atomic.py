"""What is being written is nobody else's, and nothing of it stays."""

import errno
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from bertorch import atomic
from bertorch.atomic import remove, replacing, unfinished
from tests.conftest import fork, wait_for


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_permissions_are_those_of_any_new_file(umask, tmp_path):
    with replacing(tmp_path / "file") as new:
        new.write_text("a")
    with unfinished(tmp_path, is_folder=True) as new:
        new.rename(tmp_path / "folder")
    assert mode(tmp_path / "file") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == 0o777 & ~umask


def test_a_prepared_link_is_not_followed(tmp_path, monkeypatch):
    """Even where somebody guesses the name."""
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "0" * 2 * size)
    victim, (prepared, target) = tmp_path / "victim", (tmp_path / f".unfinished-{'0' * 32}", tmp_path / "target")
    victim.write_text("kept")
    for is_folder in (False, True):
        prepared.symlink_to("victim")
        with pytest.raises(FileExistsError), unfinished(tmp_path, is_folder=is_folder):
            pass
        prepared.unlink()
    target.symlink_to("victim")
    with replacing(target) as new:
        assert new == prepared
        new.write_text("a")
    assert not target.is_symlink()
    assert (victim.read_text(), target.read_text()) == ("kept", "a")


def test_names_cannot_be_guessed(tmp_path):
    names = set()
    for _ in range(9):
        with unfinished(tmp_path) as new:
            names.add(new.name)
    assert len(names) == 9
    assert list(tmp_path.iterdir()) == []


def hold(folder, is_folder, ready):
    with unfinished(folder, is_folder=is_folder):
        ready.touch()
        time.sleep(60)


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_a_killed_process_leaves_is_cleared_by_the_next(is_folder, tmp_path):
    (tmp_path / ".unfinished-notes").touch()  # somebody's own
    process = fork(hold, tmp_path, is_folder, tmp_path / "ready")
    wait_for(tmp_path / "ready")
    (left,) = tmp_path.glob(f".unfinished-{'?' * 32}")
    with unfinished(tmp_path):
        assert left.exists()  # its process is at work
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert left.exists()
    with unfinished(tmp_path):
        assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-notes", "ready"]


def test_without_locks_it_is_cleared_after_a_day(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    young, old = (tmp_path / f".unfinished-{digit * 32}" for digit in "01")
    young.touch()
    old.mkdir()
    then = time.time() - atomic.LEFTOVER_SECONDS - 1
    os.utime(old, (then, then))
    with replacing(tmp_path / "file") as new:
        new.write_text("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "file"]


def test_one_that_another_process_clears_away_too_early_is_made_again(tmp_path, monkeypatch):
    """Between the file and its lock."""
    lock = atomic.lock

    def taken(descriptor):
        monkeypatch.setattr(atomic, "lock", lock)
        (file,) = tmp_path.iterdir()
        file.unlink()
        return lock(descriptor)

    monkeypatch.setattr(atomic, "lock", taken)
    with unfinished(tmp_path) as new:
        assert new.exists()


def test_a_folder_that_another_process_clears_away_before_it_is_open_is_made_again(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def taken(path):
        monkeypatch.setattr(Path, "mkdir", mkdir)
        mkdir(path)
        path.rmdir()

    monkeypatch.setattr(Path, "mkdir", taken)
    with unfinished(tmp_path, is_folder=True) as new:
        assert new.is_dir()
    with pytest.raises(FileNotFoundError), unfinished(tmp_path / "nowhere", is_folder=True):
        pass


def test_a_pipe_or_a_link_among_them_does_no_harm(tmp_path):
    pipe, link = (tmp_path / f".unfinished-{digit * 32}" for digit in "01")
    os.mkfifo(pipe)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    link.symlink_to("folder")
    with unfinished(tmp_path):
        pass
    assert (tmp_path / "folder" / "file").exists()


def test_removing_a_link_leaves_what_it_leads_to(tmp_path):
    folder, link, dangling = tmp_path / "folder", tmp_path / "link", tmp_path / "dangling"
    folder.mkdir()
    (folder / "file").touch()
    link.symlink_to("folder")
    dangling.symlink_to("nowhere")
    for path in (link, dangling, tmp_path / "nothing"):
        remove(path)
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "file").exists()
    remove(folder)
    assert list(tmp_path.iterdir()) == []
