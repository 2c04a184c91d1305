"""`run_classifier.py --problem_type score` and `ranking` as a user starts them, on the samples."""

import re
from pathlib import Path

import pytest

from tests.conftest import RANKING, SCORES, launcher, run_script
from tests.log_lines import (
    RANKING_LINE,
    SCORE_LINE,
    TRAINING_LINE,
    assert_refused,
    command,
    last_result,
    matches,
)

DATA = {"score": SCORES, "ranking": RANKING}


def arguments(problem: str, saved_dir: Path, **settings: object) -> list[object]:
    options = {"problem_type": problem, "max_seq_length": 32, "epochs": 1, "batch_size": 16}
    data = DATA[problem]
    return command("run_classifier.py", data / "train.txt", data / "dev.txt", saved_dir, **(options | settings))


@pytest.mark.parametrize(
    ("problem", "form", "best"), [("score", SCORE_LINE, "spearman corr"), ("ranking", RANKING_LINE, "MRR@10")]
)
def test_log_lines_to_the_letter(problem, form, best, folders):
    _, log = folders.run(problem)
    assert [int(line.group(1)) for line in matches(TRAINING_LINE, log)] == [20, 40] if problem == "score" else [20]
    assert len(matches(form, log)) == 2  # steps 30 and 45; 20 and 30
    assert re.search(rf"best dev {best}: 0\.\d{{5}} at step \d+\n", log)
    assert "accuracy" not in log


def test_they_learn_from_the_samples(folders):
    assert last_result(SCORE_LINE, folders.run("score")[1]) > 0.6
    assert last_result(RANKING_LINE, folders.run("ranking")[1]) > 0.65  # chance is 0.457


@pytest.mark.slow
def test_a_file_from_the_cache_gives_the_same_weights(tmp_path):
    """Also the warning of queries that are left out."""
    dev = tmp_path / "dev.txt"
    dev.write_text((RANKING / "dev.txt").read_text() + "没有答案的问题？\t不相关\t0\n")
    for problem in DATA:
        settings = {"dev_data_file": dev} if problem == "ranking" else {}
        runs = {
            name: run_script(*arguments(problem, tmp_path / problem / name, max_steps=2, **settings, **options)).stderr
            for name, options in {
                "plain": {},
                "first": {"cache_dir": tmp_path / "cache"},
                "second": {"cache_dir": tmp_path / "cache"},
            }.items()
        }
        assert runs["second"].count("from the cache") == 2
        left_out = [log.count("queries without a relevant candidate are left out: 1") for log in runs.values()]
        assert left_out == [problem == "ranking"] * 3
        plain, first, second = (
            (tmp_path / problem / name / "pytorch_model.bin").read_bytes() for name in ("plain", "first", "second")
        )
        assert plain == first == second


@pytest.mark.slow
def test_two_processes_log_once(tmp_path):
    done = run_script(*arguments("ranking", tmp_path, logging_steps=1, batch_size=4), launcher=launcher())
    assert len(matches(TRAINING_LINE, done.stderr)) == 6  # 42 groups
    assert len(matches(RANKING_LINE, done.stderr)) == 1


def test_pairs_have_scores_too(tmp_path):
    (tmp_path / "pairs.txt").write_text("好\t不错\t4.5\n好\t坏\t0\n差\t坏\t4\n")
    files = {"train_data_file": tmp_path / "pairs.txt", "dev_data_file": tmp_path / "pairs.txt"}
    done = run_script(*arguments("score", tmp_path / "saved", is_text_pair=True, **files))
    assert len(matches(SCORE_LINE, done.stderr)) == 1


@pytest.mark.parametrize(
    ("problem", "name", "lines", "message"),
    [
        ("score", "train_data_file", "好\t5\n好\tbad\n", ":2: expected a number as score (text⇥score), got 'bad'"),
        ("score", "dev_data_file", "好\t5\n坏\t5\n", ": expected scores that differ, to correlate with, got only 5"),
        ("ranking", "train_data_file", "q\tp\tn\nq\tp\n", ":2: expected 3 columns (query⇥positive⇥negative), got 2"),
        ("ranking", "dev_data_file", "q\tp\tn\n", ":1: expected a number as relevance (query⇥candidate⇥relevance)"),
        ("ranking", "dev_data_file", "q\tp\t0\n", ": expected queries with a relevant candidate"),
    ],
)
def test_mistakes_name_the_line(problem, name, lines, message, tmp_path):
    (tmp_path / "bad.txt").write_text(lines)
    assert_refused(f"bad.txt{message}", *arguments(problem, tmp_path / "saved", **{name: tmp_path / "bad.txt"}))
