"""What `--dev_ratio` drew, written down and read back."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from transformers import AutoTokenizer

from bertorch.data.load import load_examples
from bertorch.tasks.sequence_task import labelled_texts
from bertorch.training.drawn_examples import DRAWN
from tests.conftest import REVIEWS, TINY
from tests.short_runs import config, trained
from tests.small_tasks import tiny_classification_task

LABELS = ["negative", "positive"]
READ = partial(labelled_texts, label_names=LABELS, num_texts=1)


def tokens_of(examples) -> torch.Tensor:
    return examples.batch(np.arange(len(examples))).input_ids


def test_a_run_says_which_lines_it_evaluates_on(tmp_path):
    train_file = REVIEWS / "train.txt"
    options = replace(config(tmp_path), train_data_file=str(train_file), dev_data_file=None, dev_ratio=0.1)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    train, dev = load_examples(options, tokenizer, READ, READ)
    settings = {"train_data_file": str(train_file), "dev_data_file": None, "dev_ratio": 0.1, "max_steps": 1}
    trained(tmp_path / "saved", tiny_classification_task(LABELS), train, dev, **settings)

    written = json.loads((tmp_path / "saved" / DRAWN).read_text())
    assert {name: written[name] for name in ("train_data_file", "dev_ratio", "seed")} == {
        "train_data_file": str(train_file),
        "dev_ratio": 0.1,
        "seed": options.seed,
    }
    lines = train_file.read_text().splitlines(keepends=True)
    numbers = written["examples"]
    (tmp_path / "dev").write_text("".join(lines[number - 1] for number in numbers))
    (tmp_path / "train").write_text("".join(line for number, line in enumerate(lines, 1) if number not in numbers))
    for name, examples in (("train", train), ("dev", dev)):
        again = READ(str(tmp_path / name), tokenizer=tokenizer, max_length=options.max_seq_length, on_bad_line="stop")
        assert torch.equal(tokens_of(again), tokens_of(examples))


def test_a_run_with_a_dev_file_drew_none(tmp_path):
    options = config(tmp_path, train_data_file=str(REVIEWS / "train.txt"), dev_data_file=str(REVIEWS / "dev.txt"))
    train, dev = load_examples(options, AutoTokenizer.from_pretrained(TINY), READ, READ)
    trained(tmp_path / "saved", tiny_classification_task(LABELS), train, dev, max_steps=1)
    assert not (tmp_path / "saved" / DRAWN).exists()
