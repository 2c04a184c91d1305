"""The command lines and the log lines of the scripts, to the letter."""

import re
from pathlib import Path

from tests.conftest import TINY, run_script

LOGURU = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \| INFO     \| bertorch\.[\w.]+:\w+:\d+ - "
_STEP = r"global step: (\d+), epoch: (\d+), batch: (\d+), loss: \d+\.\d{5}, "
_SPEED = r"speed: \d+\.\d\d step/s"
TRAINING_LINE = re.compile(LOGURU + _STEP + _SPEED)
ACCURATE_TRAINING_LINE = re.compile(LOGURU + _STEP + r"accuracy: [01]\.\d{5}, " + _SPEED)
ACCURACY_LINE = re.compile(LOGURU + r"eval loss: \d+\.\d{5}, accuracy: ([01]\.\d{5})")
F1_LINE = re.compile(LOGURU + r"eval loss: \d+\.\d{5}, F1: ([01]\.\d{5})")
SCORE_LINE = re.compile(LOGURU + r"eval loss: \d+\.\d{5}, spearman corr: (-?[01]\.\d{4}), pearson corr: -?[01]\.\d{4}")
RETRIEVAL_LINE = RANKING_LINE = re.compile(LOGURU + r"MRR@10: ([01]\.\d{5}), nDCG@10: [01]\.\d{5}")
CORRELATION_LINE = re.compile(LOGURU + r"spearman corr: (-?[01]\.\d{4}), pearson corr: -?[01]\.\d{4}")


def command(script: str, train: Path, dev: Path, saved_dir: Path, **settings: object) -> list[object]:
    """A script with its options, on the embedded checkpoint; an option that is True has no value."""
    options = {
        "train_data_file": train,
        "dev_data_file": dev,
        "pretrained_model_name_or_path": TINY,
        "saved_dir": saved_dir,
    }
    flat: list[object] = [script]
    for name, value in (options | settings).items():
        flat += [f"--{name}"] if value is True else [f"--{name}", value]
    return flat


def matches(pattern: re.Pattern[str], log: str) -> list[re.Match[str]]:
    """The lines of a run's log that are of this form."""
    return [match for line in log.splitlines() if (match := pattern.fullmatch(line))]


def last_result(pattern: re.Pattern[str], log: str) -> float:
    """The dev metric of the last evaluation."""
    return float(matches(pattern, log)[-1].group(1))


def assert_refused(message: str, *arguments: object) -> None:
    """A mistake ends a script before its first step, with exit code 2 and without a traceback."""
    log = run_script(*arguments, check=2).stderr
    assert message in log
    assert "Traceback" not in log
    assert "global step" not in log
