"""Atomic, durable writing: files and folders are complete, and on the disk, before they are moved into place."""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNFINISHED = ".unfinished-"
LEFTOVER_SECONDS = 24 * 60 * 60  # where there are no locks, what is unfinished at this age is of a killed process


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed, at the latest by the end of the process; False if another has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_open_at(path: Path, descriptor: int) -> bool:
    """Whether an open file or folder is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or of a link only the link; nothing may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def unfinished(folder: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """A new file or folder inside `folder`, of a name that nobody can guess, to be written and moved into place.

    At the end it is removed if it is still there. Those that killed processes have left are removed first: each is
    locked as long as its process needs it.

    Raises:
        OSError: it cannot be made.
    """
    for left in folder.glob(f"{_UNFINISHED}{'[0-9a-f]' * 32}"):
        with suppress(OSError):  # its own process has just ended, or it belongs to another user
            _remove_leftover(left)
    path, descriptor = _new(folder, is_folder=is_folder)
    try:
        yield path
    finally:
        with suppress(OSError):
            remove(path)
        os.close(descriptor)


def unfinished_name(folder: Path) -> Path:
    """A path in `folder` that nobody can guess; what is there and is not locked is removed by the next `unfinished`."""
    return folder / f"{_UNFINISHED}{secrets.token_hex(16)}"


def _new(folder: Path, *, is_folder: bool) -> tuple[Path, int]:
    while True:
        path = unfinished_name(folder)
        if is_folder:
            path.mkdir()
        flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if is_folder and folder.is_dir():  # another process has taken it for a leftover before it was open
                continue
            raise
        try:
            is_locked = lock(descriptor)
        except OSError:
            return path, descriptor
        if is_locked and is_open_at(path, descriptor):
            return path, descriptor
        os.close(descriptor)  # another process has taken it for a leftover before it was locked


def _remove_leftover(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            is_left = lock(descriptor)
        except OSError:
            is_left = time.time() - os.fstat(descriptor).st_mtime > LEFTOVER_SECONDS
        if is_left:
            remove(path)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields the path of a new file in its folder, which replaces it, or a link, at the end.

    Raises:
        OSError: it cannot be written; an older one is still there.
    """
    with unfinished(path.parent) as new:
        yield new
        to_disk(new)
        new.replace(path)


def to_disk(path: Path, *, deep: bool = True) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if deep and path.is_dir():
        for inside in path.iterdir():
            to_disk(inside)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
