"""The commands in turns, the medians, the ratios and their interval, the table."""

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.end_to_end.commands import OURS, PAIRS, Commands, Taken
from benchmarks.gpu_check.material import Material
from benchmarks.measuring import DATA, hardware, versions, write_json
from benchmarks.peers.job import SAMPLES
from bertorch import distributed
from bertorch.precision import Precision

PACKAGES = ("torch", "transformers", "accelerate", "sentence-transformers")


def take_turns(options: argparse.Namespace, tasks: list[str], environment: Mapping[str, str]) -> None:
    """Compare on each task; print tables, write JSON on demand."""
    device = distributed.device()
    precision = Precision.resolve(options.precision, device).name
    result: dict[str, Any] = {
        "hardware": hardware(device),
        "versions": versions(*PACKAGES),
        "precision": precision,
        "options": vars(options),
        "tasks": {},
    }
    print(result["hardware"], precision, ", ".join(f"{name} {each}" for name, each in result["versions"].items()))
    with tempfile.TemporaryDirectory() as folder:
        model = options.pretrained_model_name_or_path
        if model is None and device.type == "cuda":
            material = Material(Path(folder), pretend=False)
            material.make()
            model = material.encoder("bert")
        model = model or str(DATA / "bert-tiny-zh")
        # Whoever asks the hub about a local folder would wait for the network.
        offline = {"HF_HUB_OFFLINE": "1"} if Path(model).is_dir() else {}
        for task in tasks:
            files = vars(options) if options.train_data_file else SAMPLES[task]
            commands = Commands(PAIRS[task], files, model, options, precision, {**environment, **offline})
            result["tasks"][task] = _compare(task, commands)
            write_json(result, options.json)


def _compare(task: str, commands: Commands) -> dict[str, Any]:
    options, peer = commands.options, commands.pair.peer
    every = f"{options.eval_steps or options.save_steps} and saved every {options.save_steps}"
    print(f"\n{task}: {commands.model}, {commands.files['train_data_file']}")
    print(
        f"batch {options.batch_size}, {options.epochs} epoch(s), evaluated every {every} steps, {options.turns} turn(s)"
    )
    runs: dict[str, list[Taken]] = {OURS: [], peer: []}
    contenders = [(OURS, commands.run_ours), (peer, commands.run_theirs)]
    for _ in range(options.turns):
        for name, run in contenders:
            runs[name].append(run())
        contenders.reverse()
    medians = {name: _medians(taken) for name, taken in runs.items()}
    ratios = [theirs.wall_clock / ours.wall_clock for ours, theirs in zip(runs[OURS], runs[peer], strict=True)]
    ratio, interval = statistics.median(ratios), _interval(ratios)
    ours, theirs = (_steps_and_evaluations(medians[name]) for name in (OURS, peer))
    allowed = theirs / ours if ours and theirs else None
    width = max(map(len, medians))
    print(f"{'':{width}}  wall clock, s  steps/s  steps, s  evaluations, s  dev metric")
    for name, taken in medians.items():
        cells = (f"{_rounded(value):>{size}}" for value, size in zip(taken, (13, 7, 8, 14, 10), strict=True))
        print(f"{name:{width}}", *cells, sep="  ")
    print(
        f"{peer} / {OURS}: wall clock {ratio:.2f}"
        + (f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f}" if interval else "")
        + (f"; steps and evaluations alone {allowed:.2f}" if allowed else ""),
        flush=True,
    )
    return {
        "model": commands.model,
        "train_data": commands.files["train_data_file"],
        "medians": {name: taken._asdict() for name, taken in medians.items()},
        "wall_clock_ratio": ratio,
        "interval": interval,
        "ratio_of_steps_and_evaluations": allowed,
        "runs": {name: [each._asdict() for each in taken] for name, taken in runs.items()},
    }


def _medians(runs: list[Taken]) -> Taken:
    return Taken._make(None if None in values else statistics.median(values) for values in zip(*runs, strict=True))


def _steps_and_evaluations(taken: Taken) -> float | None:
    return None if taken.stepping is None or taken.evaluating is None else taken.stepping + taken.evaluating


def _interval(ratios: list[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean by Student's t, over the logarithms; None of a single turn."""
    if len(ratios) < 2:
        return None
    logs = np.log(ratios)
    low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    return float(np.exp(low)), float(np.exp(high))


def _rounded(number: float | None) -> str:
    return "-" if number is None else f"{number:.4g}"
