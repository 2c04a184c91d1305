"""Which module imports which, and what a command line imports before it is known to be right."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path.name for path in ROOT.glob("run_*.py"))
COMMANDS = ("predict", "evaluate", "encode", "plot", "compare", "label_issues", "mine", "export")
HEAVY = ("torch", "transformers", "tokenizers", "scipy", "matplotlib", "numpy")
# Each may import itself and those before it; what is in no package stands on the ground, or is a command.
LAYERS = ("ground", "data", "encoder", "tasks", "training", "inference", "exporting", "commands")


@pytest.mark.parametrize(
    "program",
    [[name] for name in SCRIPTS] + [["-m", f"bertorch.{name}"] for name in COMMANDS],
    ids=lambda program: program[-1],
)
@pytest.mark.parametrize("option", ["--help", "--mistyped"])
def test_a_command_line_imports_nothing_heavy(program, option):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *program, option], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == (2 if option == "--mistyped" else 0)
    assert "usage: " in done.stdout + done.stderr
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "bertorch" in imported
    assert imported.isdisjoint(HEAVY)


def test_preparing_data_imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "data/prepare.py", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert imported.isdisjoint(set(HEAVY) - {"numpy"})


def layer_of(module: str) -> str:
    _, *inner = module.split(".")
    if len(inner) > 1 or (ROOT / "bertorch" / inner[0]).is_dir():
        return inner[0]
    return "commands" if inner[0] in ("cli", *COMMANDS) else "ground"


def imports_of(path) -> set[str]:
    """The modules of ours that a file imports, at its top and in its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(names) if node.module == "bertorch" else {node.module}
    return {name for name in found if name.startswith("bertorch.")}


def test_imports_run_one_way():
    wrong = []
    for path in (ROOT / "bertorch").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == "bertorch" or layer_of(module) == "prepare":
            continue
        allowed = LAYERS[: LAYERS.index(layer_of(module)) + 1]
        wrong += [f"{module}: {name}" for name in imports_of(path) if layer_of(name) not in allowed]
    assert wrong == []


def test_prepare_stands_on_data():
    for path in (ROOT / "bertorch" / "prepare").glob("*.py"):
        allowed = {"prepare", "data", "ground"} | ({"commands"} if path.name == "__main__.py" else set())
        assert {layer_of(name) for name in imports_of(path)} <= allowed
