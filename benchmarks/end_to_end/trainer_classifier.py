"""A classifier of texts, as a user of transformers' Trainer would write it."""

from typing import Any

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from benchmarks.end_to_end.peer_script import Inputs, StepTimes, columns


def main() -> None:
    """Train, evaluate, save."""
    inputs, arguments = HfArgumentParser((Inputs, TrainingArguments)).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(inputs.model)
    ids = {label: number for number, label in enumerate(inputs.labels)}

    def examples(path: str) -> list[dict[str, Any]]:
        texts, labels = columns(path)
        rows = tokenizer(texts, truncation=True, max_length=inputs.max_seq_length)["input_ids"]
        return [{"input_ids": row, "labels": ids[label]} for row, label in zip(rows, labels, strict=True)]

    Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(inputs.model, num_labels=len(ids)),
        args=arguments,
        train_dataset=examples(inputs.train_file),
        eval_dataset=examples(inputs.dev_file),
        processing_class=tokenizer,
        compute_metrics=_accuracy,
        callbacks=[StepTimes()],
    ).train()


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=-1) == prediction.label_ids))}


if __name__ == "__main__":
    main()
