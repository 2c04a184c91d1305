"""The distributions hold what they should, and the wheel runs in an environment with only what it requires.

`make dist` runs the same, and leaves the distributions in dist/.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT
from tests.environments import Environment
from tests.test_imports import COMMANDS, SCRIPTS

pytestmark = pytest.mark.slow

BESIDE = ("LICENSE", "README.md", "pyproject.toml", "requirements.txt")
EXTRAS = {  # and what is imported with them
    "plots": "matplotlib",
    "tensorboard": "torch.utils.tensorboard",
    "export": "onnx, onnxruntime, onnxscript",
    "search": "faiss",
}
MAKES_DIST = "BERTORCH_TEST_DIST" in os.environ  # where to: make dist


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source distribution, of which the first is built from the second."""
    source = tmp_path_factory.mktemp("source")  # a copy: building leaves files beside the sources
    shutil.copytree(ROOT / "bertorch", source / "bertorch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*SCRIPTS, *BESIDE):
        shutil.copy(ROOT / name, source)
    folder = Path(os.environ["BERTORCH_TEST_DIST"]) if MAKES_DIST else tmp_path_factory.mktemp("dist")
    run("build", "--no-isolation", "--outdir", folder, source)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel and what it requires, without extras."""
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.install(wheel)
    return environment


def run(module: str, *arguments: object) -> str:
    """What a module of this environment prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def sources() -> set[str]:
    """The files of the package and the scripts, relative to the root."""
    package = (path for path in (ROOT / "bertorch").rglob("*") if path.suffix in (".py", ".typed"))
    return {*SCRIPTS, *(str(path.relative_to(ROOT)) for path in package)}


def test_the_wheel_holds_the_scripts_and_every_package_and_no_more(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert names == sources()
    assert "bertorch/py.typed" in names


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in names if not name.startswith("bertorch.egg-info/")} == {*sources(), *BESIDE, *made}


def test_the_metadata_is_that_of_the_project(wheel):
    with ZipFile(wheel) as archive:
        (record,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        found = PathDistribution(ZipPath(archive, record.removesuffix("METADATA")))
        metadata, required = found.metadata, [Requirement(text) for text in found.requires]
    ours = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert {str(each) for each in required if each.marker is None} == set(map(str, ours))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(metadata.get_all("Provides-Extra")) == set(extras) >= EXTRAS.keys()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_an_index_would_take_them(built):
    assert run("twine", "check", "--strict", *built.iterdir()).count("PASSED") == 2


def test_every_script_and_command_starts(installed, tmp_path):
    scripts = [name.removesuffix(".py") for name in SCRIPTS]
    for module in (*scripts, *(f"bertorch.{name}" for name in (*COMMANDS, "prepare"))):
        done = installed.run("-m", module, "--help", cwd=tmp_path)
        assert done.stdout.startswith(f"usage: python -m {module} ")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=1", "-m", "run_ner")
    assert "usage: python -m run_ner " in installed.run(*launcher, "--help", cwd=tmp_path).stdout


def test_the_demo_runs_in_an_empty_folder(installed, tmp_path):
    """That of the Makefile with the data of this checkout, whole in `make dist`, else one epoch of it."""
    steps = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.complete", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    training, *_ = steps.stdout.replace("\\\n", " ").splitlines()
    _, script, *options = shlex.split(training)
    options = [str(ROOT / each) if each.startswith("data/") else each for each in options]
    module = script.removesuffix(".py")
    where = installed.run("-c", f"import bertorch, {module}; print(bertorch.__file__, {module}.__file__)", cwd=tmp_path)
    assert all(Path(name).is_relative_to(installed.folder) for name in where.stdout.split())
    if not MAKES_DIST:
        options += ["--epochs", "1"]
    done = installed.run("-m", module, *options, cwd=tmp_path)
    assert "eval loss" in done.stderr
    saved = tmp_path / options[options.index("--saved_dir") + 1]
    (tmp_path / "in.txt").write_text("房间干净，早餐也丰富，下次还住这里。\n")
    command = ("-m", "bertorch.predict", "--model_dir", saved, "--input_file", "in.txt", "--output_file", "-")
    label, *_ = installed.run(*command, cwd=tmp_path).stdout.splitlines()[1].split("\t")
    assert label == "positive" if MAKES_DIST else label in ("negative", "positive")


@pytest.mark.parametrize(("extra", "modules"), EXTRAS.items(), ids=list(EXTRAS))
def test_an_extra_is_all_that_its_option_needs(extra, modules, wheel, installed, tmp_path):
    assert installed.run("-c", f"import {modules}", cwd=tmp_path, check=False).returncode == 1
    environment = Environment(tmp_path / "environment")
    environment.install(wheel, extra)
    environment.run("-c", f"import {modules}", cwd=tmp_path)
