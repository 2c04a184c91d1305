"""What the models of `--folds` say of the examples that they have not seen: `out_of_fold.tsv`, and one evaluation."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger
from torch import Tensor

from bertorch import distributed
from bertorch.config import FoldsConfig
from bertorch.data.dataset import Examples, Subset, labels_each
from bertorch.data.out_of_fold import OUT_OF_FOLD, OutOfFold, write_out_of_fold
from bertorch.data.tokens import end_to_end
from bertorch.precision import Precision
from bertorch.tasks.base import Task
from bertorch.tasks.calibrated import CalibratedTask
from bertorch.tasks.calibration import Temperature
from bertorch.tasks.ensembles import joined
from bertorch.tasks.metrics import ExampleRows, Metric
from bertorch.tasks.registry import own_task
from bertorch.training.eval_loop import evaluate
from bertorch.training.evaluation_files import write_evaluation
from bertorch.training.folds_folder import fold_folder, fold_name
from bertorch.training.memory import IN_EVALUATION, explain_out_of_memory
from bertorch.training.model_card import FoldsCard
from bertorch.training.saving import staged


class _Predicted(NamedTuple):
    """What a model says of its part of the examples, the same on every process."""

    metric: Metric[Any]
    probabilities: np.ndarray  # (labels of the part, C) fp64


def predict_out_of_fold(config: FoldsConfig, examples: Examples, folds: np.ndarray) -> None:
    """Have the saved model of each fold predict its own part of the examples, and write what comes of it.

    Args:
        config: of the run, whose folds are trained.
        examples: all N of them.
        folds: of each example, (N,) int64 from 1.

    Raises:
        UserError: a fold's folder cannot be read, memory runs out, or the results cannot be written.
    """
    device = distributed.device()
    precision = Precision.resolve(config.precision, device)
    parts = [np.flatnonzero(folds == fold) for fold in range(1, int(folds.max()) + 1)]  # indices of examples
    predicted = []
    for fold, part in enumerate(parts, start=1):
        task = own_task(fold_folder(config.saved_dir, fold), None)
        if isinstance(task, CalibratedTask):
            task.temperature = Temperature()  # one that was fitted meanwhile is not of the run
        with explain_out_of_memory(str(device), IN_EVALUATION):
            task.model.to(device)
        predicted.append(_predict(task, Subset(examples, part), config.batch_size, precision))
        logger.info("fold {}: {}", fold, predicted[-1].metric.line())
    metric = task.metric(device)
    metric.merge([each.metric for each in predicted], parts)
    logger.info("all folds: {}", metric.line())
    counts = labels_each(examples, np.arange(len(examples)))  # (N,)
    probabilities = np.zeros((int(counts.sum()), len(task.label_names)))  # (labels, C)
    for part, each in zip(parts, predicted, strict=True):
        probabilities[end_to_end((counts.cumsum() - counts)[part], counts[part])] = each.probabilities
    rows = OutOfFold(
        task.label_names,
        np.repeat(np.arange(len(examples)) + 1, counts),
        examples.labels_of(np.arange(len(examples))),
        np.repeat(folds, counts),
        probabilities,
        {},
    )
    distributed.on_main(lambda: _write(config, task, metric, rows, precision))


def _predict(task: Task[Any], part: Subset, batch_size: int, precision: Precision) -> _Predicted:
    device = distributed.device()
    rows = ExampleRows(device, len(task.label_names))

    def watch(outputs: Tensor, batch: Any, indices: np.ndarray) -> None:
        rows.add(np.repeat(indices, labels_each(part, indices)), task.label_probabilities(outputs, batch))

    with explain_out_of_memory(str(device), IN_EVALUATION):
        metric = evaluate(task, part, batch_size, precision, watch=watch)
    return _Predicted(metric, rows.gather().T)


def _write(config: FoldsConfig, task: Task[Any], metric: Metric[Any], rows: OutOfFold, precision: Precision) -> None:
    folder, data = config.saved_dir, config.train_data_file
    source, _ = task.read_labelled(data, config.on_bad_line)
    rows = replace(rows, texts=dict(task.label_texts(source)))
    write_out_of_fold(str(Path(folder) / OUT_OF_FOLD), rows, overwrite=True)
    names = [fold_name(fold) for fold in range(1, int(rows.folds.max()) + 1)]
    report: dict[str, Any] = {"model": folder, "task": task.name, "data": data, "folds": len(names)}
    notes = {"notes": list(task.notes())} if task.notes() else {}
    report = write_evaluation(
        Path(folder),
        report | notes | metric.report(),
        task.errors(metric, source),
        metric.example_table(),
        data_files=[data],
        overwrite=True,
    )
    ensemble = joined([task], names[-1:])  # one member is enough to say how all are used
    card = FoldsCard(config, ensemble, step=0, history=(), precision=precision, folds=names, report=report)
    with staged(folder) as staging:
        card.save_pretrained(staging)
        for file in staging.iterdir():
            file.replace(Path(folder) / file.name)
