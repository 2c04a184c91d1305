"""Eager steps, CUDA graphs or `torch.compile`: which of them a run gets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from loguru import logger

from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.precision import Precision
from bertorch.tasks.base import Task
from bertorch.training.graphs import CudaCapture
from bertorch.training.hooks import Hook

# What compilation costs once, and saves per step on top of CUDA graphs: measured with a prototype of this design
# (bert-base, one H100), not with this code. So compilation must save twice what it costs.
COMPILATION_SECONDS = 20.0
SECONDS_SAVED = 1.2e-3
SECONDS_SAVED_PER_TOKEN = 0.4e-6


@contextmanager
def own_stream() -> Iterator[None]:
    """Run the GPU's work in a side stream, since the default one cannot be captured."""
    device = distributed.device()
    if device.type != "cuda":
        yield
        return
    default, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(default)
    with torch.cuda.stream(side):
        yield
    default.wait_stream(side)


def accelerate(
    config: TrainingConfig,
    task: Task[Any],
    precision: Precision,
    *,
    hooks: Sequence[Hook] = (),
    steps: int,
    tokens: float,
) -> CudaCapture | None:
    """Use CUDA graphs and `torch.compile` where they are possible and worthwhile; the log says what is off, and why.

    Compiles the task's encoders if so decided. `steps` are those of the run, `tokens` those of a step.

    Returns:
        What captures the steps; None runs them eagerly.
    """
    obstacle = graph_obstacle(config, task, precision, hooks)
    has_graphs = precision.device_type == "cuda" and obstacle is None
    if precision.device_type == "cuda" and obstacle is not None:
        logger.info("CUDA graphs: off, {}; steps run eagerly", obstacle)
    if compiles(config, has_graphs=has_graphs, steps=steps, tokens=tokens):
        logger.info("torch.compile: on; the first steps take longer")
        task.model.compile_encoders()
    return CudaCapture() if has_graphs else None


def graph_obstacle(
    config: TrainingConfig, task: Task[Any], precision: Precision, hooks: Sequence[Hook] = ()
) -> str | None:
    """Why the steps of a run cannot be CUDA graphs; None if they can."""
    hook = next((type(hook).__name__ for hook in hooks if not hook.capturable), None)
    obstacles = {
        "--cuda_graphs off": config.cuda_graphs == "off",
        # NCCL's sums can be captured, but the step also depends on what the other processes do.
        f"{distributed.world_size()} processes": distributed.world_size() > 1,
        # Each sequence of batches would be a shape of its own.
        f"--gradient_accumulation_steps {config.gradient_accumulation_steps}": config.gradient_accumulation_steps > 1,
        "fp16": precision.name == "fp16",  # its scaler asks the device whether to step
        str(task.graph_obstacle): task.graph_obstacle is not None,
        # Recomputation saves and restores the random state, which lives on the host.
        "activations are recomputed": task.recomputes or config.gradient_checkpointing,
        f"{hook} cannot be captured": hook is not None,
        "the encoder does not run padding-free": not all(encoder.packed for encoder in task.model.encoders),
    }
    return next((reason for reason, applies in obstacles.items() if applies), None)


def compiles(config: TrainingConfig, *, has_graphs: bool, steps: int, tokens: float) -> bool:
    """Whether a run of `steps` steps of `tokens` tokens is compiled.

    `auto` depends on the size of the run only, not on timings, so that the same command does the same again.
    """
    if config.compile != "auto":
        return config.compile == "on"
    saved = steps * (SECONDS_SAVED + SECONDS_SAVED_PER_TOKEN * tokens)
    return has_graphs and not config.deterministic and saved > 2 * COMPILATION_SECONDS
