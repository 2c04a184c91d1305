"""The commands of the README. Running them takes minutes: `make readme` does, and so does `.ci/run`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What needs a model hub, a dataset, several machines, or another environment.
ELSEWHERE = ("bert-base-chinese", "…", "pip install", "make ")


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def without_comments(block: str) -> list[str]:
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


@pytest.mark.parametrize("language", ["bash", "python"])
def test_both_languages_have_the_same_commands(language):
    chinese, english = (
        [without_comments(block) for block in blocks(f"README{end}.md", language)] for end in ("", ".en")
    )
    assert chinese == english
    assert len(chinese) >= 4


@pytest.mark.skipif("BERTORCH_TEST_README" not in os.environ, reason="takes minutes; make readme")
def test_the_commands_run_in_a_fresh_clone(tmp_path):
    """In the order of the README, after `make demo`."""
    for name in (*map(str, ROOT.glob("run_*.py")), "bertorch", "data"):
        source = ROOT / name
        target = tmp_path / source.name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copytree(ROOT / "checkpoint" / "demo", tmp_path / "checkpoint" / "demo")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = [
        command
        for block in blocks("README.md", "bash")
        for command in re.split(r"(?<!\\)\n", block.strip())
        if not any(sign in command for sign in ELSEWHERE)
    ]
    assert len(commands) >= 14
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        print(f"$ {command}", *done.stderr.splitlines()[-2:], *done.stdout.splitlines()[-2:], sep="\n")
        assert done.returncode == 0, (command, done.stderr)
    for block in blocks("README.md", "python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        print(f">>> {block}", done.stdout)
        assert done.returncode == 0, (block, done.stderr)
