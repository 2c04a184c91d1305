"""The one train loop and the one evaluation loop; they know a `Task`, never a task's name."""

from typing import Any

import torch
from loguru import logger
from torch import Tensor

from bertorch import distributed, log
from bertorch.config import TrainingConfig
from bertorch.data.batching import Examples, TrainingSchedule, evaluation_batches, share
from bertorch.training import checkpoint
from bertorch.training.metrics import Metric
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.step import OptimizationStep, Precision
from bertorch.training.tasks import Task


def fit(config: TrainingConfig, task: Task[Any], train: Examples, dev: Examples | None) -> None:
    """Train a task's model; evaluate and save it every `--save_steps` steps and after the last.

    Args:
        config: the run's options.
        task: model, loss, metric.
        train: training examples, the same on every process.
        dev: dev examples, the same on every process; None does not evaluate.

    Raises:
        UserError: `--saved_dir`, `--init_from_ckpt` or `--precision` cannot be had.
    """
    rank, world_size, device = distributed.rank(), distributed.world_size(), distributed.device()
    precision = Precision.resolve(config.precision, device)
    _place_weights(config, task, device)
    schedule = TrainingSchedule(
        len(train), config.batch_size * world_size, config.gradient_accumulation_steps, config.seed
    )
    total_steps = schedule.steps_per_epoch * config.epochs
    step = _build_step(config, task, precision, total_steps)
    results = _Results(config, task, dev, precision)
    training_log = _TrainingLog(config.logging_steps, with_accuracy=task.counts_correct)
    logger.info(f"train: {len(train)} examples, dev: {len(dev) if dev else 0}, {total_steps} optimisation steps")
    logger.info(f"{world_size} process(es), batch {config.batch_size} each, {device}, {precision.name}")
    if task.head_learning_rate is not None:
        logger.info(f"learning rate: {config.learning_rate:g}, of the head: {task.head_learning_rate:g}")

    torch.manual_seed(config.seed + rank)  # dropout differs between the processes
    global_step = 0
    task.model.train()
    with log.progress_bar(total_steps) as progress:
        for epoch in range(1, config.epochs + 1):
            batches_done = 0
            for batches in schedule.steps(epoch):  # each: what all processes do in one step
                mine = [share(examples, rank, world_size) for examples in batches]
                labels = sum(map(train.labels_of, batches))
                taking_part = [examples for examples in mine if len(examples) or task.joins_processes]
                sums = step([train.batch(examples) for examples in taking_part], task.training_output, labels)
                global_step += 1
                batches_done += len(batches)
                training_log.step(sums, labels, global_step=global_step, epoch=epoch, batch=batches_done)
                if global_step % config.save_steps == 0 or global_step == total_steps:
                    with training_log.speedometer.paused():
                        results.evaluate_and_save(global_step)
                progress.update()
    results.tell()


def evaluate(task: Task[Any], dev: Examples, batch_size: int, precision: Precision) -> Metric[Any]:
    """Evaluate on all processes, each example on one of them; returns the metric of all examples.

    Args:
        task: model and metric.
        dev: the examples, the same on every process.
        batch_size: examples of a batch on one process; it does not change the result.
        precision: of the forward pass.
    """
    device = distributed.device()
    metric = task.new_metric(device)
    shares = evaluation_batches(dev.lengths, batch_size, distributed.rank(), distributed.world_size())
    task.model.eval()
    with torch.inference_mode(), precision.autocast():
        for examples in shares:
            batch = dev.batch(examples).to(device)
            metric.update(task.model(batch), batch, examples)
    task.model.train()
    metric.reduce()
    return metric


def _place_weights(config: TrainingConfig, task: Task[Any], device: torch.device) -> None:
    """Warm-start, move to the device, and make all processes start from the first one's weights."""
    if distributed.is_main():
        checkpoint.prepare_folder(config.saved_dir)
    if config.init_from_ckpt is not None:
        checkpoint.warm_start(
            task.model.weights, config.init_from_ckpt, task.model.encoder_prefix, adapted=task.adapted
        )
    task.model.to(device)
    distributed.broadcast_weights(task.model)


def _build_step(config: TrainingConfig, task: Task[Any], precision: Precision, total_steps: int) -> OptimizationStep:
    optimizer = build_optimizer(
        task.model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        head_parameters=task.head_parameters(),
        head_learning_rate=task.head_learning_rate,
    )
    scheduler = build_scheduler(
        config.scheduler, optimizer, warmup_proportion=config.warmup_proportion, total_steps=total_steps
    )
    return OptimizationStep(task.model, optimizer, scheduler, precision, config.max_grad_norm)


class _TrainingLog:
    """Writes the training line every so many steps; other steps wait for nothing."""

    def __init__(self, logging_steps: int, *, with_accuracy: bool) -> None:
        self._logging_steps = logging_steps
        self._with_accuracy = with_accuracy
        self.speedometer = log.Speedometer()

    def step(self, sums: Tensor, labels: int, *, global_step: int, epoch: int, batch: int) -> None:
        """Count a step.

        Args:
            sums: (2,) this process's part of the loss and count of right predictions.
            labels: labels of the step over all processes.
            global_step, epoch, batch: for the line.
        """
        self.speedometer.step()
        if global_step % self._logging_steps == 0:
            loss, correct = distributed.all_reduce_sum(sums).tolist()
            line = log.training_line(
                global_step=global_step,
                epoch=epoch,
                batch=batch,
                loss=loss,
                accuracy=correct / labels if self._with_accuracy else None,
                speed=self.speedometer.read(),
            )
            logger.info(line)


class _Results:
    """Evaluates and saves; remembers the best dev metric and which step's weights were saved last."""

    def __init__(self, config: TrainingConfig, task: Task[Any], dev: Examples | None, precision: Precision) -> None:
        self._config = config
        self._task = task
        self._dev = dev
        self._precision = precision
        self._best: Metric[Any] | None = None
        self._best_step = 0
        self._saved_step = 0

    def evaluate_and_save(self, global_step: int) -> None:
        """Evaluate if there are dev examples; save, with `--save_best_model` only what is better than all before."""
        improved = False
        if self._dev is not None:
            metric = evaluate(self._task, self._dev, self._config.batch_size, self._precision)
            logger.info(metric.line())
            improved = self._best is None or metric.value > self._best.value
            if improved:
                self._best, self._best_step = metric, global_step
        if improved or not self._config.save_best_model:
            if distributed.is_main():
                checkpoint.save(self._config.saved_dir, self._task.model.weights.state_dict(), self._task.companions)
            self._saved_step = global_step

    def tell(self) -> None:
        """Say what the best dev metric was, at which step, and where the weights are."""
        if self._best is not None:
            for line in self._best.report():
                logger.info("{}", line)
            logger.info(f"best dev {self._best.name}: {self._best.value:.5f} at step {self._best_step}")
        logger.info(f"weights of step {self._saved_step}: {self._config.saved_dir}/{checkpoint.WEIGHTS}")
