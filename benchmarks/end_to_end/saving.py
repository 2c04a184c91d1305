"""What saves cost a run whose steps cost the host nothing: the share of wall clock that it waits for them."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from loguru import logger
from torch import Tensor

import run_classifier
from benchmarks.gpu_check.material import Material
from benchmarks.measuring import hardware, versions, write_json
from bertorch import cli, distributed, log
from bertorch.config import ClassifierConfig
from bertorch.data.batch import PackedBatch
from bertorch.training.run_state import RunKeeper
from bertorch.training.step import OptimizationStep

BATCH_SIZE = 8  # of the one real step
NEVER = 10**9


@dataclass
class Watch:
    """What a run did, by `time.perf_counter()`.

    Attributes:
        began: when the first step was done, which is a real one; 0 until then.
        saves: beginning and end of each time in which the loop evaluated and saved.
        ended: when the run was over.
    """

    began: float = 0.0
    saves: list[tuple[float, float]] = field(default_factory=list)
    ended: float = 0.0

    @property
    def loop(self) -> float:
        """Seconds from the first step to the last, without the save after it."""
        return self.saves[-1][0] - self.began

    @property
    def waiting(self) -> float:
        """Seconds of `loop` in which it saved."""
        return sum(end - begin for begin, end in self.saves[:-1])

    @property
    def last(self) -> float:
        """Seconds from the last step to the end of the run."""
        return self.ended - self.saves[-1][0]


def run(options: argparse.Namespace) -> None:
    """Train with saves at the defaults and, a tenth as long, without; print, write JSON on demand."""
    log.setup()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    steps = max(10, round(options.seconds / options.step_seconds))
    with tempfile.TemporaryDirectory() as folder:
        material = Material(Path(folder), options.pretend)
        material.make()
        unsaved, _ = _train(material, steps // 10, options.step_seconds, ["--save_steps", str(NEVER)])
        watch, size = _train(material, steps, options.step_seconds)
    undisturbed = unsaved.loop / (steps // 10) * steps
    result = {
        "hardware": hardware(distributed.device()),
        "versions": versions("torch"),
        "pretended": options.pretend,
        "steps": steps,
        "seconds_per_step": options.step_seconds,
        "saved_bytes": size,
        "saves_due": len(watch.saves) - 1,
        "seconds": watch.loop,
        "seconds_waiting": watch.waiting,
        "share_waiting": watch.waiting / watch.loop,
        "seconds_without_saves": undisturbed,
        "share_lost": 1 - undisturbed / watch.loop,
        "seconds_after_the_last_step": watch.last,
    }
    print(
        f"{result['hardware']}, {steps} steps of {1000 * options.step_seconds:g} ms, {size / 1e9:.2f} GB in --saved_dir"
    )
    print(f"from the first step to the last: {watch.loop:.1f} s, times when saves were due: {result['saves_due']}")
    print(f"waiting for saves: {watch.waiting:.2f} s, {100 * result['share_waiting']:.2f} %")
    print(f"lost against a loop without saves, {undisturbed:.1f} s: {100 * result['share_lost']:.2f} %")
    print(f"after the last step: {watch.last:.2f} s")
    write_json(result, options.json)


def _train(material: Material, steps: int, step_seconds: float, more: Sequence[str] = ()) -> tuple[Watch, int]:
    """Take so many simulated steps after a real one; returns also the bytes in `--saved_dir` at the end."""
    with tempfile.TemporaryDirectory() as folder, _simulated(step_seconds) as watch:
        argv = ["--pretrained_model_name_or_path", material.encoder("bert"), "--saved_dir", folder]
        argv += ["--train_data_file", material.file("texts.tsv"), "--label_file", material.file("labels.txt")]
        argv += ["--batch_size", str(BATCH_SIZE), "--max_steps", str(steps + 1), "--epochs", str(steps + 1)]
        # A graph is captured once: it would hold what the patch has it do.
        argv += ["--cuda_graphs", "off", "--compile", "off", *more]
        run_classifier.run(cli.parse(ClassifierConfig, argv))
        watch.ended = time.perf_counter()
        return watch, sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@contextmanager
def _simulated(step_seconds: float) -> Iterator[Watch]:
    """Within the block, a run's steps sleep, but for the first, which makes the optimiser's state."""
    watch = Watch()
    compute, finish_step = OptimizationStep._compute, RunKeeper.finish_step

    def sleep(step: OptimizationStep, batches: Sequence[PackedBatch], *weights: Any) -> Tensor:
        if not watch.began:
            reported = compute(step, batches, *weights)
            watch.began = time.perf_counter()
            return reported
        time.sleep(step_seconds)
        return torch.zeros(len(step.reports), dtype=torch.float64, device=batches[0].input_ids.device)

    def note(keeper: RunKeeper, *args: Any, **options: Any) -> None:
        began = time.perf_counter()
        finish_step(keeper, *args, **options)
        watch.saves.append((began, time.perf_counter()))

    with patch.object(OptimizationStep, "_compute", sleep), patch.object(RunKeeper, "finish_step", note):
        yield watch
