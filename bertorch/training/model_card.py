"""The model card: a `README.md` in the saved folder that says what the model is, how it came about, how to load it.

References:
    Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    https://huggingface.co/docs/hub/model-cards
"""

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from loguru import logger

import bertorch
from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.precision import Precision
from bertorch.tasks.base import Task

CARD = "README.md"
# Only a file with this line is replaced.
MARK = "<!-- written by bertorch, and replaced by its next save; a README.md without this line is left alone -->"


class ModelCard:
    """The card of a run's weights, written beside them.

    Args:
        config: the run's options.
        task: what the model is for, and how it is used.
        step: the training step of the weights.
        history: of each evaluation its step and its numbers.
        precision: of the arithmetic.
    """

    def __init__(
        self,
        config: TrainingConfig,
        task: Task[Any],
        *,
        step: int,
        history: Sequence[Mapping[str, Any]],
        precision: Precision,
    ) -> None:
        self._config, self._task = config, task
        self._step, self._history = step, history
        self._precision = precision

    def save_pretrained(self, save_directory: Any) -> None:
        """Write the card, unless the folder that the weights go to has a `README.md` of somebody else."""
        there = Path(self._config.saved_dir) / CARD
        if is_foreign(there):
            logger.info("{}: is not ours, so there is no model card", there)
            return
        (Path(save_directory) / CARD).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The card in Markdown, with the hub's metadata on top."""
        base = self._config.pretrained_model_name_or_path
        parts = [
            "---",
            f"library_name: {self._task.library}",
            f"pipeline_tag: {self._task.pipeline_tag}",
            *([] if Path(base).exists() else [f"base_model: {base}"]),  # a model of the hub
            f"tags:\n- bertorch\n---\n\n{MARK}",
            f"\n# {Path(base).name}, fine-tuned\n\nThese are the weights after step {self._step} of the run below.",
            *(f"\n{section}" for section in (self._use(), self._training(), self._metrics(), _versions()) if section),
        ]
        return "\n".join(parts) + "\n"

    def _use(self) -> str:
        folder = json.dumps(self._config.saved_dir, ensure_ascii=False)  # with its quotes, also as Python has them
        here, elsewhere = self._task.usage()
        elsewhere = elsewhere.replace("{folder}", folder)
        return (
            f"## Use\n```python\nfrom bertorch import load\n\nprint(load({folder}).{here})\n```\n"
            f"Without bertorch:\n```python\n{elsewhere}\n```"
        )

    def _training(self) -> str:
        config = self._config
        data = f"Training data: `{config.train_data_file}`"
        if config.dev_data_file:
            data += f", dev data: `{config.dev_data_file}`"
        how = f"{config.batch_size} examples a batch each, {self._precision.name}, seed {config.seed}"
        command = shlex.join(["python", *sys.argv])
        return f"## Training\n```bash\n{command}\n```\n{distributed.world_size()} process(es), {how}. {data}."

    def _metrics(self) -> str:
        if not self._history:
            return ""
        names = [name for name in self._history[0] if name != "step"]
        rows = ["| step | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        rows += [
            f"| {numbers['step']} | " + " | ".join(f"{numbers[name]:.5f}" for name in names) + " |"
            for numbers in self._history
        ]
        return "## Dev metrics\n" + "\n".join(rows)


def is_foreign(path: Path) -> bool:
    """Whether a file has the name of the card but was not written by bertorch."""
    return path.name == CARD and path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def _versions() -> str:
    device = distributed.device()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return (
        f"## Versions\nbertorch {bertorch.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}, {hardware}"
    )
