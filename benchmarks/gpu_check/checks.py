"""The checks, each in a process of its own; a check returns its rows of the table and raises if something is wrong."""

import gc
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from loguru import logger

import run_classifier
import run_ner
from benchmarks.gpu_check.material import LINES, Material
from benchmarks.measuring import DATA, ROOT, run_command, timed
from benchmarks.peers.ours import watched
from benchmarks.peers.watching import Stopwatch
from bertorch import cli, distributed, load
from bertorch.config import ClassifierConfig, NERConfig
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.inference import engine
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.training.saving import publish
from bertorch.weights import WEIGHTS

# Packages beside those of bertorch that a check needs.
PACKAGES = {"tests": ("pytest", "hypothesis"), "commands": ("accelerate",), "peers": ("accelerate",)}
_RETRIED = 5  # tests that failed
MODES = {
    "eager": ("--cuda_graphs", "off", "--compile", "off"),
    "graphs": ("--compile", "off"),
    "compiled, graphs": ("--compile", "on"),
}
SCRIPTS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "run_classifier.py": (ClassifierConfig, run_classifier.run),
    "run_ner.py": (NERConfig, run_ner.run),
}


class Row(NamedTuple):
    """A measured number."""

    what: str
    value: float
    unit: str


def tests(_: Material) -> Iterator[Row]:
    """The tests that wait for CUDA."""
    # Others may need packages that are not installed.
    files = [str(file) for file in sorted(ROOT.glob("tests/**/test_*.py")) if "pytest.mark.cuda" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files]
    command += ["--tb=short", "--show-capture=stderr"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout):
        yield Row(f"tests {kind}", int(number), "")
    if not done.returncode:
        return
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
    # What a failure depends on: the tests before it, and warnings, which are errors in them.
    for test in [line.partition(" - ")[0] for line in failed[:_RETRIED]]:
        for how, options in (("alone", []), ("alone, warnings as such", ["-W", "default"])):
            alone = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *options, test]
            again = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, check=False)
            print(again.stdout[-1000:])
            yield Row(f"{test.rpartition('::')[2]}, {how}: passed", not again.returncode, "")
    raise RuntimeError("; ".join(failed) or "no tests ran")


def resume(material: Material) -> list[Row]:
    """Interrupted and resumed runs against uninterrupted ones, bit for bit with `--deterministic`."""
    with ThreadPoolExecutor() as pool:
        deterministic, other = pool.map(lambda options: _resumed_equals(material, options), [["--deterministic"], []])
    rows = [Row("resumed = uninterrupted, --deterministic", deterministic, ""), Row("…, as usual", other, "")]
    if not deterministic:
        raise RuntimeError("with --deterministic, the resumed run differs from the uninterrupted one")
    return rows


def steps(material: Material) -> Iterator[Row]:
    """Training steps of a classifier of texts and pairs, eager, as graphs, and compiled."""
    for size in (32, 128):
        for data, options in (("texts", []), ("pairs", ["--is_text_pair"])):
            arguments = ["--train_data_file", material.file(f"{data}.tsv"), "--label_file", material.file("labels.txt")]
            arguments += ["--batch_size", str(size), *options]
            yield from _speeds(material, "run_classifier.py", "bert", arguments, f"{data}, batch {size}")


def architectures(material: Material) -> Iterator[Row]:
    """ModernBERT and the CRF, eager, as graphs, and compiled."""
    texts = ["--train_data_file", material.file("texts.tsv"), "--label_file", material.file("labels.txt")]
    entities = ["--train_data_file", material.file("entities.json"), "--label_file", material.file("tags.txt")]
    entities += ["--tag", "bio", "--use_crf"]
    yield from _speeds(material, "run_classifier.py", "modernbert", texts, "ModernBERT, texts, batch 32")
    yield from _speeds(material, "run_ner.py", "bert", entities, "CRF, batch 32")


