"""200 command lines of wrong use: no traceback, exit code 2, and nothing written."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, _preload
from tests.wrong_use import PROGRAMS, build_world, draw, line_of, snapshot, with_models

LINES = 200
REAL = 20  # of them also as real commands

pytestmark = pytest.mark.slow


def _enter(folder: Path) -> None:
    """Where the program runs, with its output in files beside."""
    os.setsid()
    os.chdir(folder)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(os.devnull if name == "stdin" else f"{folder}.{name}", flags), descriptor)


def _program(line: list[str], folder: Path) -> None:
    _enter(folder)
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    if line[0] == "-m":
        sys.argv = line[1:]
        runpy.run_module(line[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(ROOT / line[0]), *line[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")


def forked(line: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and standard error of a program in a process forked from one that has imported everything."""
    _preload()
    process = multiprocessing.get_context("forkserver").Process(target=_program, args=(line, folder))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, Path(f"{folder}.stderr").read_text()


def real(line: list[str], folder: Path) -> tuple[int, str]:
    """The same of a command as a user gives it."""
    program = line if line[0] == "-m" else [str(ROOT / line[0]), *line[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *program], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture
def world(tmp_path):
    (tmp_path / "world").mkdir()
    return tmp_path / "world"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_lines_work_without_a_mistake(program, world, folders):
    build_world(world)
    program = with_models(program, folders.__getitem__)
    code, told = forked(line_of(program, program.options), world)
    assert code == 0, told


@pytest.mark.parametrize(
    ("seed", "run"),
    [(seed, forked) for seed in range(LINES)] + [(seed, real) for seed in range(3, LINES, LINES // REAL)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_wrong_use_ends_with_exit_code_2_and_leaves_no_trace(seed, run, world, folders):
    mistake, line = draw(seed, world, folders.__getitem__)
    before = snapshot(world)
    code, told = run(line, world)
    shown = f"{mistake}\n{' '.join(line)[:2000]}\n{told}"
    assert "Traceback" not in told, shown
    assert code == 2, shown
    assert told.strip(), shown
    assert snapshot(world) == before, shown
