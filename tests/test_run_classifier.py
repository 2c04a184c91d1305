"""The script itself, as a user starts it, on the embedded checkpoint and samples."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import MATCHING, REVIEWS, ROOT, launcher, run_script
from tests.log_lines import ACCURACY_LINE, ACCURATE_TRAINING_LINE, assert_refused, command, last_result, matches


def arguments(data: Path, saved_dir: Path, **settings: object) -> list[object]:
    options = {"label_file": data / "labels.txt", "max_seq_length": 48}
    return command("run_classifier.py", data / "train.txt", data / "dev.txt", saved_dir, **(options | settings))


def test_log_lines_to_the_letter(folders):
    _, log = folders.run("classifier")
    lines = matches(ACCURATE_TRAINING_LINE, log)
    assert [tuple(map(int, line.groups())) for line in lines] == [(20, 2, 5), (40, 3, 10)]
    assert len(matches(ACCURACY_LINE, log)) == 3  # steps 20, 40 and the last, 45
    assert re.search(r"best dev accuracy: 0\.\d{5} at step \d+\n", log)
    assert log.endswith("pytorch_model.bin\n")
    assert "\x1b" not in log  # no colours and no progress bar in a file
    assert "it/s" not in log


def test_it_learns_from_the_reviews(folders):
    assert last_result(ACCURACY_LINE, folders.run("classifier")[1]) > 0.7  # chance is 0.5


def test_it_warm_starts_where_it_ended(folders, tmp_path):
    folder, log = folders.run("classifier")
    settings = {"max_seq_length": 32, "max_steps": 1, "learning_rate": 0, "init_from_ckpt": folder}
    again = run_script(*arguments(REVIEWS, tmp_path, **settings))
    assert last_result(ACCURACY_LINE, again.stderr) == last_result(ACCURACY_LINE, log)
    assert "loaded 105 of 105 tensors" in again.stderr
    first, second = (torch.load(path / "pytorch_model.bin", weights_only=True) for path in (folder, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch.distributed.run", "torch.distributed.launch"])
def test_two_processes_log_and_save_once(module, tmp_path):
    """`torch.distributed.launch` passes `--local-rank`; torchrun, which is `torch.distributed.run`, does not."""
    done = run_script(
        *arguments(MATCHING, tmp_path, epochs=1, logging_steps=2),
        "--is_text_pair",
        launcher=launcher(module),
    )
    steps = [line.groups()[0] for line in matches(ACCURATE_TRAINING_LINE, done.stderr)]
    pairs = len((MATCHING / "train.txt").read_text().splitlines())
    total_steps = math.ceil(pairs / 64)  # as one process with batch 64
    assert steps == [str(step) for step in range(2, total_steps + 1, 2)]
    assert len(matches(ACCURACY_LINE, done.stderr)) == 1
    assert done.stderr.count(f"weights of step {total_steps}") == 1
    assert (tmp_path / "pytorch_model.bin").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_data_file": "nowhere.txt"}, "nowhere.txt: expected a readable text file, got: No such file"),
        ({"train_data_file": ROOT / "data/matching/train.txt"}, "train.txt:1: expected 2 columns (text⇥label), got 3"),
        ({"label_file": "/dev/null"}, "/dev/null: expected a readable text file, got a device"),
        ({"max_seq_length": 600}, "--max_seq_length 600: expected at most 512, the positions that bert has"),
        ({"pretrained_model_name_or_path": "./nowhere"}, "--pretrained_model_name_or_path ./nowhere: expected a model"),
        ({"precision": "fp16"}, "--precision fp16 needs a CUDA GPU"),
        ({"init_from_ckpt": "nowhere.bin"}, "nowhere.bin: expected a .bin or .safetensors file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(settings, message, tmp_path):
    assert_refused(message, *arguments(REVIEWS, tmp_path, **settings))


def test_bad_lines_can_be_skipped(tmp_path):
    lines = (REVIEWS / "dev.txt").read_text().splitlines()[:20]
    (tmp_path / "train.txt").write_text("\n".join(["no label", *lines, "text\tunknown"]))
    files = {"train_data_file": tmp_path / "train.txt", "epochs": 1, "on_bad_line": "skip"}
    done = run_script(*arguments(REVIEWS, tmp_path / "saved", **files))
    assert done.stdout == ""
    assert "skipped malformed lines: 2; the first: " in done.stderr
    assert "train: 20 examples" in done.stderr


@pytest.mark.slow
def test_json_lines_train_as_columns(tmp_path):
    rows = [line.split("\t") for line in (REVIEWS / "train.txt").read_text().splitlines()[:64]]
    (tmp_path / "train.txt").write_text("\n".join(map("\t".join, rows)))
    objects = [{"id": number, "text": text, "label": label} for number, (text, label) in enumerate(rows)]
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, objects)))
    weights = []
    for name in ("train.txt", "train.json"):
        saved = tmp_path / f"saved {name}"
        run_script(*arguments(REVIEWS, saved, train_data_file=tmp_path / name, dev_data_file=tmp_path / name, epochs=1))
        weights.append((saved / "pytorch_model.bin").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_second_run_takes_the_tokens_from_the_cache(tmp_path):
    lines = (REVIEWS / "train.txt").read_text().splitlines()[:40]
    (tmp_path / "train.txt").write_text("\n".join([*lines, "no label"]))
    files = {"train_data_file": tmp_path / "train.txt", "epochs": 1, "on_bad_line": "skip"}
    runs = {
        "plain": run_script(*arguments(REVIEWS, tmp_path / "plain", **files)),
        "first": run_script(*arguments(REVIEWS, tmp_path / "first", **files, cache_dir=tmp_path / "cache")),
        "second": run_script(*arguments(REVIEWS, tmp_path / "second", **files, cache_dir=tmp_path / "cache")),
    }
    told = {name: re.findall(r"txt: \d+ examples(.*) ", done.stderr) for name, done in runs.items()}
    assert told["plain"] == []
    assert [bool(re.fullmatch(r", tokenised in \d+\.\d s, cached in", line)) for line in told["first"]] == [True, True]
    assert told["second"] == [" from the cache"] * 2
    assert all("skipped malformed lines: 1; the first: " in done.stderr for done in runs.values())
    weights = {name: (tmp_path / name / "pytorch_model.bin").read_bytes() for name in runs}
    assert weights["plain"] == weights["first"] == weights["second"]
