"""Several labels, or a score, as a user of transformers' Trainer would train them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from benchmarks.end_to_end.peer_script import Inputs, StepTimes, columns


@dataclass
class Problem:
    """The problem type, as transformers names it."""

    problem_type: str


def main() -> None:
    """Train and evaluate."""
    parser = HfArgumentParser((Inputs, Problem, TrainingArguments))
    inputs, problem, arguments = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(inputs.model)
    has_labels = problem.problem_type == "multi_label_classification"

    def examples(path: str) -> list[dict[str, Any]]:
        *texts, targets = columns(path)
        rows = tokenizer(*texts, truncation=True, max_length=inputs.max_seq_length)
        labels = [_row(target, inputs.labels) if has_labels else float(target) for target in targets]
        return [{**{name: rows[name][i] for name in rows}, "labels": label} for i, label in enumerate(labels)]

    Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            inputs.model, num_labels=len(inputs.labels) if has_labels else 1, problem_type=problem.problem_type
        ),
        args=arguments,
        train_dataset=examples(inputs.train_file),
        eval_dataset=examples(inputs.dev_file),
        processing_class=tokenizer,
        compute_metrics=_f1 if has_labels else _correlation,
        callbacks=[StepTimes()],
    ).train()


def _row(target: str, labels: list[str]) -> list[float]:
    present = target.split(",")
    return [float(label in present) for label in labels]


def _f1(prediction: Any) -> dict[str, float]:
    predicted, gold = prediction.predictions > 0, prediction.label_ids > 0  # (N, C)
    right, total = (predicted & gold).sum(axis=0), predicted.sum(axis=0) + gold.sum(axis=0)  # (C,)
    return {"micro_f1": 2 * right.sum() / total.sum(), "macro_f1": float(np.mean(2 * right / np.maximum(total, 1)))}


def _correlation(prediction: Any) -> dict[str, float]:
    return {"spearman": float(stats.spearmanr(prediction.predictions.squeeze(-1), prediction.label_ids).statistic)}


if __name__ == "__main__":
    main()