def saving(material: Material) -> Iterator[Row]:
    """Whole commands of 300 steps, with the default saving and with one save after the last step."""
    most = 12 if material.pretend else 300
    for name, options in (("default saving", []), ("saved at the end only", ["--save_steps", str(10**6)])):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            arguments = _arguments(material, material.encoder("bert"), folder)
            run_command([*arguments, "--max_steps", str(most), "--epochs", "9", *options])
            yield Row(f"command of {most} steps, {name}", time.perf_counter() - began, "s")


def inference(material: Material) -> Iterator[Row]:
    """Encoding texts, with batches of either size."""
    texts = [line.split("\t")[0] for line in Path(material.file("texts.tsv")).read_text(encoding="utf-8").splitlines()]
    folder = material.folder / "embedder"
    folder.mkdir()
    model = SentenceEncoder.from_pretrained(material.encoder("bert"), "mean")
    task = ContrastiveTask(model, tokenizer=load_tokenizer(material.encoder("bert")), max_seq_length=128)
    publish(str(folder), model.weights.state_dict(), task.savables)
    encoder = load(str(folder))
    for tokens in (16384, 65536):
        with patch.object(engine, "batch_tokens", lambda _, tokens=tokens: tokens):
            encoder.encode(texts)
            seconds = min(timed(lambda: encoder.encode(texts), distributed.device()) for _ in range(3))
        yield Row(f"encode, batches of {tokens} tokens", len(texts) / seconds, "texts/s")


def commands(material: Material) -> Iterator[Row]:
    """Whole commands of an epoch, with evaluation and saving at the defaults, against a user's script with Trainer."""
    options = ["--task", "classifier", "--turns", "1", "--epochs", "1", *_inputs(material)]
    options += ["--dev_data_file", material.file("dev.tsv")]
    options += (
        ["--max_steps", "3", "--save_steps", "2", "--our_options", "--logging_steps 1"] if material.pretend else []
    )
    *_, content = _benchmark("end_to_end", options)
    for task in content["tasks"].values():
        for name, taken in task["medians"].items():
            yield Row(f"command of an epoch, {name}", taken["wall_clock"], "s")
        yield Row("wall clock of the peer over ours", task["wall_clock_ratio"], "")


def peers(material: Material) -> Iterator[Row]:
    """Steady steps and memory of `fit` and of transformers' Trainer, both also compiled."""
    steps = ["--warmup", "1", "--steps", "2"] if material.pretend else ["--warmup", "40", "--steps", "60"]
    options = ["--task", "classifier", "--rounds", "1", *steps, *_inputs(material)]
    told = set()
    for content in _benchmark("peers", options):
        for name, taken in content["results"][0]["contenders"].items():
            if name in told:
                continue
            told.add(name)
            yield Row(f"steps of the same texts, {name}", taken["steps_per_second"], "steps/s")
            if "peak_reserved_bytes" in taken:
                yield Row(f"…, {name}, held", taken["peak_reserved_bytes"] / 2**30, "GiB")


def _inputs(material: Material) -> list[str]:
    files = ["--train_data_file", material.file("texts.tsv"), "--label_file", material.file("labels.txt")]
    return [*files, "--pretrained_model_name_or_path", material.encoder("bert"), "--max_seq_length", "128"]


