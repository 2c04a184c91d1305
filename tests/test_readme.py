"""The commands of the README and the docs. Running them takes minutes: `make readme` does, and so does `.ci/run`."""

import os
import re
import shutil
import subprocess
import sys
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
    """In the order of the README, then of each page of the docs, after `make demo`."""
    for name in (*map(str, ROOT.glob("run_*.py")), "bertorch", "data"):
        source = ROOT / name
        target = tmp_path / source.name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copytree(ROOT / "checkpoint" / "demo", tmp_path / "checkpoint" / "demo")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = [
        command
        for page in PAGES
        for block in blocks(page, "bash")
        for command in re.split(COMMAND_END, block.strip())
        if not any(sign in command for sign in ELSEWHERE)
    ]
    assert len(commands) >= 20
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        print(f"$ {command}", *done.stderr.splitlines()[-2:], *done.stdout.splitlines()[-2:], sep="\n")
        assert done.returncode == 0, (command, done.stderr)
    for block in [block for page in PAGES for block in blocks(page, "python")]:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        print(f">>> {block}", done.stdout)
        assert done.returncode == 0, (block, done.stderr)
