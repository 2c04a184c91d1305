"""The peers' runs: `Trainer` of transformers and that of sentence-transformers, which derives from it.

The latter is imported where it is used: classifiers do without it, also where it is not installed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
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
from bertorch.data.labelled_lines import read_labelled
from bertorch.data.readers import read_labelled_texts, read_pairs, read_scored_pairs
from bertorch.tasks.metrics import correlations
from bertorch.tasks.ranking_metric import Candidates, ranking_measures

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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
    watch.loss = trainer.train().training_loss
    if job.dev_data_file is None:
        return None
    dev = _tokenized(tokenizer, job, job.dev_data_file)
    return Evaluation.of(lambda: trainer.evaluate(dev)["eval_accuracy"], len(dev), trainer.args.device)


def train_softmax_loss(job: Job, watch: Stopwatch, folder: Path) -> None:
    """sentence-transformers with SoftmaxLoss: a classifier over u, v and |u−v|."""
    from sentence_transformers.sentence_transformer.losses import SoftmaxLoss  # noqa: PLC0415

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
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss  # noqa: PLC0415

    anchors, positives, *negatives = read_pairs(job.train_data_file)
    columns = {"anchor": list(anchors), "positive": list(positives)}
    columns |= {f"negative_{number}": list(texts) for number, texts in enumerate(negatives, start=1)}
    _train_embeddings(job, watch, folder, columns, MultipleNegativesRankingLoss)


def train_cosent(job: Job, watch: Stopwatch, folder: Path) -> Evaluation | None:
    """sentence-transformers with CoSENTLoss, scale 20."""
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss  # noqa: PLC0415

    train = read_scored_pairs(job.train_data_file)
    columns = {"sentence1": list(train.columns[0]), "sentence2": list(train.columns[1]), "score": train.labels.tolist()}
    model = _train_embeddings(job, watch, folder, columns, CoSENTLoss)
    if job.dev_data_file is None:
        return None
    dev = read_scored_pairs(job.dev_data_file)

    def evaluate() -> float:
        first, second = (model.encode(list(texts), batch_size=job.batch_size) for texts in dev.columns)
        return correlations(model.similarity_pairwise(first, second).numpy(), dev.labels)["spearman"]

    return Evaluation.of(evaluate, len(dev.labels), model.device)


def train_list_net(job: Job, watch: Stopwatch, folder: Path, *, pairs_at_once: int | None) -> Evaluation | None:
    """sentence-transformers' CrossEncoder with ListNetLoss, which is our cross-entropy for labels (100, 0, …, 0).

    Their softmax gives the positive all the weight. A forward pass has `pairs_at_once`: None for as many as the batch
    has groups, their default; -1 for all pairs of the batch.
    """
    import datasets  # noqa: PLC0415
    from sentence_transformers import (  # noqa: PLC0415
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import ListNetLoss  # noqa: PLC0415

    queries, *candidates = read_pairs(job.train_data_file)
    columns = {"query": list(queries), "docs": [list(row) for row in zip(*candidates, strict=True)]}
    columns["labels"] = [[100.0] + [0.0] * (len(candidates) - 1)] * len(queries)
    model = CrossEncoder(job.model, num_labels=1, max_length=job.max_length, model_kwargs={"dtype": torch.float32})
    trainer = CrossEncoderTrainer(
        model=model,
        args=_arguments(CrossEncoderTrainingArguments, job, folder),
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=ListNetLoss(model, mini_batch_size=pairs_at_once),
        callbacks=[_StepWatcher(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    watch.loss = trainer.train().training_loss
    if job.dev_data_file is None:
        return None
    dev = read_labelled(job.dev_data_file, "ranking", label_names=(), num_texts=2)
    pairs, (relevances, numbers) = list(zip(*dev.columns, strict=True)), dev.labels.T

    def evaluate() -> float:
        scores = model.predict(pairs, batch_size=job.batch_size, show_progress_bar=False).astype(np.float64)
        return ranking_measures(Candidates(scores, relevances, numbers.astype(np.int64)))["mrr@10"]

    return Evaluation.of(evaluate, len(pairs), model.device)


def _train_embeddings(
    job: Job, watch: Stopwatch, folder: Path, columns: dict[str, list[Any]], loss_of: Callable[[Any], Any]
) -> "SentenceTransformer":
    import datasets  # noqa: PLC0415
    from sentence_transformers import (  # noqa: PLC0415
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

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
    watch.loss = trainer.train().training_loss
    return model


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
        seed=job.seed,
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
    "cosent": {"sentence-transformers CoSENTLoss": train_cosent},
    "ranking": {
        "CrossEncoderTrainer ListNetLoss": partial(train_list_net, pairs_at_once=None),
        "CrossEncoderTrainer ListNetLoss, whole batch": partial(train_list_net, pairs_at_once=-1),
    },
}
# Where the kernels of the compiler pay.
PEERS_ON_GPU: dict[str, dict[str, Run]] = {
    "classifier": {"transformers Trainer, torch_compile": partial(train_classifier, torch_compile=True)},
}
