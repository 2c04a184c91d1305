"""The training loop; it knows a `Task`, never a task's name."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bertorch import distributed, log
from bertorch.config import TrainingConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Examples
from bertorch.data.prefetch import prefetched
from bertorch.data.schedule import ScheduledStep, share
from bertorch.data.several_files import schedule_of
from bertorch.data.teacher import TeacherRows
from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.tasks.base import Negatives, Task
from bertorch.training.acceleration import accelerate, own_stream
from bertorch.training.adversarial import FastGradientMethod
from bertorch.training.data_report import log_data_report
from bertorch.training.distillation import distillation
from bertorch.training.ema import AverageWeights
from bertorch.training.hooks import ClipGradients, Hook, StopIfNotFinite
from bertorch.training.interruption import Interruption
from bertorch.training.memory import IN_TRAINING, explain_out_of_memory
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.r_drop import RDrop
from bertorch.training.run_options import require_same_everywhere
from bertorch.training.run_state import RunKeeper
from bertorch.training.step import OptimizationStep
from bertorch.training.training_log import TrainingLog


def fit(config: TrainingConfig, task: Task[Any], train: Examples, dev: Examples | None) -> bool:
    """Train a task's model; evaluate it every `--eval_steps`, save it every `--save_steps` steps, and after the last.

    The examples must be the same on every process; without dev examples nothing is evaluated. `--saved_dir` is there,
    and held by `bertorch.training.start`.

    Returns whether a signal asked to stop in the last step or after it, on any process: the run is complete.

    Raises:
        UserError: `--saved_dir`, `--init_from_ckpt`, `--precision`, `--gradient_checkpointing`, `--freeze_layers`,
            `--layer_decay`, `--layers_from` or `--teacher` is not possible, the processes have different options or
            examples, a loss is not finite, or memory runs out.
        InterruptedRunError: after a signal, when the step is done and saved.
    """
    if dev is not None and not len(dev):
        raise UserError("expected dev examples to evaluate on, got none; leave them out to train without evaluation")
    world_size, device = distributed.world_size(), distributed.device()
    require_same_everywhere(config, train)
    precision = Precision.resolve(config.precision, device)
    rate_factors = prepare_layers(config, task)
    schedule = schedule_of(train, config.batch_size * world_size, config.gradient_accumulation_steps, config.seed)
    total_steps = min(schedule.steps_per_epoch * config.epochs, config.max_steps or sys.maxsize)
    keeper = RunKeeper(config, task, dev, precision, total_steps)
    keeper.load_weights()
    hooks = build_hooks(config, task)
    tokens = float(train.lengths.mean()) * config.batch_size
    capture = accelerate(config, task, precision, hooks=hooks, steps=total_steps, tokens=tokens)
    optimizer, scheduler = _build_optimizer(config, task, rate_factors, total_steps)
    step = OptimizationStep(
        task.model,
        task.losses,
        optimizer,
        scheduler,
        precision,
        loss_parts=task.loss_parts,
        hooks=hooks,
        capture=capture,
    )
    keeper.attach(step.parts(), hooks)
    logger.info(f"train: {len(train)} examples, dev: {len(dev) if dev else 0}, {total_steps} optimisation steps")
    distributed.on_main(lambda: log_data_report(config, task, train, dev, schedule.batches_by_file))
    logger.info(f"{world_size} process(es), batch {config.batch_size} each, {device}, {precision.name}")
    if task.head_learning_rate is not None:
        logger.info(f"learning rate: {config.learning_rate:g}, of the head: {task.head_learning_rate:g}")
    with own_stream(), closing(keeper):
        scheduled = schedule.all_steps(keeper.run.last_step, after=keeper.run.step)
        is_asked_to_stop = _run(config, task, train, step=step, scheduled=scheduled, keeper=keeper)
    keeper.log_summary()
    return is_asked_to_stop


def _run(
    config: TrainingConfig,
    task: Task[Any],
    train: Examples,
    *,
    step: OptimizationStep,
    scheduled: Iterator[ScheduledStep],
    keeper: RunKeeper,
) -> bool:
    """Take the scheduled steps, or fewer if `--patience` ends the run early; returns what `fit` does."""
    rank, world_size = distributed.rank(), distributed.world_size()

    def prepared(now: ScheduledStep) -> tuple[ScheduledStep, int, float, list[PackedBatch]]:
        shares = [share(indices, rank, world_size) for indices in now.batches]
        # A loss with negatives from all processes is computed by all of them, even by one without examples.
        local_batches = [indices for indices in shares if len(indices) or task.negatives is Negatives.GLOBAL]
        label_count = sum(map(train.label_count, now.batches))
        loss_weight = sum(task.loss_weight(train, indices) for indices in now.batches)
        return now, label_count, loss_weight, [step.prepared(train.batch(indices)) for indices in local_batches]

    task.model.train()
    keeper.clock.start()
    logging_steps = min(config.logging_steps, keeper.run.last_step)  # a short run has a line too, after its last step
    names_of_rates = _names_of_rates(task)
    training_log = TrainingLog(
        logging_steps, loss_parts=task.loss_parts, reports=step.reports, hooks=step.hooks, record=keeper.record
    )
    with (
        Interruption() as interruption,
        log.progress_bar(keeper.run.last_step, done=keeper.run.step) as progress,
        closing(prefetched(prepared, scheduled)) as steps,
    ):
        for now, label_count, loss_weight, batches in steps:
            torch.manual_seed(_dropout_seed(config.seed, now.number, rank))
            rates = dict(zip(names_of_rates, (step.rates[0], step.rates[-1]), strict=False))
            tokens = sum(batch.tokens for batch in batches)
            with explain_out_of_memory(f"step {now.number}", IN_TRAINING, tokens):
                reported = step(batches, label_count, loss_weight)
            training_log.step(reported, now, tokens=tokens, rates=rates, overflows=step.overflows)
            stop = interruption.requested(now.number)
            if stop or keeper.is_due(now.number):
                with training_log.speedometer.paused():
                    training_log.check()  # before anything of the step is saved
                    keeper.finish_step(now, stop=stop)
            progress.update()
            if now.number == keeper.run.last_step:
                break
        return interruption.came_late()


def prepare_layers(config: TrainingConfig, task: Task[Any]) -> Mapping[nn.Parameter, float]:
    """Keep, recompute, freeze, and slow down the layers that the options name; returns factors on the learning rate.

    Raises:
        UserError: the encoder has no such layers, or cannot recompute.
    """
    if config.kept_layers is not None:
        task.model.keep_layers(config.kept_layers)
    if config.gradient_checkpointing:
        task.model.recompute_activations()
    if config.freeze_layers is not None:
        task.model.freeze_layers(config.freeze_layers)
    return {} if config.layer_decay is None else task.model.rate_factors(config.layer_decay)


def build_hooks(config: TrainingConfig, task: Task[Any]) -> list[Hook]:
    """The hooks that the options ask for, in the order in which they act."""
    hooks: list[Hook] = [StopIfNotFinite(config.saved_dir)]
    if config.max_grad_norm > 0:
        hooks.append(ClipGradients(config.max_grad_norm))
    if (teacher := TeacherRows.of(config)) is not None:
        hooks.append(distillation(config, task, teacher))
    if config.r_drop is not None:
        hooks.append(RDrop(config.r_drop))
    if config.adversarial_epsilon is not None:
        hooks.append(FastGradientMethod(task.model, config.adversarial_epsilon))
    if config.ema_decay is not None:
        hooks.append(AverageWeights(task.model, config.ema_decay))
    return hooks


def _names_of_rates(task: Task[Any]) -> list[str]:
    """What `metrics.jsonl` calls the learning rates: of the model, if it is trained, and of a head with its own."""
    if task.head_learning_rate is None:
        return ["rate"]
    head = set(task.head_parameters())
    is_trained = any(each.requires_grad for each in task.model.parameters() if each not in head)
    return ["rate", "head_rate"] if is_trained else ["head_rate"]


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's dropout, which differs between processes and is the same in a resumed run."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1


def _build_optimizer(
    config: TrainingConfig, task: Task[Any], rate_factors: Mapping[nn.Parameter, float], total_steps: int
) -> tuple[Optimizer, LambdaLR]:
    optimizer = build_optimizer(
        task.model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        head_parameters=task.head_parameters(),
        head_learning_rate=task.head_learning_rate,
        rate_factors=rate_factors,
    )
    scheduler = build_scheduler(
        config.scheduler, optimizer, warmup_proportion=config.warmup_proportion, total_steps=total_steps
    )
    return optimizer, scheduler
