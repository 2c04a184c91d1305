"""The commands of each task, and what they have logged of their time."""

import argparse
import json
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.end_to_end.peer_script import TIMES
from benchmarks.measuring import run_command
from bertorch.training.metrics_file import METRICS, read_metrics

OURS = "bertorch"
# The lines of our log that enclose an evaluation, with their time.
_LOGGED = re.compile(r"^(\S+ \S+) \| .* - (?:global step: (\d+),|(?:eval loss|spearman corr): )", re.MULTILINE)


class Taken(NamedTuple):
    """What a command took, in seconds, and what it reached; None where the run was too short to log it."""

    wall_clock: float
    steps_per_second: float | None  # while stepping
    stepping: float | None
    evaluating: float | None
    metric: float


@dataclass(frozen=True)
class Pair:
    """Our script and the peer's, which train the same model.

    Attributes:
        script: ours.
        options: of ours, for the model that the peer trains.
        peer: its name.
        module: its script.
        metric, peer_metric: what they call the dev metric.
    """

    script: str
    options: tuple[str, ...]
    peer: str
    module: str
    metric: str
    peer_metric: str


_MEAN = ("--pooling_mode", "mean")
PAIRS = {
    "classifier": Pair(
        "run_classifier.py", (), "transformers Trainer", "trainer_classifier", "dev_accuracy", "eval_accuracy"
    ),
    "sentencebert": Pair(
        "run_sentencebert.py",
        _MEAN,
        "sentence-transformers SoftmaxLoss",
        "softmax_loss",
        "dev_accuracy",
        "eval_accuracy",
    ),
    "batchneg": Pair(
        "run_batchneg.py",
        (*_MEAN, "--margin", "0", "--keep_duplicates"),
        "sentence-transformers MultipleNegativesRankingLoss",
        "ranking_loss",
        "dev_spearman",
        "eval_spearman_cosine",
    ),
}


@dataclass(frozen=True)
class Commands:
    """The two commands of a task.

    Args:
        pair: which.
        files: train, dev and label file, by the names of our options.
        model: hub name or local folder.
        options: of the benchmark.
        precision: `fp32` or `bf16`.
        environment: of the commands.
    """

    pair: Pair
    files: Mapping[str, str | None]
    model: str
    options: argparse.Namespace
    precision: str
    environment: Mapping[str, str]

    def run_ours(self) -> Taken:
        """Run our command to its end."""
        options = self.options
        arguments = [sys.executable, self.pair.script, "--pretrained_model_name_or_path", self.model]
        arguments += _options({name: self.files.get(name) for name in ("train_data_file", "dev_data_file")})
        arguments += _options({"label_file": self.files.get("label_file"), "eval_steps": options.eval_steps})
        same = ("epochs", "max_steps", "batch_size", "max_seq_length", "save_steps", "precision")
        arguments += _options({name: getattr(options, name) for name in same})
        with tempfile.TemporaryDirectory() as folder:
            arguments += ["--saved_dir", folder, *self.pair.options, *shlex.split(options.our_options)]
            began = time.perf_counter()
            logged = run_command(arguments, self.environment)
            wall_clock = time.perf_counter() - began
            lines = read_metrics(Path(folder) / METRICS)
        evaluations = [line for line in lines if "metric" in line]
        speeds = [(line["step"], line["speed"]) for line in lines if "tokens_per_second" in line]
        # A line's speed is that of the steps since the line before.
        timed = [(step - before, speed) for (before, _), (step, speed) in pairwise([(0, 0.0), *speeds])]
        steps_per_second = sum(steps for steps, _ in timed) / sum(n / speed for n, speed in timed) if timed else None
        each = _evaluation_seconds(logged, [line["step"] for line in evaluations])
        return Taken(
            wall_clock,
            steps_per_second,
            evaluations[-1]["step"] / steps_per_second if steps_per_second else None,
            each * len(evaluations) if each is not None else None,
            evaluations[-1][self.pair.metric],
        )

    def run_theirs(self) -> Taken:
        """Run the peer's script to its end."""
        options = self.options
        arguments = [sys.executable, "-m", f"benchmarks.end_to_end.{self.pair.module}"]
        arguments += _options(
            {
                "model": self.model,
                "train_file": self.files["train_data_file"],
                "dev_file": self.files["dev_data_file"],
                "label_file": self.files.get("label_file"),
                "max_seq_length": options.max_seq_length,
                "num_train_epochs": options.epochs,
                "max_steps": options.max_steps,
                "per_device_train_batch_size": options.batch_size,
                "per_device_eval_batch_size": options.batch_size,
                "save_steps": options.save_steps,
                "eval_strategy": "steps",
                "eval_steps": options.eval_steps or options.save_steps,
            }
        )
        if self.precision == "bf16":
            arguments.append("--bf16")
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run_command([*arguments, "--output_dir", folder], self.environment)
            wall_clock = time.perf_counter() - began
            times = json.loads((Path(folder) / TIMES).read_text())
        speed = times["steps"] / times["stepping"]
        return Taken(wall_clock, speed, times["stepping"], times["evaluating"], times["metrics"][self.pair.peer_metric])


def _options(values: Mapping[str, object]) -> list[str]:
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def _evaluation_seconds(logged: str, steps: list[int]) -> float | None:
    """The mean of those evaluations, by the steps before them, that a training line directly precedes."""
    lines = _LOGGED.findall(logged)
    ends = [number for number, (_, step) in enumerate(lines) if not step]
    seconds = [
        (datetime.fromisoformat(lines[end][0]) - datetime.fromisoformat(lines[end - 1][0])).total_seconds()
        for end, step in zip(ends, steps, strict=True)
        if end and lines[end - 1][1] == str(step)
    ]
    return statistics.mean(seconds) if seconds else None
