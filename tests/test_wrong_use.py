"""200 command lines of wrong use: no traceback, exit code 2, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.forks import Forks
from tests.wrong_use import PROGRAMS, build_world, draw, line_of, snapshot, with_models

LINES = 200
REAL = range(0, 180, 9)  # also as real commands

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


def real(line: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and standard error of a command as a user gives it."""
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
def test_the_lines_work_without_a_mistake(program, world, folders, forks):
    build_world(world)
    program = with_models(program, folders.__getitem__)
    code, told = forks.run(line_of(program, program.options), world)
    assert code == 0, told


@pytest.mark.parametrize(
    ("seed", "is_real"),
    [(seed, False) for seed in range(LINES)] + [(seed, True) for seed in REAL],
)
def test_wrong_use_ends_with_exit_code_2_and_leaves_no_trace(seed, is_real, world, folders, forks):
    mistake, line = draw(seed, world, folders.__getitem__)
    before = snapshot(world)
    code, told = real(line, world) if is_real else forks.run(line, world)
    shown = f"{mistake}\n{' '.join(line)[:2000]}\n{told}"
    assert "Traceback" not in told, shown
    assert code == 2, shown
    assert told.strip(), shown
    assert snapshot(world) == before, shown
