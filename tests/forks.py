"""Command lines in forks of a process that has imported everything: `python -m tests.forks`, and its other end."""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SECONDS = 120  # of a command
# What takes seconds to import; the last one imports all scripts and commands.
IMPORTED = ("matplotlib.figure", "scipy.stats", "tests.wrong_use")


class Forks:
    """The process that forks; a context, which ends it."""

    def __enter__(self) -> "Forks":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")

    def run(self, line: list[str], folder: Path) -> tuple[int, str]:
        """Exit code and standard error of a script or `-m` module with its options, run in `folder`."""
        self._process.stdin.write(json.dumps([line, str(folder)]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), Path(f"{folder}.stderr").read_text()


def _enter(folder: str) -> None:
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)


def _run(line: list[str]) -> int:
    """As Python does it; returns the exit code."""
    try:
        if line[0] == "-m":
            sys.argv = line[1:]
            runpy.run_module(line[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [str(ROOT / line[0]), *line[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what a process that it ends would print
        traceback.print_exc()
        return 1
    return 0


def _serve() -> None:
    torch.set_num_threads(1)
    for request in sys.stdin:
        line, folder = json.loads(request)
        sys.stdout.flush()
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)  # ends it
            _enter(folder)
            code = _run(line)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    _serve()
