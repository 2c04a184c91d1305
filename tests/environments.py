"""Virtual environments that see some of the distributions installed here, and nothing else; nothing is downloaded."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement


class Environment:
    """A new virtual environment without pip.

    Args:
        folder: where it is made.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        (self._site,) = folder.glob("lib/python*/site-packages")

    def link(self, *names: str) -> None:
        """Make distributions that are installed here importable, with all that they require."""
        for each in _closure([Requirement(name) for name in names]):
            for entry in _entries(each):
                if not (self._site / entry).exists():
                    (self._site / entry).symlink_to(each.locate_file(entry))

    def install(self, wheel: Path, *extras: str) -> None:
        """Install a wheel, and link what it requires with these extras."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, wheel], check=True)
        name, _ = wheel.name.split("-", maxsplit=1)
        (installed,) = distributions(name=name, path=[str(self._site)])
        self.link(*map(str, _required(installed, extras)))

    def run(self, *arguments: object, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run its Python, which sees nothing of this environment, in its own folder or another."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command, folder = [self.python, *arguments], cwd or self.folder
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done


def _closure(requirements: list[Requirement]) -> Iterator[Distribution]:
    """The distributions that are required, each once for every set of its extras."""
    waiting, seen = list(requirements), set()
    while waiting:
        requirement = waiting.pop()
        key = (requirement.name, frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            found = distribution(requirement.name)
            yield found
            waiting += _required(found, tuple(requirement.extras))


def _required(found: Distribution, extras: tuple[str, ...]) -> Iterator[Requirement]:
    """What a distribution requires here, with these extras."""
    for text in found.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": each}) for each in ("", *extras)):
            requirement.marker = None
            yield requirement


def _entries(found: Distribution) -> set[str]:
    """The files and folders in site-packages that are a distribution's."""
    first = {path.parts[0] for path in found.files or ()}
    return first - {"..", "__pycache__"}
