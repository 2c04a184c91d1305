"""`dev_examples.json` in the saved folder: which training examples `--dev_ratio` drew to evaluate on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from bertorch.config import TrainingConfig
from bertorch.data.dataset import Subset
from bertorch.files import to_json
from bertorch.tasks.base import Savable

DRAWN = "dev_examples.json"


@dataclass(frozen=True)
class DrawnExamples(Savable):
    """The dev examples of a run as numbers from 1: their lines in the training file, not counting skipped ones."""

    config: TrainingConfig
    dev: Subset

    @override
    def save_pretrained(self, save_directory: Any) -> None:
        config = self.config
        content = {"train_data_file": config.train_data_file, "dev_ratio": config.dev_ratio, "seed": config.seed}
        numbers = (self.dev.chosen + 1).tolist()
        (Path(save_directory) / DRAWN).write_text(to_json(content | {"examples": numbers}) + "\n", encoding="utf-8")
