"""The script itself, as a user starts it, on the embedded checkpoint and samples."""

import json
import re

import pytest

from tests.conftest import PARAPHRASES, REVIEWS, SENTENCES, STS, launcher, run_script
from tests.log_lines import CORRELATION_LINE, TRAINING_LINE, assert_refused, command, last_result, matches


def arguments(saved_dir, **settings):
    return command("run_simcse.py", SENTENCES, STS, saved_dir, **({"pooling_mode": "mean"} | settings))


def test_log_lines_to_the_letter(folders):
    folder, log = folders.run("simcse")
    lines = [tuple(map(int, line.groups())) for line in matches(TRAINING_LINE, log)]
    assert lines == [(5, 1, 5), (10, 1, 10), (15, 1, 15)]  # 500 sentences, one epoch
    assert len(matches(CORRELATION_LINE, log)) == 2
    assert last_result(CORRELATION_LINE, log) > 0.5
    assert re.search(r"best dev spearman corr: 0\.\d{5} at step \d+\n", log)
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.2
    assert (folder / "modules.json").is_file()


@pytest.mark.slow
def test_two_processes_with_gathered_negatives_in_micro_batches(tmp_path):
    settings = {"gather_negatives": True, "micro_batch_size": 3, "batch_size": 32, "logging_steps": 2}
    done = run_script(*arguments(tmp_path, **settings), launcher=launcher("torch.distributed.launch"))
    assert len(matches(TRAINING_LINE, done.stderr)) == 4  # 500 sentences, 64 a step
    assert len(matches(CORRELATION_LINE, done.stderr)) == 1
    assert done.stderr.count("weights of step 8") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_data_file": PARAPHRASES}, "train.txt:1: expected 1 column (sentence), got 2"),
        (
            {"dev_data_file": REVIEWS},
            "reviews: expected a file, or a folder with corpus.jsonl, queries.jsonl, qrels.tsv",
        ),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(settings, message, tmp_path):
    assert_refused(message, *arguments(tmp_path, **settings))
