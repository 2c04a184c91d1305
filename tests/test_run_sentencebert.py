"""The script itself, as a user starts it, on the embedded checkpoint and samples."""

import math

import pytest

from tests.conftest import MATCHING, NLI, launcher, run_script
from tests.log_lines import ACCURACY_LINE, ACCURATE_TRAINING_LINE, assert_refused, command, last_result, matches


def arguments(data, saved_dir, **settings):
    return command("run_sentencebert.py", data / "train.txt", data / "dev.txt", saved_dir, **settings)


def test_log_lines_to_the_letter(folders):
    _, log = folders.run("matching")
    steps = [int(line.group(1)) for line in matches(ACCURATE_TRAINING_LINE, log)]
    assert steps == [20, 40]  # 900 pairs, 57 steps
    assert len(matches(ACCURACY_LINE, log)) == 3  # steps 25, 50 and the last
    assert "best dev accuracy: 0." in log


def test_it_learns_to_match_questions(folders):
    assert last_result(ACCURACY_LINE, folders.run("matching")[1]) > 0.65  # chance is 0.5


def test_it_warm_starts_where_it_ended(folders, tmp_path):
    folder, log = folders.run("matching")
    settings = {"pooling_mode": "mean", "concat_multiply": True, "max_seq_length": 32, "max_steps": 1}
    settings |= {"learning_rate": 0, "init_from_ckpt": folder / "pytorch_model.bin"}
    again = run_script(*arguments(MATCHING, tmp_path, **settings))
    assert last_result(ACCURACY_LINE, again.stderr) == last_result(ACCURACY_LINE, log)
    assert "missing" not in again.stderr


@pytest.mark.slow
def test_inference_on_two_processes(tmp_path):
    settings = {
        "is_nli": True,
        "label_file": NLI / "labels.txt",
        "concat_multiply": True,
        "output_emb_size": 16,
        "epochs": 1,
        "logging_steps": 2,
    }
    done = run_script(*arguments(NLI, tmp_path, **settings), launcher=launcher())
    steps = [int(line.group(1)) for line in matches(ACCURATE_TRAINING_LINE, done.stderr)]
    assert steps == list(range(2, math.ceil(300 / 64) + 1, 2))
    assert len(matches(ACCURACY_LINE, done.stderr)) == 1
    assert '"entailment"' in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (NLI, {}, "train.txt:1: expected one of the labels (0, 1), got 'neutral'"),
        (NLI, {"is_nli": True, "label_file": MATCHING / "labels.txt"}, "expected one of the labels (0, 1), got"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(data, settings, message, tmp_path):
    assert_refused(message, *arguments(data, tmp_path, **settings))
