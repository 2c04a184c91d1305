"""What the peers' scripts share: which files they take, how they read them, and where their time went."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

TIMES = "times.json"


@dataclass
class Inputs:
    """The options of a script, beside those of its trainer."""

    model: str
    train_file: str
    dev_file: str
    label_file: str | None = None
    max_seq_length: int = 128
    labels: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.labels = columns(self.label_file)[0] if self.label_file else ["0", "1"]


def columns(path: str) -> list[list[str]]:
    """The columns of a file of tab-separated values."""
    lines = Path(path).read_bytes().decode("utf-8-sig").rstrip("\r\n").split("\n")
    return [list(column) for column in zip(*(line.rstrip("\r").split("\t") for line in lines), strict=True)]


class StepTimes(TrainerCallback):  # type: ignore[misc] # transformers is not followed
    """Writes `times.json` into the output folder: what went into steps and evaluations, and the last metrics."""

    def __init__(self) -> None:
        self._since = self._stepping = self._evaluating = 0.0
        self._metrics: dict[str, float] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin the first step."""
        self._since = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End a step, and begin the next unless something comes in between."""
        now = time.perf_counter()
        self._stepping += now - self._since
        self._since = now

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        """Keep the metrics; the next step begins."""
        self._metrics = metrics
        self._evaluating += metrics["eval_runtime"]
        self._since = time.perf_counter()

    def on_save(self, *_: Any, **__: Any) -> None:
        """The next step begins."""
        self._since = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Write the file."""
        times = {"steps": state.global_step, "stepping": self._stepping, "evaluating": self._evaluating}
        (Path(args.output_dir) / TIMES).write_text(json.dumps({**times, "metrics": self._metrics}))
