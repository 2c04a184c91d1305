"""What the contenders of a comparison are given."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measuring import DATA
from bertorch.data.readers import read_label_names

SAMPLES: dict[str, dict[str, str | None]] = {
    "classifier": {
        "train_data_file": str(DATA / "reviews" / "train.txt"),
        "dev_data_file": str(DATA / "reviews" / "dev.txt"),
        "label_file": str(DATA / "reviews" / "labels.txt"),
    },
    "sentencebert": {
        "train_data_file": str(DATA / "matching" / "train.txt"),
        "dev_data_file": str(DATA / "matching" / "dev.txt"),
    },
    "batchneg": {
        "train_data_file": str(DATA / "paraphrases" / "train.txt"),
        "dev_data_file": str(DATA / "sts" / "dev.txt"),
    },
    "cosent": {
        "train_data_file": str(DATA / "sts" / "train.txt"),
        "dev_data_file": str(DATA / "sts" / "dev.txt"),
    },
    "ranking": {
        "train_data_file": str(DATA / "ranking" / "train.txt"),
        "dev_data_file": str(DATA / "ranking" / "dev.txt"),
    },
}
TASKS = tuple(SAMPLES)
# Tasks that are evaluated after training, and by what.
EVALUATED = {"classifier": "accuracy", "cosent": "spearman", "ranking": "mrr"}


@dataclass(frozen=True)
class Job:
    """The work of a comparison, the same for all contenders.

    Attributes:
        task: a key of `SAMPLES`.
        model: hub name or local folder of the encoder.
        train_data_file: an example for each place in each batch of a run of one epoch.
        dev_data_file: to evaluate on after training; None does not.
        labels: the classes in the order of their ids; none where the task has no classes.
        batch_size: examples of a step, groups of a ranking.
        max_length: tokens kept of a text.
        precision: `fp32` or `bf16`.
        seed: of order and dropout.
    """

    task: str
    model: str
    train_data_file: str
    dev_data_file: str | None
    labels: tuple[str, ...]
    batch_size: int
    max_length: int
    precision: str
    seed: int = 0


def labels_of(task: str, label_file: str | None) -> tuple[str, ...]:
    """The classes of a task, `0` and `1` without a label file."""
    if task in ("batchneg", "cosent", "ranking"):
        return ()
    return ("0", "1") if label_file is None else tuple(read_label_names(label_file))


def write_sample(source: str, target: Path, examples: int) -> None:
    """Draw so many lines from a file, always the same ones: all of them before any comes again."""
    lines = Path(source).read_bytes().decode("utf-8-sig").rstrip("\r\n").split("\n")
    generator = np.random.default_rng(0)
    epochs = -(-examples // len(lines))
    numbers = np.concatenate([generator.permutation(len(lines)) for _ in range(epochs)])[:examples]
    target.write_text("".join(f"{lines[number]}\n" for number in numbers), encoding="utf-8")
