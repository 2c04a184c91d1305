"""The commands of the README and the docs. Running them takes minutes: `make readme` does, and so does `.ci/run`."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What needs a model hub, a dataset, several machines, another environment, or many runs before it.
ELSEWHERE = ("bert-base-chinese", "…", "pip install", "make ", "runs/", "TNEWS/")

# A line break ends a command, but not before the inner lines of a loop and its end.
COMMAND_END = r"(?<!\\)\n(?! |done)"

README = ROOT / "README.md"
# Pages of docs use what the commands of the README make.
PAGES = [README, *(path for path in sorted(ROOT.glob("docs/*.md")) if not path.name.endswith(".en.md"))]
# No page uses what others make, but `inference` what `training` makes. So these run in a second copy beside the others;
# the last two only where all are asked for, as CI has 20 minutes.
BESIDE = [ROOT / "docs" / f"{name}.md" for name in ("export", "inference", "training")]
LONG = [ROOT / "docs" / f"{name}.md" for name in ("classification", "retrieval")]


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def without_comments(block: str) -> list[str]:
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


@pytest.mark.parametrize("language", ["bash", "python"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_both_languages_have_the_same_commands(page, language):
    chinese, english = (
        [without_comments(block) for block in blocks(path, language)]
        for path in (page, page.with_name(page.name.replace(".md", ".en.md")))
    )
    assert chinese == english
    assert page != README or chinese


@pytest.mark.skipif("BERTORCH_TEST_README" not in os.environ, reason="takes minutes; make readme")
def test_the_commands_run_in_a_fresh_clone(tmp_path):
    """In the order of the README, then of each page of the docs, after `make demo`; some pages beside the others."""
    folder, beside = tmp_path / "clone", tmp_path / "beside"
    for name in (*map(str, ROOT.glob("run_*.py")), "bertorch", "data"):
        source = ROOT / name
        target = folder / source.name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copytree(ROOT / "checkpoint" / "demo", folder / "checkpoint" / "demo")
    pages_beside = BESIDE if os.environ["BERTORCH_TEST_README"] == "main" else [*BESIDE, *LONG]
    run_commands(folder, [README])
    shutil.copytree(folder, beside)
    others = [page for page in PAGES if page not in (README, *BESIDE, *LONG)]
    with ThreadPoolExecutor() as pool:
        for done in (pool.submit(run_pages, folder, others), pool.submit(run_pages, beside, pages_beside)):
            done.result()
    run_python(folder, [README])


def run_pages(folder: Path, pages: Sequence[Path]) -> None:
    run_commands(folder, pages)
    run_python(folder, pages)


def run_commands(folder: Path, pages: Sequence[Path]) -> None:
    commands = [
        command
        for page in pages
        for block in blocks(page, "bash")
        for command in re.split(COMMAND_END, block.strip())
        if not any(sign in command for sign in ELSEWHERE)
    ]
    assert len(commands) >= 8
    for command in commands:
        began = time.perf_counter()
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
        ends = [*done.stderr.splitlines()[-2:], *done.stdout.splitlines()[-2:]]
        print(f"$ {command}  # {seconds:.1f} s", *ends, sep="\n")
        assert done.returncode == 0, (command, done.stderr)


def run_python(folder: Path, pages: Sequence[Path]) -> None:
    for block in [block for page in pages for block in blocks(page, "python")]:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
        print(f">>> {block}", done.stdout)
        assert done.returncode == 0, (block, done.stderr)


def environment() -> dict[str, str]:
    """That of the commands, which run beside each other: one thread each."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