def _benchmark(name: str, options: list[str]) -> Iterator[dict[str, Any]]:
    """Run a benchmark; what it has written as JSON, each time that it changes.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(file)]
        before, is_running = "", True
        with subprocess.Popen(command, cwd=ROOT) as process:
            while is_running:
                is_running = process.poll() is None
                with suppress(FileNotFoundError, ValueError):  # not there yet, or being written
                    text = file.read_text()
                    content = dict(json.loads(text))
                    if text != before:
                        yield content
                    before = text
                time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"benchmarks.{name}: exit code {process.returncode}")


CHECKS: dict[str, Callable[[Material], Any]] = {
    each.__name__: each for each in (tests, resume, steps, saving, commands, peers, architectures, inference)
}


def _speeds(material: Material, script: str, architecture: str, arguments: list[str], name: str) -> Iterator[Row]:
    """Steps a second and memory in each mode.

    Raises:
        RuntimeError: graphs were off; after all modes.
    """
    off = []
    argv = [*arguments, "--pretrained_model_name_or_path", material.encoder(architecture), "--max_seq_length", "128"]
    modes = {mode: options for mode, options in MODES.items() if not (material.pretend and "compiled" in mode)}
    for mode, options in modes.items():
        watch, obstacles = _timed_steps(material, script, [*argv, *options])
        yield Row(f"{name}, {mode}", 1 / watch.seconds_per_step, "steps/s")
        yield Row(f"{name}, {mode}, until the first step", watch.first_step, "s")
        if watch.peak_allocated is not None and watch.peak_reserved is not None:
            yield Row(f"{name}, {mode}, used", watch.peak_allocated / 2**30, "GiB")
            yield Row(f"{name}, {mode}, held", watch.peak_reserved / 2**30, "GiB")
        if mode != "eager":
            off += [f"{name}, {mode}: {obstacle}" for obstacle in obstacles]
    if off:
        raise RuntimeError("; ".join(off))


def _timed_steps(material: Material, script: str, argv: list[str]) -> tuple[Stopwatch, list[str]]:
    """Run a script, and say what its log has against CUDA graphs."""
    warmup, measured = (1, 2) if material.pretend else (60, 60)
    config_class, run = SCRIPTS[script]
    device = distributed.device()
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    watch = Stopwatch(warmup, measured, device)
    with tempfile.TemporaryDirectory() as folder, _obstacles() as obstacles, watched(watch):
        argv = [*argv, "--max_steps", str(warmup + measured), "--epochs", "9", "--saved_dir", folder]
        run(cli.parse(config_class, [*argv, "--save_steps", str(10**6), "--keep_checkpoints", "0"]))
    watch.require_all(script)
    return watch, obstacles


@contextmanager
def _obstacles() -> Iterator[list[str]]:
    """What the log says of graphs that are off."""
    lines: list[str] = []
    handler = logger.add(
        lambda message: lines.append(message.record["message"]),
        filter=lambda record: "CUDA graphs: off" in record["message"],
    )
    try:
        yield lines
    finally:
        logger.remove(handler)


def _arguments(material: Material, encoder: str, saved_dir: Path | str) -> list[str]:
    # The later of two values of an option counts.
    options = [*_inputs(material), "--pretrained_model_name_or_path", encoder, "--saved_dir", str(saved_dir)]
    return [sys.executable, "run_classifier.py", *options]


def _resumed_equals(material: Material, options: list[str]) -> bool:
    """Whether a run that is stopped by a signal and resumed ends with the weights of one that is not."""
    epochs = 1 if material.pretend else max(1, 1500 * 32 // LINES)
    results = []
    with tempfile.TemporaryDirectory() as parent:
        for name in ("whole", "interrupted"):
            folder = Path(parent) / name
            arguments = _arguments(material, str(DATA / "bert-tiny-zh"), folder)
            arguments += ["--epochs", str(epochs), "--save_steps", "4" if material.pretend else "100", *options]
            if name == "interrupted":
                _interrupt(arguments, folder)
                arguments.append("--resume")
            run_command(arguments)
            results.append(torch.load(folder / WEIGHTS, weights_only=True))
    whole, interrupted = results
    return all(torch.equal(tensor, interrupted[name]) for name, tensor in whole.items())


def _interrupt(arguments: list[str], folder: Path) -> None:
    """Start a run, and stop it after its first checkpoint."""
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(folder.glob("checkpoint-*")):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate()
        if process.returncode != cli.INTERRUPTED:
            raise RuntimeError(f"expected exit code {cli.INTERRUPTED}, got {process.returncode}: {logged[-2000:]}")
