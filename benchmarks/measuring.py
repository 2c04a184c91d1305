"""What the benchmarks share: timing, the hardware's name, an optimisation step around a loss, the JSON file."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.step import BatchOutput, OptimizationStep, Precision

WARMUP = 3  # turns that are left out of the medians


def timed(job: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a job takes, until the device has done it."""
    began = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def stepper(model: nn.Module, loss_of: Callable[[Any], Tensor], precision: Precision) -> Callable[[Any, int], Tensor]:
    """A whole optimisation step (forward, backward, clipping, AdamW, schedule) as a function of a batch and its labels.

    Args:
        model: is trained.
        loss_of: the loss of a batch, summed over its labels.
        precision: of forward and backward.
    """
    optimizer = build_optimizer(model, learning_rate=5e-5, weight_decay=0.0)
    scheduler = build_scheduler("constant", optimizer, warmup_proportion=0.0, total_steps=1)
    step = OptimizationStep(model, optimizer, scheduler, precision, max_grad_norm=1.0)
    model.train()

    def output_of(batch: Any) -> BatchOutput:
        return BatchOutput(loss=loss_of(batch), correct=None)

    return lambda batch, labels: step([batch], output_of, labels=labels)


def write_json(result: dict[str, Any], path: str | None) -> None:
    """Write a result to a file, if one is asked for."""
    if path is not None:
        Path(path).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
