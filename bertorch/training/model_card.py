"""The model card: a `README.md` in the saved folder that says what the model is, how it was trained, how to load it.

References:
    Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    https://huggingface.co/docs/hub/model-cards
"""

import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from loguru import logger
from typing_extensions import override

import bertorch
from bertorch import distributed, program
from bertorch.atomic import replacing, to_disk
from bertorch.config import TrainingConfig
from bertorch.data.lines import cell
from bertorch.files import to_json, writing
from bertorch.precision import Precision
from bertorch.tasks.base import Savable, Task
from bertorch.training.hub_metadata import task_metadata, with_metadata

CARD = "README.md"
# Only a file with this line is replaced.
MARK = "<!-- written by bertorch, and replaced by its next save; a README.md without this line is left alone -->"
_USE = "## Use\n"


@dataclass(frozen=True)
class ModelCard(Savable):
    """The card of a run's weights, written beside them."""

    config: TrainingConfig
    task: Task[Any]
    step: int  # of the weights
    history: Sequence[Mapping[str, Any]]  # step and numbers of each evaluation
    precision: Precision

    @override
    def save_pretrained(self, save_directory: Any) -> None:
        """Write the card, unless `--saved_dir` has a `README.md` that bertorch did not write."""
        existing = Path(self.config.saved_dir) / CARD
        if is_foreign(existing):
            logger.info("{}: is not ours, so there is no model card", existing)
            return
        # Half a surrogate pair, of a file name that is not UTF-8, is escaped as in Python.
        (Path(save_directory) / CARD).write_text(self.text(), encoding="utf-8", errors="backslashreplace")

    def text(self) -> str:
        """The card in Markdown, with the hub's metadata on top."""
        base = self.config.pretrained_model_name_or_path
        sections = (self._use(), self._training(), self._metrics(), _versions())
        parts = [
            MARK,
            f"\n# {_code(Path(base).name)}, fine-tuned",
            f"\n{self._summary()}",
            *(f"\n{section}" for section in sections if section),
        ]
        metadata = task_metadata(
            self.task,
            base_model=None if Path(base).exists() else base,  # else one of the hub
            name=Path(self.config.saved_dir).absolute().name,
            dev_file=self.config.dev_data_file,
            numbers=next((line for line in self.history if line["step"] == self.step), None),
        )
        return with_metadata(metadata, "\n".join(parts) + "\n")

    def _summary(self) -> str:
        return f"These are the weights after step {self.step} of the run below."

    def _use(self) -> str:
        return use_section(self.task, self.config.saved_dir)

    def _training(self) -> str:
        config = self.config
        data = f"Training data: {', '.join(map(_code, config.train_data_files))}"
        if config.dev_data_file:
            data += f", dev data: {_code(config.dev_data_file)}"
        how = f"{config.batch_size} examples a batch each, {self.precision.name}, seed {config.seed}"
        command = _block("bash", shlex.join([*program.command(), *sys.argv[1:]]))
        notes = _notes(self.task.notes())
        return f"## Training\n{command}\n{distributed.world_size()} process(es), {how}. {data}.{notes}"

    def _metrics(self) -> str:
        if not self.history:
            return ""
        names = [name for name in self.history[0] if name != "step"]
        rows = [["step", *names]]
        rows += [[str(line["step"]), *(f"{line[name]:.5f}" for name in names)] for line in self.history]
        header, *lines = (f"| {' | '.join(row)} |" for row in rows)
        return "\n".join(["## Dev metrics", header, "|---" * len(rows[0]) + "|", *lines])


@dataclass(frozen=True)
class FoldsCard(ModelCard):
    """The card of a folder with folds: how to use them as one model, and how they are on what they have not seen."""

    folds: Sequence[str]  # their names
    report: Mapping[str, Any]  # of all examples, each by the model that has not seen it

    @override
    def _summary(self) -> str:
        return (
            f"These are {len(self.folds)} models, each trained without a part of the examples. Used together they give "
            "the mean of what they say; each of them is a model by itself, with a card of its own."
        )

    @override
    def _use(self) -> str:
        call, _ = self.task.usage()
        ours = _block("python", f"from bertorch import load\n\nprint(load({to_json(self.config.saved_dir)}).{call})")
        return f"## Use\n{ours}\nWithout bertorch, one of them: {', '.join(map(_code, self.folds))}."

    @override
    def _metrics(self) -> str:
        rows = [
            f"| {name} | {measure['value']:.5f} | {self.report['intervals'][name][0]:.5f} to "
            f"{self.report['intervals'][name][1]:.5f} |"
            for name, measure in self.report["measures"].items()
        ]
        header = ["| measure | value | 95 % interval |", "|---|---|---|"]
        return "\n".join(["## Metrics on the examples that a model has not seen", *header, *rows])


def use_section(task: Task[Any], folder: str) -> str:
    """How a model is used, and what was fitted to it after training."""
    name = to_json(folder)  # also a literal of Python
    call, without_bertorch = task.usage()
    ours = _block("python", f"from bertorch import load\n\nprint(load({name}).{call})")
    theirs = _block("python", without_bertorch.replace("{folder}", name))
    return f"{_USE}{ours}\nWithout bertorch:\n{theirs}{_notes(task.fitted_notes(_code))}"


def update_card(folder: str, task: Task[Any]) -> None:
    """Let the card in a folder say how its model is used now, atomically; one that is not ours is left alone.

    Raises:
        UserError: it cannot be written; it is as it was.
    """
    path = Path(folder) / CARD
    if not path.exists():
        return
    with writing(path):
        before, found, text = path.read_text(encoding="utf-8", errors="replace").partition(f"\n{_USE}")
        if is_foreign(path) or not found:
            logger.info("{}: is not ours, so it is left as it is", path)
            return
        _, next_heading, after = text.partition("\n\n## ")
        card = f"{before}\n{use_section(task, folder)}{next_heading}{after}"
        with replacing(path) as new:
            new.write_text(card, encoding="utf-8", errors="backslashreplace")
        to_disk(path.parent, deep=False)


def is_foreign(path: Path) -> bool:
    """Whether a file has the name of the card but was not written by bertorch."""
    return path.name == CARD and path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"\n\nNote: {note}." for note in notes)


def _code(text: str) -> str:
    """A code span of Markdown, which ends at a run of as many backticks as it begins with."""
    text = cell(text)
    ticks = "`" * (_longest_run(text) + 1)
    space = " " * (text.startswith("`") or text.endswith("`"))
    return f"{ticks}{space}{text}{space}{ticks}"


def _block(language: str, code: str) -> str:
    """A code block of Markdown."""
    fence = "`" * max(3, _longest_run(code) + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _longest_run(text: str) -> int:
    """The most backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)


def _versions() -> str:
    device = distributed.device()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return (
        f"## Versions\nbertorch {bertorch.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}, {hardware}"
    )
