"""What the tests share: where the embedded data is, and how scripts and groups of processes are run."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import settings
from loguru import logger

from bertorch import distributed

ROOT = Path(__file__).parent.parent
TINY = ROOT / "data" / "bert-tiny-zh"
REVIEWS = ROOT / "data" / "reviews"
MATCHING = ROOT / "data" / "matching"
NLI = ROOT / "data" / "nli"
NER = ROOT / "data" / "ner"
SENTENCES = ROOT / "data" / "sentences" / "train.txt"
PARAPHRASES = ROOT / "data" / "paraphrases" / "train.txt"
STS = ROOT / "data" / "sts" / "dev.txt"

os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples in every run, however slow the machine.
settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("same")


@pytest.fixture
def log_lines():
    """The messages logged during a test."""
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(message.record["message"]), level="DEBUG")
    yield lines
    logger.remove(handler)


@pytest.fixture
def special(tmp_path):
    """What can stand in a file's place and cannot be read like one, by kind: a path of each."""
    paths = {kind: tmp_path / kind for kind in ("folder", "pipe", "socket")} | {"device": Path(os.devnull)}
    paths["folder"].mkdir()
    os.mkfifo(paths["pipe"])
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket is at most some hundred bytes
        server.bind("socket")
        os.chdir(here)
        yield paths


def free_port() -> int:
    """A TCP port that no one uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launcher(module: str = "torch.distributed.run") -> tuple[str, ...]:
    """Two processes by `torch.distributed.launch`, which passes `--local-rank`, or by torchrun, which does not."""
    return ("-m", module, "--nproc_per_node=2", f"--master_port={free_port()}")


def run_script(*arguments: object, launcher: tuple[str, ...] = (), check: int = 0):
    """Run a script of the project's root on the CPU; `check` is the exit code expected."""
    process = subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # also what a launcher started
        raise
    assert process.returncode == check, stderr
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_processes(world_size: int, function: Callable[..., None], *arguments: object) -> None:
    """Run a function in `world_size` Gloo processes; it and its arguments must be picklable.

    They are forked from a process that has imported what takes seconds to import, and done nothing else.
    """
    multiprocessing.set_forkserver_preload(["bertorch.training.trainer", "bertorch.models.tagger", "scipy.stats"])
    mp.start_processes(
        _process,
        args=(world_size, free_port(), function, arguments),
        nprocs=world_size,
        start_method="forkserver",
    )


def _process(
    rank: int, world_size: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with distributed.session():
        function(*arguments)
