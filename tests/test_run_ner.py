"""The script itself, as a user starts it, on the embedded checkpoint and samples."""

import json
import re

import pytest
import torch

from bertorch.config import NERConfig
from bertorch.errors import UserError
from bertorch.inference.load import load_trained
from bertorch.training.metrics_file import METRICS, read_metrics
from run_ner import run
from tests.conftest import NER, TINY, launcher, run_script
from tests.log_lines import F1_LINE, TRAINING_LINE, assert_refused, command, last_result, matches


def arguments(saved_dir, **settings):
    options = {"label_file": NER / "labels.txt"}
    return command("run_ner.py", NER / "train.json", NER / "dev.json", saved_dir, **(options | settings))


def test_log_lines_to_the_letter(folders):
    _, log = folders.run("ner with a CRF")
    lines = [tuple(map(int, line.groups())) for line in matches(TRAINING_LINE, log)]
    assert lines == [(20, 2, 10), (40, 4, 10)]  # 320 sentences, 10 steps an epoch
    assert len(matches(F1_LINE, log)) == 2  # step 25 and the last, 40
    assert "learning rate: 0.001, of the head: 0.005" in log
    assert re.search(r"precision  recall      F1  support\n.*PER +0\.\d{5} 0\.\d{5} 0\.\d{5} +\d+\n", log)
    assert re.search(r"best dev F1: 0\.\d{5} at step \d+\n", log)


def test_it_learns_to_find_entities(folders):
    assert last_result(F1_LINE, folders.run("ner with a CRF")[1]) > 0.45


def test_it_warm_starts_where_it_ended(folders, tmp_path):
    folder, log = folders.run("ner with a CRF")
    settings = {"use_crf": True, "max_seq_length": 32, "max_steps": 1, "learning_rate": 0, "crf_learning_rate": 0}
    again = run_script(*arguments(tmp_path, **settings, init_from_ckpt=folder))
    assert last_result(F1_LINE, again.stderr) == last_result(F1_LINE, log)
    assert re.search(r"loaded (\d+) of \1 tensors", again.stderr)
    assert torch.equal(*(load_trained(path).span_model.crf.transitions for path in (folder, tmp_path)))


@pytest.mark.slow
def test_short_windows_on_two_processes(tmp_path):
    """Sentences in windows of ten tokens: no entity is lost."""
    settings = {"epochs": 1, "logging_steps": 5, "max_seq_length": 10, "use_crf": True, "constrain_crf": True}
    done = run_script(*arguments(tmp_path, **settings), launcher=launcher("torch.distributed.launch"))
    assert "train: 320 examples, dev: 90, 5 optimisation steps" in done.stderr
    assert len(matches(F1_LINE, done.stderr)) == 1
    lines = (NER / "dev.json").read_text().splitlines()
    gold = sum(tag[0] in "BS" for line in lines for tag in json.loads(line)["label"])
    assert re.search(rf"micro average .* {gold}\n", done.stderr)


@pytest.mark.slow
def test_part_of_the_training_sentences_is_enough_to_evaluate_on_two_processes(tmp_path):
    options = {"train_data_file": NER / "train.json", "label_file": NER / "labels.txt", "dev_ratio": 0.2}
    options |= {"pretrained_model_name_or_path": TINY, "saved_dir": tmp_path, "max_seq_length": 32}
    options |= {"max_steps": 3, "eval_steps": 1, "logging_steps": 1, "patience": 9}
    flat = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = run_script("run_ner.py", *flat, launcher=launcher())
    assert "train: 256 examples, dev: 64, 3 optimisation steps" in done.stderr
    *lines, _ = read_metrics(tmp_path / METRICS)  # the last one says where the time went
    assert [(line["step"], "dev_F1" in line) for line in lines] == [
        (s, dev) for s in (1, 2, 3) for dev in (False, True)
    ]
    told = [f"{line['dev_F1']:.5f}" for line in lines if "dev_F1" in line]
    assert told == [line.group(1) for line in matches(F1_LINE, done.stderr)]


@pytest.mark.parametrize(
    ("settings", "warned"),
    [({}, False), ({"use_crf": True, "crf_learning_rate": 1e-3}, False), ({"crf_learning_rate": 1e-3}, True)],
)
def test_a_rate_of_the_crf_without_a_crf_is_said(settings, warned, log_lines):
    with pytest.raises(UserError, match="nowhere"):
        run(NERConfig(train_data_file="nowhere", label_file="nowhere", **settings))
    assert any("without --use_crf it changes nothing" in line for line in log_lines) is warned


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tag": "bio"}, "labels.txt:4: expected a tag of --tag bio (O, B-…, I-…), got 'S-PER'"),
        ({"train_data_file": NER / "labels.txt"}, "labels.txt:1:1: expected a JSON object"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(settings, message, tmp_path):
    assert_refused(message, *arguments(tmp_path, **settings))
