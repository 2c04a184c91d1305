"""Eager steps, CUDA graphs or `torch.compile`: which of them a run gets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from loguru import logger

from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.precision import Precision
from bertorch.tasks.base import Task
from bertorch.training.graphs import CudaCapture
from bertorch.training.hooks import Hook

# What compilation takes at the start of a run, and then saves in a step on top of CUDA graphs: figures of a prototype
# of this design with bert-base on an H100, not of this code. So compilation must save twice what it takes.
COMPILATION_SECONDS = 20.0
SECONDS_SAVED = 1.2e-3
SECONDS_SAVED_PER_TOKEN = 0.4e-6


@contextmanager
def own_stream() -> Iterator[None]:
    """Do all work of the GPU in a stream of our own, since the default one cannot be captured."""
    device = distributed.device()
    if device.type != "cuda":
        yield
        return
    default, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(default)
    with torch.cuda.stream(own):
        yield
    default.wait_stream(own)


class ExecutionMode(NamedTuple):
    """How the steps of a run are executed.

    Attributes:
        capture: makes CUDA graphs of them; None where they run eagerly.
        compiled: whether the encoders are.
    """

    capture: CudaCapture | None
    compiled: bool


def choose_mode(
    config: TrainingConfig,
    task: Task[Any],
    precision: Precision,
    *,
    hooks: Sequence[Hook] = (),
    steps: int,
    tokens: float,
) -> ExecutionMode:
    """Choose CUDA graphs and `torch.compile` where they are possible and pay; the log says what is off, and why.

    Args:
        config: the run's options.
        task: its encoders are compiled if that is the choice.
        precision: of forward and backward.
        hooks: of the steps.
        steps: of the run.
        tokens: of a step.
    """
    obstacle = graph_obstacle(config, task, precision, hooks)
    has_graphs = precision.device_type == "cuda" and obstacle is None
    if precision.device_type == "cuda" and obstacle is not None:
        logger.info("CUDA graphs: off, {}; steps run eagerly", obstacle)
    compiled = compiles(config, has_graphs=has_graphs, steps=steps, tokens=tokens)
    if compiled:
        logger.info("torch.compile: on; the first steps take longer")
        task.model.compile_encoders()
    return ExecutionMode(CudaCapture() if has_graphs else None, compiled)


def graph_obstacle(
    config: TrainingConfig, task: Task[Any], precision: Precision, hooks: Sequence[Hook] = ()
) -> str | None:
    """Why the steps of a run cannot be CUDA graphs; None if they can.

    NCCL's sums can be captured, but a step of several processes also depends on what the others do; accumulation makes
    a shape of each sequence of batches; the scaler of fp16 asks the device whether to step; recomputation saves and
    restores the random state, which lives on the host; a hook says itself whether it can be captured.
    """
    hook = next((type(hook).__name__ for hook in hooks if not hook.capturable), None)
    obstacles = {
        "--cuda_graphs off": config.cuda_graphs == "off",
        f"{distributed.world_size()} processes": distributed.world_size() > 1,
        f"--gradient_accumulation_steps {config.gradient_accumulation_steps}": config.gradient_accumulation_steps > 1,
        "fp16": precision.name == "fp16",
        "activations are recomputed": task.recomputes or config.gradient_checkpointing,
        f"{hook} cannot be captured": hook is not None,
        "the encoder does not run padding-free": not all(encoder.packed for encoder in task.model.encoders),
    }
    return next((reason for reason, stands in obstacles.items() if stands), None)


def compiles(config: TrainingConfig, *, has_graphs: bool, steps: int, tokens: float) -> bool:
    """Whether a run goes through `torch.compile`.

    `auto` decides by the size of the run alone, not by the clock, so that the same command does the same again.

    Args:
        config: the run's options.
        has_graphs: whether its steps are CUDA graphs.
        steps: of the run.
        tokens: of a step.
    """
    if config.compile != "auto":
        return config.compile == "on"
    saved = steps * (SECONDS_SAVED + SECONDS_SAVED_PER_TOKEN * tokens)
    return has_graphs and not config.deterministic and saved > 2 * COMPILATION_SECONDS
