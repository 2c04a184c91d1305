"""The one train loop; it knows a `Task`, never a task's name."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bertorch import distributed, log
from bertorch.config import TrainingConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.prefetch import prefetched
from bertorch.data.schedule import ScheduledStep, TrainingSchedule, share
from bertorch.training import acceleration as execution
from bertorch.training.interruption import Interruption
from bertorch.training.memory import out_of_memory_told
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.run_state import Results
from bertorch.training.step import OptimizationStep, Precision
from bertorch.training.tasks import Task
from bertorch.training.training_log import TrainingLog


def fit(config: TrainingConfig, task: Task[Any], train: Examples, dev: Examples | None) -> None:
    """Train a task's model; evaluate it every `--eval_steps`, save it every `--save_steps` steps, and after the last.

    Args:
        config: the run's options.
        task: model, loss, metric.
        train: training examples, the same on every process.
        dev: dev examples, the same on every process; None does not evaluate.

    Raises:
        UserError: `--saved_dir`, `--init_from_ckpt`, `--precision` or `--gradient_checkpointing` cannot be had, a loss
            is not finite, or the memory is not enough.
        InterruptedRunError: after a signal, when the step is done and saved.
    """
    world_size, device = distributed.world_size(), distributed.device()
    precision = Precision.resolve(config.precision, device)
    if config.gradient_checkpointing:
        task.model.recompute_activations()
    schedule = TrainingSchedule(
        len(train), config.batch_size * world_size, config.gradient_accumulation_steps, config.seed
    )
    total_steps = schedule.steps_per_epoch * config.epochs
    if config.max_steps is not None:
        total_steps = min(config.max_steps, total_steps)
    results = Results(config, task, dev, precision, total_steps)
    results.place_weights()
    tokens = float(train.lengths.mean()) * config.batch_size
    chosen = execution.choose_execution(config, task, precision, steps=total_steps, tokens=tokens)
    optimizer, scheduler = _build_optimizer(config, task, total_steps)
    step = OptimizationStep(
        task.model,
        task.training_output,
        optimizer,
        scheduler,
        precision,
        max_grad_norm=config.max_grad_norm,
        capture=chosen.capture,
        compiled=chosen.compiled,
    )
    results.follow(step)
    logger.info(f"train: {len(train)} examples, dev: {len(dev) if dev else 0}, {total_steps} optimisation steps")
    logger.info(f"{world_size} process(es), batch {config.batch_size} each, {device}, {precision.name}")
    if task.head_learning_rate is not None:
        logger.info(f"learning rate: {config.learning_rate:g}, of the head: {task.head_learning_rate:g}")
    with execution.own_stream():
        steps = schedule.all_steps(results.last_step, after=results.steps_done)
        _run(config, task, train, step=step, schedule=steps, results=results)
    results.tell()


def _run(
    config: TrainingConfig,
    task: Task[Any],
    train: Examples,
    *,
    step: OptimizationStep,
    schedule: Iterator[ScheduledStep],
    results: Results,
) -> None:
    """Take the steps that are scheduled, or fewer if the results say so."""
    rank, world_size = distributed.rank(), distributed.world_size()

    def prepared(now: ScheduledStep) -> tuple[ScheduledStep, int, list[PackedBatch]]:
        mine = [share(examples, rank, world_size) for examples in now.batches]
        taking_part = [examples for examples in mine if len(examples) or task.joins_processes]
        labels = sum(map(train.labels_of, now.batches))
        return now, labels, [step.prepared(train.batch(examples)) for examples in taking_part]

    task.model.train()
    training_log = TrainingLog(
        config.logging_steps, with_accuracy=task.counts_correct, saved_dir=config.saved_dir, record=results.record
    )
    with (
        Interruption() as interruption,
        log.progress_bar(results.last_step, done=results.steps_done) as progress,
        closing(prefetched(prepared, schedule)) as steps,
    ):
        for now, labels, batches in steps:
            torch.manual_seed(_dropout_seed(config.seed, now.number, rank))
            rates = _rates(step, task)
            tokens = sum(batch.tokens for batch in batches)
            with out_of_memory_told(f"step {now.number}", config, task, step.precision, batches):
                sums = step(batches, labels)
            training_log.step(sums, now, labels=labels, tokens=tokens, rates=rates, overflows=step.overflows)
            evaluates, saves = results.due(now.number)
            is_stopped = interruption.requested(now.number)
            if evaluates or saves or is_stopped:
                with training_log.speedometer.paused():
                    training_log.check()
                    results.take(now, evaluates=evaluates, saves=saves or is_stopped)
            progress.update()
            if is_stopped:
                results.stop()
            if now.number == results.last_step:
                break


def _rates(step: OptimizationStep, task: Task[Any]) -> dict[str, float]:
    """The learning rates of the next step, by the names that they have in `metrics.jsonl`."""
    rates = {"rate": step.rates[0]}
    return rates if task.head_learning_rate is None else rates | {"head_rate": step.rates[-1]}


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Dropout differs between steps and processes; drawn anew for each step, it is the same after a resumption."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1


def _build_optimizer(config: TrainingConfig, task: Task[Any], total_steps: int) -> tuple[Optimizer, LRScheduler]:
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
    return optimizer, scheduler
