"""What the benchmarks share: the comparison of training steps, timing, hardware and versions, the JSON file."""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import metadata
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertorch.data.dataset import Examples
from bertorch.data.schedule import TrainingSchedule
from bertorch.precision import Precision
from bertorch.tasks.base import Losses
from bertorch.training.hooks import ClipGradients, Hook
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.step import OptimizationStep

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
WARMUP = 3  # turns that are left out of the medians


def step_parser(description: str, train_data_file: Path, label_file: Path) -> argparse.ArgumentParser:
    """The options of a benchmark of training steps, with the sample data that it takes by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default=str(DATA / "bert-tiny-zh"))
    parser.add_argument("--train_data_file", default=str(train_data_file))
    parser.add_argument("--label_file", default=str(label_file))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=20, help=f"steps measured, after {WARMUP} that are not")
    parser.add_argument("--json", help="also write the result to this file")
    return parser


class Contender(NamedTuple):
    """A way to take a step."""

    model: nn.Module  # on its device; is trained
    losses_of: Callable[[Any], Losses]  # of a batch, summed over its labels
    hooks: Sequence[Hook] = (ClipGradients(1.0),)
    rate_factors: Mapping[nn.Parameter, float] = {}  # on the learning rate


def compare_steps(
    options: argparse.Namespace, dataset: Examples, contenders: Mapping[str, Contender], precision: Precision
) -> None:
    """Take the same optimisation steps with each contender, turn by turn; print medians and their ratios to the last.

    Args:
        options: of `step_parser`.
        dataset: the training examples.
        contenders: by their names.
        precision: of forward and backward.
    """
    device = torch.device(precision.device_type)
    steps = {name: _stepper(contender, precision) for name, contender in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    tokens = []
    schedule = TrainingSchedule(len(dataset), options.batch_size, accumulation=1, seed=0)
    taken = (numbers for epoch in count() for (numbers,) in schedule.steps(epoch))
    for numbers in islice(taken, options.steps + WARMUP):
        batch = dataset.batch(numbers)
        tokens.append(len(batch.input_ids))
        for name, step in steps.items():
            seconds[name].append(timed(partial(step, batch, dataset.label_count(numbers)), device))

    medians = {name: statistics.median(times[WARMUP:]) for name, times in seconds.items()}
    *others, last = medians
    ratios = {name: medians[name] / medians[last] for name in others}
    result = {
        "model": options.pretrained_model_name_or_path,
        "data": options.train_data_file,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "tokens_per_step": statistics.mean(tokens[WARMUP:]),
        "precision": precision.name,
        "hardware": hardware(device),
        "versions": versions("torch", "transformers"),
        "seconds_per_step": medians,
        **{f"{name}_over_{last}": ratio for name, ratio in ratios.items()},
    }
    print(f"{result['model']}, {result['data']}, batch {options.batch_size}, {precision.name}")
    print(f"{result['hardware']}, {result['versions']}, {result['tokens_per_step']:.0f} tokens a step")
    for name, median in medians.items():
        print(f"{name}: {median:.4f} s/step")
    for name, ratio in ratios.items():
        print(f"{name} / {last}: {ratio:.2f}")
    write_json(result, options.json)


def positive(text: str) -> int:
    """A number of the command line, from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {number}")
    return number


def timed(job: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a job takes, until the device has done it."""
    began = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def use_one_device(*, cpu: bool) -> None:
    """Hide the GPUs, or all but the first, from this process and those that it starts; before any is used."""
    if cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def run_command(arguments: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command in the root of the repository; returns what it logged on standard error.

    Raises:
        RuntimeError: it failed; with the end of what it logged.
    """
    done = subprocess.run(arguments, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stderr


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module gives in a fresh process, of which only its own work takes time and memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_mib(name: str) -> float:
    """A memory of this process in MiB, under Linux' name for it in /proc/self/status.

    `resource.getrusage` also counts what the process that started this one had.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(found) / 1024


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second that large matrix products reach on a device, the best of several tries."""
    size, products = (8192, 10) if device.type == "cuda" else (1024, 3)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(products):
            left @ right

    multiply()
    return max(products * 2 * size**3 / timed(multiply, device) for _ in range(5))


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _stepper(contender: Contender, precision: Precision) -> Callable[[Any, int], Tensor]:
    """A whole optimisation step (forward, backward, hooks, AdamW, schedule) as a function of a batch and its labels."""
    model = contender.model
    optimizer = build_optimizer(model, learning_rate=5e-5, weight_decay=0.0, rate_factors=contender.rate_factors)
    scheduler = build_scheduler("constant", optimizer, warmup_proportion=0.0, total_steps=1)
    model.train()
    step = OptimizationStep(model, contender.losses_of, optimizer, scheduler, precision, hooks=contender.hooks)
    return lambda batch, label_count: step([step.prepared(batch)], label_count)


def write_json(result: dict[str, Any], path: str | None) -> None:
    """Write a result to a file, if one is asked for."""
    if path is not None:
        Path(path).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
