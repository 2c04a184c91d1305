"""The script itself, as a user starts it, on the embedded checkpoint and samples."""

import math

import pytest
import torch

from tests.conftest import MATCHING, NLI, REVIEWS, launcher, run_script
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
def test_a_model_of_inference_learns_to_match_with_a_new_head(folders, tmp_path):
    settings = {"pooling_mode": "cls", "output_emb_size": 16, "max_seq_length": 32, "max_steps": 1, "learning_rate": 0}
    settings |= {"init_from_ckpt": folders["nli"]}
    assert_refused("--new_head leaves it out", *arguments(MATCHING, tmp_path, **settings))
    run_script(*arguments(MATCHING, tmp_path, **settings), "--new_head")
    before, after = (torch.load(path / "pytorch_model.bin", weights_only=True) for path in (folders["nli"], tmp_path))
    assert after["classifier.weight"].shape == (2, 48)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.slow
def test_its_encoder_goes_into_a_classifier(folders, tmp_path):
    data = REVIEWS / "train.txt", REVIEWS / "dev.txt"
    settings = {"label_file": REVIEWS / "labels.txt", "init_from_ckpt": folders["nli"], "max_steps": 1}
    classifier = command("run_classifier.py", *data, tmp_path, **settings)
    assert_refused("--new_head leaves it out", *classifier)
    assert "unexpected: emb_reduce_linear.bias" in run_script(*classifier, "--new_head").stderr
    continued = command("run_classifier.py", NLI / "train.txt", NLI / "dev.txt", tmp_path / "again")
    continued += ["--is_text_pair", "--label_file", NLI / "labels.txt", "--pretrained_model_name_or_path", tmp_path]
    assert_refused(f"add --init_from_ckpt {tmp_path} --new_head", *continued)


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
        (NLI, {}, "train.txt:1: expected one of the labels (0, 1), got 'neutral'; --is_nli with a --label_file is for"),
        (NLI, {"is_nli": True, "label_file": MATCHING / "labels.txt"}, "expected one of the labels (0, 1), got"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(data, settings, message, tmp_path):
    assert_refused(message, *arguments(data, tmp_path, **settings))
