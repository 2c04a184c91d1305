"""Faults in the file operations inside a folder, by the number of the operation, in whatever thread it is made.

Operations of Python and what is built on it (pathlib, shutil, …) are seen by an audit hook, which cannot be removed:
for a process that does nothing else. What is written is seen at the writers: of torch, safetensors and tokenizers a
file is one operation, which leaves half of it behind, as does a text that is written.
"""

import builtins
import errno
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from bertorch.errors import exit_on_user_error

NO_ROOM = OSError(errno.ENOSPC, "No space left on device")
TAKE_ROOM = {"open", "os.mkdir", "os.rename", "write", "fsync", "torch", "safetensors", "tokenizers"}
_FOLDER_DESCRIPTORS = {"os.mkdir": 2, "os.rmdir": 1, "os.remove": 1, "os.chmod": 2, "os.rename": 2, "os.truncate": None}


class Faults:
    """From now on, operation `number` inside `folder` ends the process, or fails for want of room.

    In the latter case (`is_full`) all later ones that take room fail too. The operations are listed in the file `log`.
    Those of threads that save take `slow` seconds longer.
    """

    def __init__(self, folder: Path, log: Path, *, number: int, is_full: bool, slow: float = 0.0) -> None:
        self._folder, self._number, self._is_full, self._slow = str(folder), number, is_full, slow
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._count, self._lock, self._happens = 0, threading.Lock(), False
        self._write, self._open = os.write, io.open
        os.write, os.fsync = self._write_half, self._no_fsync
        io.open = builtins.open = self._opened
        torch.save = self._half_file(
            "torch", torch.save, lambda _, path: Path(path), RuntimeError("unexpected pos 64 vs 0")
        )
        safetensors.torch.serialize_file = self._half_file(
            "safetensors",
            safetensors.torch.serialize_file,
            lambda _, path, **__: Path(path),
            SafetensorError(str(NO_ROOM)),
        )
        PreTrainedTokenizerFast._save_pretrained = self._half_file(
            "tokenizers",
            PreTrainedTokenizerFast._save_pretrained,
            lambda _, save_directory, **__: Path(save_directory) / "tokenizer.json",
            Exception("No space left on device (os error 28)"),
        )
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            is_twice = mode == "a"  # is opened by an `opener`, as metrics.jsonl is
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not is_twice:
                self._operation(event, path)
        elif event in _FOLDER_DESCRIPTORS:
            position = _FOLDER_DESCRIPTORS[event]
            inside = -1 if position is None else arguments[position]
            path = arguments[0]
            self._operation(event, path if inside == -1 else f"{_path_of(inside)}/{os.fspath(path)}")

    def _operation(
        self, name: str, path: object, half: Callable[[], object] = lambda: None, error: Exception = NO_ROOM
    ) -> None:
        path = _path_of(path) if isinstance(path, int) else os.fsdecode(path)
        if self._happens or (path != self._folder and not path.startswith(f"{self._folder}/")):
            return
        thread = threading.current_thread().name
        with self._lock:
            self._count += 1
            number = self._count
            self._write(self._log, f"{number} {thread} {name} {path.removeprefix(self._folder)}\n".encode())
            if number == self._number or (self._is_full and number > self._number and name in TAKE_ROOM):
                self._happens = True
                half()
                self._happens = False
                if self._is_full:
                    raise error
                os.kill(os.getpid(), signal.SIGKILL)
        if thread.startswith("saves"):
            time.sleep(self._slow)

    def _write_half(self, descriptor: int, data: bytes) -> int:
        self._operation("write", descriptor, lambda: self._write(descriptor, data[: len(data) // 2]))
        return self._write(descriptor, data)

    def _no_fsync(self, descriptor: int) -> None:
        """Costs much, and what it prevents does not happen here."""
        self._operation("fsync", descriptor)

    def _opened(self, file, mode="r", *arguments, **settings):  # as builtins.open
        stream = self._open(file, mode, *arguments, **settings)
        if set(mode) & set("wxa+") and not isinstance(file, int):
            write = stream.write

            def write_half(text):
                self._operation("write", file, lambda: (write(text[: len(text) // 2]), stream.flush()))
                return write(text)

            stream.write = write_half
        return stream

    def _half_file(self, name: str, function: Callable, path_of: Callable, error: Exception) -> Callable:
        def wrapped(*arguments, **settings):
            result = function(*arguments, **settings)
            path = path_of(*arguments, **settings)
            self._operation(name, path, lambda: os.truncate(path, path.stat().st_size // 2), error)
            return result

        return wrapped


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def run_with_faults(
    run: Callable[[], Any],
    folder: Path,
    operations: Path,
    *,
    log: Path,
    seconds: int,
    number: int,
    is_full: bool = False,
    slow: float = 0.0,
) -> int:
    """Run in a process of its own, with the arguments of `Faults` and standard error in `log`; returns the exit code.

    That of a signal is negative; the run ends after so many seconds.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(seconds)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            Faults(folder, operations, number=number, is_full=is_full, slow=slow)
            with exit_on_user_error():
                run()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:  # noqa: BLE001 - what Python prints
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
