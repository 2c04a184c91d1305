"""The script itself, as a user starts it, on the embedded checkpoint and samples."""

import math

import pytest

from tests.conftest import MATCHING, NLI, launcher, run_script
from tests.log_lines import ACCURACY_LINE, ACCURATE_TRAINING_LINE, command, last_result, matches


def arguments(data, saved_dir, **settings):
    return command("run_sentencebert.py", data / "train.txt", data / "dev.txt", saved_dir, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on question pairs, long enough to learn something."""
    folder = tmp_path_factory.mktemp("matching")
    settings = {"pooling_mode": "mean", "epochs": 4, "batch_size": 16, "learning_rate": 3e-4, "save_steps": 100}
    return folder, run_script(*arguments(MATCHING, folder, **settings))


def test_log_lines_to_the_letter(trained):
    _, done = trained
    steps = [int(line.group(1)) for line in matches(ACCURATE_TRAINING_LINE, done)]
    assert steps == list(range(20, 4 * math.ceil(900 / 16), 20))
    assert len(matches(ACCURACY_LINE, done)) == 3  # steps 100, 200 and the last
    assert "best dev accuracy: 0." in done.stderr


def test_it_learns_to_match_questions(trained):
    _, done = trained
    assert last_result(ACCURACY_LINE, done) > 0.65  # chance is 0.5


def test_it_warm_starts_where_it_ended(trained, tmp_path):
    folder, done = trained
    settings = {"pooling_mode": "mean", "epochs": 1, "learning_rate": 0, "init_from_ckpt": folder / "pytorch_model.bin"}
    again = run_script(*arguments(MATCHING, tmp_path, **settings))
    assert last_result(ACCURACY_LINE, again) == last_result(ACCURACY_LINE, done)
    assert "missing" not in again.stderr


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
    steps = [int(line.group(1)) for line in matches(ACCURATE_TRAINING_LINE, done)]
    assert steps == list(range(2, math.ceil(300 / 64) + 1, 2))
    assert len(matches(ACCURACY_LINE, done)) == 1
    assert '"entailment"' in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (NLI, {}, "train.txt:1: expected one of the labels (0, 1), got 'neutral'"),
        (NLI, {"is_nli": True, "label_file": MATCHING / "labels.txt"}, "expected one of the labels (0, 1), got"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(data, settings, message, tmp_path):
    done = run_script(*arguments(data, tmp_path, **settings), check=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
