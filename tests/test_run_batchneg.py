"""The script itself, as a user starts it, on the embedded checkpoint and samples; and weights between the scripts."""

import json
import re

import pytest
import torch

from bertorch.data.fingerprint import file_digest
from tests.conftest import MATCHING, PARAPHRASES, RANKING, SENTENCES, STS, TINY, launcher, run_script
from tests.log_lines import CORRELATION_LINE, TRAINING_LINE, assert_refused, command, last_result, matches


def arguments(saved_dir, **settings):
    return command("run_batchneg.py", PARAPHRASES, STS, saved_dir, **settings)


def test_log_lines_to_the_letter(folders):
    _, log = folders.run("batchneg")
    lines = [tuple(map(int, line.groups())) for line in matches(TRAINING_LINE, log)]
    assert lines == [(20, 2, 8)]  # 360 pairs, 12 steps an epoch
    assert len(matches(CORRELATION_LINE, log)) == 2  # steps 20 and the last, 24


def test_it_learns_from_paraphrases(folders):
    first, last = [float(line.group(1)) for line in matches(CORRELATION_LINE, folders.run("batchneg")[1])]
    assert last > 0.5
    assert last > first - 0.05


@pytest.mark.slow
def test_weights_go_from_simcse_to_batchneg_to_sentencebert(folders, tmp_path):
    settings = {"max_steps": 1, "learning_rate": 0}
    start = {"pooling_mode": "mean", "init_from_ckpt": folders["simcse"]}
    done = run_script(*arguments(tmp_path / "batchneg", **settings, **start))
    assert re.search(r"loaded (\d+) of \1 tensors", done.stderr)

    start = {"output_emb_size": 32, "init_from_ckpt": folders["batchneg"] / "pytorch_model.bin"}
    files = (MATCHING / "train.txt", MATCHING / "dev.txt", tmp_path / "sentencebert")
    done = run_script(*command("run_sentencebert.py", *files, **settings, **start))
    assert "missing: classifier.bias, classifier.weight\n" in done.stderr
    assert "unexpected" not in done.stderr
    before, after = (
        torch.load(path / "pytorch_model.bin", weights_only=True) for path in (folders["batchneg"], files[2])
    )
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_scores_train_too(folders):
    _, log = folders.run("cosent")
    assert "with one score only, which give no gradient: 0 of 8 (0.0%)" in log
    assert len(matches(TRAINING_LINE, log)) == 1  # 120 pairs, 8 steps an epoch
    assert last_result(CORRELATION_LINE, log) > 0.6
    assert [line.split(" dimensions: ")[0].split()[-1] for line in log.splitlines() if " dimensions: " in line] == [
        *("128", "64", "32")
    ]


def test_a_share_of_the_scored_pairs_is_enough_to_evaluate(tmp_path):
    settings = {"train_data_file": STS.with_name("train.txt"), "pretrained_model_name_or_path": TINY, "max_steps": 1}
    settings |= {"loss": "cosine_mse", "score_range": "0,5", "dev_ratio": 0.2, "saved_dir": tmp_path}
    done = run_script("run_batchneg.py", *(part for name, value in settings.items() for part in (f"--{name}", value)))
    assert "train: 96 examples, dev: 24, 1 optimisation steps" in done.stderr
    assert len(matches(CORRELATION_LINE, done.stderr)) == 1


def test_two_files_are_reported_one_by_one(folders):
    """Pairs, and groups of five texts."""
    folder, log = folders.run("prompts")
    assert f"{folder.with_suffix('.train')}: 64 examples, 4 batches an epoch, examples cut 0 of 64 (0.0%)" in log
    assert f"{RANKING / 'train.txt'}: 42 examples, 3 batches an epoch, examples cut 0 of 42 (0.0%)" in log
    assert "train: 106 examples, dev: 160, 7 optimisation steps" in log
    record = json.loads((folder / "run.json").read_text())["options"]
    assert record["content of --more_train_data_files"] == [file_digest(str(RANKING / "train.txt"))]
    assert f"`{folder.with_suffix('.train')}`, `{RANKING / 'train.txt'}`" in (folder / "README.md").read_text()


def test_the_folder_has_the_prompts(folders):
    folder, _ = folders.run("prompts")
    saved = json.loads((folder / "config.json").read_text())["bertorch"]
    assert (saved["query_prompt"], saved["passage_prompt"]) == ("查询：", "文章：\n")
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {"query": "查询：", "document": "文章：\n"}
    assert settings["default_prompt_name"] is None
    assert "encode_query" in (folder / "README.md").read_text()
    plain = json.loads((folders["batchneg"] / "config_sentence_transformers.json").read_text())
    assert (plain["prompts"], plain["similarity_fn_name"]) == ({}, "cosine")
    assert "prompt" not in (folders["batchneg"] / "config.json").read_text()


def test_an_error_names_the_file_and_another_file_is_another_run(folders, tmp_path):
    lines = PARAPHRASES.read_text().splitlines()[:20]
    (tmp_path / "bad.txt").write_text("\n".join([*lines, "一列"]))
    assert_refused("bad.txt:21: expected", *arguments(tmp_path / "a", more_train_data_files=tmp_path / "bad.txt"))
    folder, _ = folders.run("prompts")
    (tmp_path / "other.txt").write_text("\n".join(lines))
    train = {"train_data_file": folder.with_suffix(".train"), "more_train_data_files": tmp_path / "other.txt"}
    others = {"pooling_mode": "mean", "batch_size": 16, "learning_rate": 3e-4, "epochs": 1, "max_seq_length": 32}
    for query, message in (
        ("查询：", "\n  content of --more_train_data_files: ['"),
        ("问：", "\n  --query_prompt: '查询：' there, '问：' now"),
    ):
        prompts = {"query_prompt": query, "passage_prompt": "文章：\n"}
        log = run_script(*arguments(folder, **train, **others, **prompts), check=2).stderr
        assert message in log
        assert log.count("\n  ") == 1


@pytest.mark.slow
def test_hard_negatives_on_two_processes(tmp_path):
    """Each pair with the anchor of the next one as its hard negative."""
    rows = [line.split("\t") for line in PARAPHRASES.read_text().splitlines()]
    lines = ["\t".join([*row, follower[0]]) for row, follower in zip(rows, [*rows[1:], rows[0]], strict=True)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    settings = {"train_data_file": tmp_path / "train.txt", "epochs": 1, "logging_steps": 3, "gather_negatives": True}
    done = run_script(*arguments(tmp_path / "saved", **settings), launcher=launcher())
    assert len(matches(TRAINING_LINE, done.stderr)) == 2  # 360 rows, 64 a step
    assert last_result(CORRELATION_LINE, done.stderr) > 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_data_file": SENTENCES}, "train.txt:1: expected at least 2 columns (anchor⇥positive), got 1"),
        ({"loss": "cosent"}, "train.txt:1: expected 3 columns (a⇥b⇥score), got 2"),
        ({"matryoshka": "64,256"}, "--matryoshka: expected at most the 128 dimensions of an embedding, got 256"),
        ({"dev_data_file": SENTENCES}, "train.txt:1: expected 3 columns (a⇥b⇥score), got 1"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(settings, message, tmp_path):
    assert_refused(message, *arguments(tmp_path, **settings))
