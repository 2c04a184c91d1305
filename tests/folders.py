"""A folder of each script, trained once for all tests that need one: a few epochs on the samples."""

import fcntl
from pathlib import Path

from tests.conftest import (
    MATCHING,
    NER,
    NESTED,
    NLI,
    PARAPHRASES,
    RANKING,
    REVIEWS,
    SCORES,
    SENTENCES,
    STS,
    TOPICS,
    run_script,
)
from tests.log_lines import command

# By name: the script, its data, the number of training lines (None: all), and its options.
RUNS = {
    "classifier": (
        "run_classifier.py",
        (REVIEWS / "train.txt", REVIEWS / "dev.txt", None),
        {"label_file": REVIEWS / "labels.txt", "learning_rate": 5e-4, "epochs": 3, "save_steps": 20},
    ),
    "pair classifier": (
        "run_classifier.py",
        (NLI / "train.txt", NLI / "dev.txt", 96),
        {"label_file": NLI / "labels.txt", "is_text_pair": True},
    ),
    "several labels": (
        "run_classifier.py",
        (TOPICS / "train.txt", TOPICS / "dev.txt", None),
        {
            "problem_type": "multi_label",
            "multi_label_loss": "zlpr",
            "label_file": TOPICS / "labels.txt",
            "learning_rate": 5e-4,
            "batch_size": 8,
            "epochs": 5,
            "save_steps": 25,
        },
    ),
    "score": (
        "run_classifier.py",
        (SCORES / "train.txt", SCORES / "dev.txt", None),
        {"problem_type": "score", "learning_rate": 5e-4, "epochs": 3, "batch_size": 16, "save_steps": 30},
    ),
    "ranking": (
        "run_classifier.py",
        (RANKING / "train.txt", RANKING / "dev.txt", None),
        {"problem_type": "ranking", "learning_rate": 5e-4, "epochs": 5, "batch_size": 8, "save_steps": 20},
    ),
    "matching": (
        "run_sentencebert.py",
        (MATCHING / "train.txt", MATCHING / "dev.txt", None),
        {
            "pooling_mode": "mean",
            "concat_multiply": True,
            "batch_size": 16,
            "learning_rate": 5e-4,
            "save_steps": 25,
        },
    ),
    "nli": (
        "run_sentencebert.py",
        (NLI / "train.txt", NLI / "dev.txt", 64),
        {"pooling_mode": "cls", "is_nli": True, "label_file": NLI / "labels.txt", "output_emb_size": 16},
    ),
    "simcse": (
        "run_simcse.py",
        (SENTENCES, STS, None),
        {"pooling_mode": "mean", "logging_steps": 5, "save_steps": 10, "dropout": 0.2},
    ),
    "batchneg": (
        "run_batchneg.py",
        (PARAPHRASES, STS, None),
        {
            "pooling_mode": "linear",
            "output_emb_size": 32,
            "mean_loss": True,
            "learning_rate": 3e-4,
            "epochs": 2,
            "save_steps": 20,
        },
    ),
    "cosent": (
        "run_batchneg.py",
        (STS.with_name("train.txt"), STS, None),
        {
            "loss": "cosent",
            "matryoshka": "64,32",
            "pooling_mode": "mean",
            "learning_rate": 3e-4,
            "epochs": 4,
            "batch_size": 16,
        },
    ),
    "prompts": (  # and two files: pairs, and groups with hard negatives
        "run_batchneg.py",
        (PARAPHRASES, STS, 64),
        {
            "query_prompt": "查询：",
            "passage_prompt": "文章：\n",
            "more_train_data_files": RANKING / "train.txt",
            "pooling_mode": "mean",
            "batch_size": 16,
            "learning_rate": 3e-4,
        },
    ),
    "ner": (
        "run_ner.py",
        (NER / "train.json", NER / "dev.json", 128),
        {"label_file": NER / "labels.txt", "learning_rate": 1e-3, "epochs": 4},
    ),
    "ner with a CRF": (
        "run_ner.py",
        (NER / "train.json", NER / "dev.json", None),
        {
            "label_file": NER / "labels.txt",
            "use_crf": True,
            "crf_learning_rate": 5e-3,
            "learning_rate": 1e-3,
            "epochs": 4,
            "save_steps": 25,
        },
    ),
    "nested": (
        "run_ner.py",
        (NESTED / "train.json", NESTED / "dev.json", None),
        {
            "label_file": NESTED / "labels.txt",
            "head": "global_pointer",
            "learning_rate": 1e-3,
            "epochs": 8,
            "save_steps": 24,
            "logging_steps": 24,
        },
    ),
}


class Folders:
    """The folder of a run, made when a test first asks for it, and its log.

    Args:
        base: where they are; processes that run tests at the same time may share it.
    """

    def __init__(self, base: Path) -> None:
        self._base = base

    def __getitem__(self, name: str) -> Path:
        return self.run(name)[0]

    def run(self, name: str) -> tuple[Path, str]:
        """The folder, and what the run wrote to standard error."""
        folder = self._base / name.replace(" ", "_")
        log = folder.with_suffix(".log")
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not log.exists():
                log.write_text(self._train(name, folder))
        return folder, log.read_text()

    def _train(self, name: str, folder: Path) -> str:
        script, (full, dev, lines), settings = RUNS[name]
        train = folder.with_suffix(".train")
        train.write_text("".join(full.read_text().splitlines(keepends=True)[:lines]))
        settings = {"epochs": 1, "max_seq_length": 32, "keep_checkpoints": 0} | settings
        return run_script(*command(script, train, dev, folder, **settings)).stderr
