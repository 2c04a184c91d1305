"""A lock on what a command writes, so that no second one writes there at the same time."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from loguru import logger

from bertorch import distributed
from bertorch.atomic import is_open_at, lock
from bertorch.errors import UserError

_SHOWN_BYTES = 300
_BEGINNING = b"process "  # of what a lock says


@contextmanager
def only_writer(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` until the end, on the first process; all processes must enter.

    The system releases the lock whenever and however the process ends. The file, whose folder is made, says who holds
    the lock; it is removed at the end, as is a folder that was made for it and got no files. `what` is the option and
    name of the output.

    Raises:
        UserError: another command holds it, or the file cannot be written; on every process.
    """
    with ExitStack() as stack:
        distributed.on_main(lambda: stack.enter_context(_held(path, what)))
        yield


@contextmanager
def _held(path: Path, what: str) -> Iterator[None]:
    try:
        missing = [folder for folder in path.parents if not folder.exists()]  # the innermost first
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path, what)
    except OSError as error:
        raise UserError(f"{what}: expected a folder that can be written, got: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            if is_open_at(path, descriptor):  # else the folder was removed meanwhile
                path.unlink()
        os.close(descriptor)
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()


def _take(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        obstacle = _obstacle(descriptor, path, what)
        if obstacle is None and is_open_at(path, descriptor):
            now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            with suppress(OSError):  # a full disk
                os.ftruncate(descriptor, 0)
                holder = f"{os.getpid()} on {socket.gethostname()}, since {now}"
                os.write(descriptor, _BEGINNING + holder.encode())
            return descriptor
        os.close(descriptor)
        if obstacle is not None:
            raise UserError(f"{what}: expected no other command that writes there, got {obstacle}")


def _obstacle(descriptor: int, path: Path, what: str) -> str | None:
    """Lock the file; why that is not possible, or None."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        return f"{path}, which is not a lock; remove it"
    try:
        if lock(descriptor):
            is_ours = os.pread(descriptor, len(_BEGINNING), 0) in (b"", _BEGINNING)
            return None if is_ours else f"{path}, a file of something else; remove it"
    except OSError as error:
        reason = error.strerror or error
        logger.warning("{}: this file system has no locks ({}); let no other command write there", what, reason)
        return None
    return f"{_holder(descriptor)}; wait for its end, or name another place"


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, _SHOWN_BYTES, 0).decode(errors="replace")
    return "".join(character for character in text if character.isprintable()) or "a process that has just begun"
