"""What the commands of `bertorch.prepare` have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from loguru import logger

from bertorch.config import ON_BAD_LINE, option
from bertorch.files import write_lines


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """What every command has."""

    overwrite: bool = option(False, help="replace existing files")

    @property
    def outputs(self) -> list[str]:
        """The files that it writes."""
        files = [getattr(self, name, None) for name in ("output_file", "label_file", "report_file")]
        return [file for file in files if file is not None]

    @property
    def inputs(self) -> list[str]:
        """The files that it reads."""
        named = (getattr(self, name, None) for name in ("input_file", "train_file", "dev_file", "test_file"))
        return [file for value in named if value is not None for file in ([value] if isinstance(value, str) else value)]

    @abstractmethod
    def run(self) -> None:
        """Read, convert, write."""


@dataclass(frozen=True, kw_only=True)
class FileCommand(Command):
    """From one file to one."""

    input_file: str = option(help="the file to read")
    output_file: str = option(help="the file to write")


@dataclass(frozen=True, kw_only=True)
class RowsCommand(Command):
    """For files of programs that people fill in."""

    on_bad_row: str = option("stop", choices=ON_BAD_LINE, help="a malformed row ends the command, or is skipped")


def write(path: str, lines: Iterable[str]) -> None:
    """Write a file of lines and log how many."""
    lines = list(lines)
    write_lines(path, lines)
    logger.info("{}: {} lines", path, len(lines))
