"""The contenders of each task in turns, the medians of what was measured, the table."""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from benchmarks.measuring import DATA, hardware, matmul_flops, versions, write_json
from benchmarks.peers import ours
from benchmarks.peers.flops import Work
from benchmarks.peers.job import EVALUATED, SAMPLES, Job, labels_of, write_sample
from benchmarks.peers.theirs import PEERS, PEERS_ON_GPU, Run
from benchmarks.peers.watching import Stopwatch, fresh_start
from bertorch import distributed, log
from bertorch.precision import Precision

OURS = "bertorch"
PACKAGES = ("torch", "transformers", "accelerate", "sentence-transformers", "datasets", "tokenizers")
# What is told: its name, the unit it is printed in, the size of that unit.
COLUMNS = {
    "steps_per_second": ("steps/s", 1.0),
    "tokens_per_second": ("tokens/s", 1.0),
    "model_flop_use": ("FLOP use", 1.0),
    "seconds_to_first_step": ("1st step, s", 1.0),
    "peak_allocated_bytes": ("GiB used", 2.0**30),
    "peak_reserved_bytes": ("GiB held", 2.0**30),
    "evaluated_per_second": ("eval ex./s", 1.0),
    "accuracy": ("accuracy", 1.0),
    "mrr": ("MRR@10", 1.0),
    "spearman": ("Spearman", 1.0),
    "loss": ("loss", 1.0),
}
RATIOS = ("steps_per_second", "evaluated_per_second")  # of bertorch to each peer


@dataclass(frozen=True)
class _Plan:
    """What all tasks have in common, with the defaults of the device filled in."""

    precision: str
    matmul_flops: float  # a second
    warmup: int
    steps: int
    rounds: int
    batch_size: int
    max_seq_length: int

    @classmethod
    def of(cls, options: argparse.Namespace, device: torch.device) -> "_Plan":
        precision = Precision.resolve(options.precision, device).name
        on_gpu = device.type == "cuda"
        return cls(
            precision=precision,
            matmul_flops=matmul_flops(device, torch.bfloat16 if precision == "bf16" else torch.float32),
            warmup=options.warmup or (40 if on_gpu else 3),
            steps=options.steps or (200 if on_gpu else 20),
            rounds=options.rounds,
            batch_size=options.batch_size,
            max_seq_length=options.max_seq_length,
        )


def run(options: argparse.Namespace, tasks: list[str]) -> None:
    """Compare on each task; print tables, write JSON on demand."""
    log.setup()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    device = distributed.device()
    plan = _Plan.of(options, device)
    header = {"hardware": hardware(device), "versions": versions(*PACKAGES), **asdict(plan)}
    print(f"{header['hardware']}, {plan.precision}, {plan.matmul_flops / 1e12:.2f} TFLOP/s in a matrix product")
    print(", ".join(f"{package} {version}" for package, version in header["versions"].items()))
    print(f"batch {plan.batch_size}, medians of {plan.rounds} runs of {plan.steps} steps after {plan.warmup}")
    results: list[dict[str, Any]] = []
    for task in tasks:
        for result in _compare(task, options, plan):
            write_json({**header, "results": [*results, result]}, options.json)
        print(f"\n{task}: {result['model']}, {result['train_data']}, {result['tokens_per_step']:.0f} tokens a step")
        _print(result["contenders"], result[f"{OURS}_over"])
        results.append(result)


def _compare(task: str, options: argparse.Namespace, plan: _Plan) -> Iterator[dict[str, Any]]:
    """The result after each run, of those contenders that have one."""
    files = vars(options) if options.train_data_file else SAMPLES[task]
    source = str(files["train_data_file"])
    steps = plan.warmup + plan.steps
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "train.txt"
        write_sample(source, sample, steps * plan.batch_size)
        job = Job(
            task=task,
            model=options.pretrained_model_name_or_path or str(DATA / "bert-tiny-zh"),
            train_data_file=str(sample),
            dev_data_file=files.get("dev_data_file") if task in EVALUATED else None,
            labels=labels_of(task, files.get("label_file")),
            batch_size=plan.batch_size,
            max_length=plan.max_seq_length,
            precision=plan.precision,
        )
        work = Work.of(ours.read(job, job.train_data_file), steps, job.model)
        facts = {
            "task": task,
            "model": job.model,
            "train_data": source,
            "dev_data": job.dev_data_file,
            "tokens_per_step": work.tokens,
            "model_flops_per_step": work.flops,
        }
        for runs in _take_turns(job, plan):
            contenders = {name: _medians(taken, work, plan.matmul_flops) for name, taken in runs.items()}
            ratios = {
                name: {key: contenders[OURS][key] / measured[key] for key in RATIOS if key in measured}
                for name, measured in contenders.items()
                if name != OURS
            }
            yield {**facts, "contenders": contenders, f"{OURS}_over": ratios, "runs": runs}


def _take_turns(job: Job, plan: _Plan) -> Iterator[dict[str, list[dict[str, float]]]]:
    """What was measured of each run of each contender, after each; ours is the first."""
    device = distributed.device()
    contenders: dict[str, Run] = {OURS: ours.train, **PEERS[job.task]}
    if device.type == "cuda":
        contenders |= ours.VARIANTS_ON_GPU | PEERS_ON_GPU.get(job.task, {})
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(plan.rounds):
        for name, train in contenders.items():
            with fresh_start(device) as folder:
                watch = Stopwatch(plan.warmup, plan.steps, device)
                evaluation = train(replace(job, seed=seed), watch, folder)
            watch.require_all(name)
            measured = {"seconds_per_step": watch.seconds_per_step, "seconds_to_first_step": watch.first_step}
            measured["loss"] = watch.loss
            if watch.peak_allocated is not None and watch.peak_reserved is not None:
                measured["peak_allocated_bytes"] = watch.peak_allocated
                measured["peak_reserved_bytes"] = watch.peak_reserved
            if evaluation is not None:
                measured["evaluated_per_second"] = evaluation.examples_per_second
                measured[EVALUATED[job.task]] = evaluation.value
            runs.setdefault(name, []).append(measured)
            yield runs


def _medians(runs: list[dict[str, float]], work: Work, peak: float) -> dict[str, float]:
    medians = {key: statistics.median(taken[key] for taken in runs) for key in runs[0]}
    speed = 1 / medians.pop("seconds_per_step")
    speeds = {"steps_per_second": speed, "tokens_per_second": speed * work.tokens}
    return {**speeds, "model_flop_use": speed * work.flops / peak, **medians}


def _print(contenders: dict[str, dict[str, float]], ratios: dict[str, dict[str, float]]) -> None:
    columns = [key for key in COLUMNS if key in contenders[OURS]]
    width = max(map(len, contenders))
    print(" " * width, *(f"{COLUMNS[key][0]:>11}" for key in columns))
    for name, measured in contenders.items():
        print(f"{name:{width}}", *(f"{_rounded(measured[key] / COLUMNS[key][1]):>11}" for key in columns))
    for name, parts in ratios.items():
        print(f"{OURS} / {name}:", ", ".join(f"{COLUMNS[key][0]} {ratio:.2f}" for key, ratio in parts.items()))


def _rounded(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"
