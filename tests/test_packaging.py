"""The distribution holds the scripts and every package, so that they run from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT

OTHER_FILES = ("README.md", "LICENSE", "requirements.txt")
pytestmark = pytest.mark.slow


def test_the_wheel_runs_in_any_folder(tmp_path):
    if find_spec("setuptools") is None:
        pytest.skip("building a wheel offline needs setuptools")
    source = tmp_path / "source"  # a copy: building leaves files beside the sources
    shutil.copytree(ROOT / "bertorch", source / "bertorch", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("run_*.py"), *(ROOT / name for name in ("pyproject.toml", *OTHER_FILES))):
        shutil.copy(path, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path]
    subprocess.run([*build, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    expected = [*source.glob("run_*.py"), *(source / "bertorch").rglob("*.py")]
    assert names == {str(path.relative_to(source)) for path in expected}

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for module in (["run_classifier"], ["torch.distributed.run", "--nproc_per_node=1", "-m", "run_ner"]):
        done = subprocess.run(
            [sys.executable, "-m", *module, "--help"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"usage: python -m {module[-1]} --train_data_file" in done.stdout
