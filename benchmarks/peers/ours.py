"""This project's runs: `fit` and `evaluate`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.peers.job import Job
from benchmarks.peers.watching import Evaluation, Stopwatch
from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.data.dataset import TextRows
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.precision import Precision
from bertorch.tasks.base import Task
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.tasks.cosent import CoSENT
from bertorch.tasks.in_batch_negatives import InBatchNegatives, anchors_with_positives
from bertorch.tasks.ranking import RankingTask
from bertorch.tasks.scored_pairs import scored_pairs
from bertorch.tasks.sentence_bert import SentenceBertTask, SiameseClassifier, labelled_pairs
from bertorch.tasks.sequence_task import labelled_texts
from bertorch.training.eval_loop import evaluate
from bertorch.training.loop import fit
from bertorch.training.start import started
from bertorch.training.training_log import TrainingLog


def train(job: Job, watch: Stopwatch, folder: Path, **options: Any) -> Evaluation | None:
    """Train a task's model for an epoch, evaluate it if there are dev examples; `options` of the run beside the job."""
    examples = read(job, job.train_data_file)
    task = _TASKS[job.task](job)
    config = TrainingConfig(
        train_data_file=job.train_data_file,
        saved_dir=str(folder),
        batch_size=job.batch_size,
        epochs=1,
        precision=job.precision,
        seed=job.seed,
        save_steps=len(examples),  # once, after the last step
        keep_checkpoints=0,
        **options,
    )
    with started(config), watched(watch):
        fit(config, task, examples, None)
    if job.dev_data_file is None:
        return None
    dev = read(job, job.dev_data_file, is_dev=True)
    device = distributed.device()
    precision = Precision.resolve(job.precision, device)
    return Evaluation.of(lambda: evaluate(task, dev, job.batch_size, precision).value, len(dev), device)


def read(job: Job, path: str, *, is_dev: bool = False) -> TextRows:
    """Read and tokenise a file of the job's task."""
    names = {"label_names": job.labels} if job.labels else {}
    tokenizer = load_tokenizer(job.model)
    reader = (_DEV_READERS if is_dev else _READERS)[job.task]
    return reader(path, tokenizer=tokenizer, max_length=job.max_length, on_bad_line="stop", **names)


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """The watch sees each step of `fit` in the block, after the train loop has handed it to the training log.

    The loop does so once a step, whether the step ran from Python or was replayed on the device.
    """
    step = TrainingLog.step
    losses: list[Tensor] = []

    def step_and_note(training_log: TrainingLog, reported: Tensor, *args: Any, **options: Any) -> None:
        step(training_log, reported, *args, **options)
        losses.append(reported[0])
        watch.step()

    with patch.object(TrainingLog, "step", step_and_note):
        yield
    watch.loss = float(torch.stack(losses).mean())


# What the product would not do by default in so short a run, to tell what each part gains.
VARIANTS_ON_GPU: dict[str, Callable[[Job, Stopwatch, Path], Evaluation | None]] = {
    "bertorch, compiled": partial(train, compile="on"),
    "bertorch, eager": partial(train, cuda_graphs="off"),
}


def _classifier(job: Job) -> Task[Any]:
    return ClassificationTask(SequenceClassifier.from_pretrained(job.model, job.labels), job.labels)


def _ranking(job: Job) -> Task[Any]:
    return RankingTask(SequenceClassifier.from_pretrained(job.model, ["score"], "regression"), text_pair=True)


def _sentence_bert(job: Job) -> Task[Any]:
    embedder = SentenceEncoder.from_pretrained(job.model, "mean")
    return SentenceBertTask(SiameseClassifier(embedder, len(job.labels)), job.labels)


def _contrastive(job: Job) -> Task[Any]:
    return ContrastiveTask(
        SentenceEncoder.from_pretrained(job.model, "mean"),
        loss=InBatchNegatives(margin=0.0, scale=20.0, keep_duplicates=True),
    )


def _cosent(job: Job) -> Task[Any]:
    return ContrastiveTask(SentenceEncoder.from_pretrained(job.model, "mean"), loss=CoSENT(scale=20.0))


_TASKS: dict[str, Callable[[Job], Task[Any]]] = {
    "classifier": _classifier,
    "sentencebert": _sentence_bert,
    "batchneg": _contrastive,
    "cosent": _cosent,
    "ranking": _ranking,
}
_READERS: dict[str, Callable[..., TextRows]] = {
    "classifier": partial(labelled_texts, num_texts=1),
    "sentencebert": labelled_pairs,
    "batchneg": anchors_with_positives,
    "cosent": scored_pairs,
    "ranking": partial(labelled_texts, label_names=(), num_texts=2, form="groups"),
}
_DEV_READERS = _READERS | {"ranking": partial(labelled_texts, label_names=(), num_texts=2, form="ranking")}
