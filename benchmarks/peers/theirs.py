"""The peers' runs: `Trainer` of transformers and that of sentence-transformers, which derives from it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss, SoftmaxLoss
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.peers.job import Job
from benchmarks.peers.watching import Evaluation, Stopwatch
from bertorch.data.readers import read_labelled_texts, read_pairs


def train_classifier(job: Job, watch: Stopwatch, folder: Path, *, torch_compile: bool) -> Evaluation | None:
    """transformers Trainer on texts tokenised beforehand, padded to the longest of a batch."""
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    examples = _tokenized(tokenizer, job, job.train_data_file)
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            job.model, num_labels=len(job.labels), dtype=torch.float32
        ),
        args=_arguments(TrainingArguments, job, folder, torch_compile=torch_compile),
        train_dataset=examples,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_accuracy,
        callbacks=[_StepWatcher(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if job.dev_data_file is None:
        return None
    dev = _tokenized(tokenizer, job, job.dev_data_file)
    return Evaluation.of(lambda: trainer.evaluate(dev)["eval_accuracy"], len(dev), trainer.args.device)


def train_softmax_loss(job: Job, watch: Stopwatch, folder: Path) -> None:
    """sentence-transformers with SoftmaxLoss: a classifier over u, v and |u−v|."""
    examples = read_labelled_texts(job.train_data_file, job.labels, num_texts=2)
    first, second = examples.columns
    columns = {"sentence1": list(first), "sentence2": list(second), "label": examples.labels.tolist()}
    _train_embeddings(
        job,
        watch,
        folder,
        columns,
        lambda model: SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=len(job.labels)),
    )


def train_ranking_loss(job: Job, watch: Stopwatch, folder: Path) -> None:
    """sentence-transformers with MultipleNegativesRankingLoss: in-batch negatives."""
    anchors, positives, *negatives = read_pairs(job.train_data_file)
    columns = {"anchor": list(anchors), "positive": list(positives)}
    columns |= {f"negative_{number}": list(texts) for number, texts in enumerate(negatives, start=1)}
    _train_embeddings(job, watch, folder, columns, MultipleNegativesRankingLoss)


def _train_embeddings(
    job: Job, watch: Stopwatch, folder: Path, columns: dict[str, list[Any]], loss_of: Callable[[Any], Any]
) -> None:
    import datasets  # noqa: PLC0415 - Trainer itself does without

    # A folder that is no sentence encoder yet gets mean pooling.
    model = SentenceTransformer(job.model, model_kwargs={"dtype": torch.float32})
    model.max_seq_length = job.max_length
    trainer = SentenceTransformerTrainer(
        model=model,
        args=_arguments(SentenceTransformerTrainingArguments, job, folder),
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=loss_of(model),
        callbacks=[_StepWatcher(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class _StepWatcher(TrainerCallback):  # type: ignore[misc] # transformers is not followed
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._watch.step()


def _arguments(kind: Any, job: Job, folder: Path, **others: Any) -> Any:
    """Where the defaults of a Trainer's arguments are not those of the job.

    Its defaults are clipping at 1, fused AdamW without decay and the linear schedule from 5e-5, like ours.
    """
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=job.batch_size,
        num_train_epochs=1,
        bf16=job.precision == "bf16",
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **others,
    )


def _tokenized(tokenizer: Any, job: Job, path: str) -> list[dict[str, Any]]:
    examples = read_labelled_texts(path, job.labels)
    ids = tokenizer(list(examples.columns[0]), truncation=True, max_length=job.max_length)["input_ids"]
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, examples.labels.tolist(), strict=True)]


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=-1) == prediction.label_ids))}


Run = Callable[[Job, Stopwatch, Path], Evaluation | None]
PEERS: dict[str, dict[str, Run]] = {
    "classifier": {"transformers Trainer": partial(train_classifier, torch_compile=False)},
    "sentencebert": {"sentence-transformers SoftmaxLoss": train_softmax_loss},
    "batchneg": {"sentence-transformers MultipleNegativesRankingLoss": train_ranking_loss},
}
# Where the kernels of the compiler pay.
PEERS_ON_GPU: dict[str, dict[str, Run]] = {
    "classifier": {"transformers Trainer, torch_compile": partial(train_classifier, torch_compile=True)},
}
