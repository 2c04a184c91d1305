"""The one train loop and the one evaluation loop; they know a `Task`, never a task's name."""

from dataclasses import dataclass

import torch
from loguru import logger

from bertorch import distributed, log
from bertorch.config import TrainingConfig
from bertorch.data.batching import Dataset, TrainingSchedule, evaluation_batches, share
from bertorch.training import checkpoint
from bertorch.training.metrics import Metric
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.step import OptimizationStep, Precision
from bertorch.training.tasks import Task


def fit(config: TrainingConfig, task: Task, train: Dataset, dev: Dataset | None) -> None:
    """Train a task's model, evaluate and save it every `--save_steps` steps and after the last.

    Args:
        config: the run's options.
        task: model, loss, metric.
        train: training examples, the same on every process.
        dev: dev examples, the same on every process; None does not evaluate.

    Raises:
        UserError: `--saved_dir`, `--init_from_ckpt` or `--precision` cannot be had.
    """
    device = distributed.device()
    precision = Precision.resolve(config.precision, device)
    if distributed.is_main():
        checkpoint.prepare_folder(config.saved_dir)
    if config.init_from_ckpt is not None:
        checkpoint.warm_start(task.weights, config.init_from_ckpt, task.encoder_prefix)
    task.model.to(device)
    distributed.broadcast_weights(task.model)

    rank, world_size = distributed.rank(), distributed.world_size()
    schedule = TrainingSchedule(
        len(train), config.batch_size * world_size, config.gradient_accumulation_steps, config.seed
    )
    total_steps = schedule.steps_per_epoch * config.epochs
    optimizer = build_optimizer(task.model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    scheduler = build_scheduler(
        config.scheduler, optimizer, warmup_proportion=config.warmup_proportion, total_steps=total_steps
    )
    step = OptimizationStep(task.model, optimizer, scheduler, precision, config.max_grad_norm)
    saver = _Saver(config, task, dev, precision)
    logger.info(
        "train: {} examples, dev: {}, {} optimisation steps, {} process(es) × batch {}, {}, {}",
        len(train), 0 if dev is None else len(dev), total_steps, world_size, config.batch_size, device, precision.name,
    )  # fmt: skip

    torch.manual_seed(config.seed + rank)  # dropout differs between the processes
    speedometer = log.Speedometer()
    global_step = 0
    task.model.train()
    with log.progress_bar(total_steps) as progress:
        for epoch in range(1, config.epochs + 1):
            batches_done = 0
            for batches in schedule.steps(epoch):
                mine = [share(examples, rank, world_size) for examples in batches]
                labels = sum(map(len, batches))
                sums = step([train.batch(examples) for examples in mine if len(examples)], task.training_output, labels)
                global_step += 1
                batches_done += len(batches)
                speedometer.step()
                progress.update()
                if global_step % config.logging_steps == 0:
                    loss, accuracy = (distributed.all_reduce_sum(sums) / sums.new_tensor([1, labels])).tolist()
                    logger.info(
                        log.training_line(
                            global_step=global_step, epoch=epoch, batch=batches_done, loss=loss,
                            accuracy=accuracy, speed=speedometer.read(),
                        )
                    )  # fmt: skip
                if global_step % config.save_steps == 0 or global_step == total_steps:
                    with speedometer.paused():
                        saver.evaluate_and_save(global_step)
    saver.tell_result()


def evaluate(task: Task, dev: Dataset, batch_size: int, precision: Precision) -> Metric:
    """Evaluate on all processes, each example on one of them; returns the metric of all examples.

    Args:
        task: model and metric.
        dev: the examples, the same on every process.
        batch_size: examples of a batch on one process; it does not change the result.
        precision: of the forward pass.
    """
    device = distributed.device()
    metric = task.new_metric(device)
    task.model.eval()
    with torch.inference_mode(), precision.autocast():
        for examples in evaluation_batches(
            dev.store.lengths, batch_size, distributed.rank(), distributed.world_size()
        ):
            batch = dev.batch(examples).to(device)
            metric.update(task.model(batch), batch.labels)
    task.model.train()
    metric.reduce()
    return metric


@dataclass
class _Best:
    value: float
    step: int


class _Saver:
    """Evaluates, saves, and remembers the best result and which step's weights were saved last."""

    def __init__(self, config: TrainingConfig, task: Task, dev: Dataset | None, precision: Precision) -> None:
        self._config = config
        self._task = task
        self._dev = dev
        self._precision = precision
        self._best: _Best | None = None
        self._metric_name = ""
        self._saved_step = 0

    def evaluate_and_save(self, global_step: int) -> None:
        """Evaluate if there are dev examples; save, with `--save_best_model` only what is better than all before."""
        improved = True
        if self._dev is not None:
            metric = evaluate(self._task, self._dev, self._config.batch_size, self._precision)
            logger.info(metric.line())
            self._metric_name = metric.name
            improved = self._best is None or metric.value > self._best.value
            if improved:
                self._best = _Best(metric.value, global_step)
        if improved or not self._config.save_best_model:
            if distributed.is_main():
                checkpoint.save(self._config.saved_dir, self._task.weights.state_dict(), self._task.companions())
            self._saved_step = global_step

    def tell_result(self) -> None:
        """Say at the end what the best dev metric was, at which step, and where the weights are."""
        if self._best is not None:
            logger.info("best dev {}: {:.5f} at step {}", self._metric_name, self._best.value, self._best.step)
        logger.info("weights of step {}: {}/{}", self._saved_step, self._config.saved_dir, checkpoint.WEIGHTS)
