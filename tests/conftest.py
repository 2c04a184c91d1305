"""What the tests share: where the embedded data is, and how scripts and groups of processes are run."""

import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
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
TOPICS = ROOT / "data" / "topics"
MATCHING = ROOT / "data" / "matching"
NLI = ROOT / "data" / "nli"
NER = ROOT / "data" / "ner"
ANNOTATIONS = ROOT / "data" / "annotations"
NESTED = ROOT / "data" / "nested"
SENTENCES = ROOT / "data" / "sentences" / "train.txt"
PARAPHRASES = ROOT / "data" / "paraphrases" / "train.txt"
SCORES = ROOT / "data" / "scores"
RANKING = ROOT / "data" / "ranking"
STS = ROOT / "data" / "sts" / "dev.txt"
RETRIEVAL = ROOT / "data" / "retrieval"  # a folder in BEIR's form, and pairs.txt

os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples in every run, however slow the machine; `make test` takes fewer, by --hypothesis-profile.
settings.register_profile("all", derandomize=True, deadline=None, database=None, max_examples=60)
settings.register_profile("fast", settings.get_profile("all"), max_examples=15)
settings.load_profile("all")


def pytest_collection_modifyitems(items):
    """The modules whose tests take longest come first, so that two processes end together."""
    items.sort(key=lambda item: not item.path.stem.endswith(("every_operation", "interruption")))


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture
def log_lines():
    """The messages logged during a test."""
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(message.record["message"]), level="DEBUG")
    yield lines
    logger.remove(handler)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folders of runs of all scripts, by the names of `tests.folders.RUNS`."""
    from tests.folders import Folders

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers of one session share them
        base = base.parent
    (base / "folders").mkdir(exist_ok=True)
    return Folders(base / "folders")


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The folder of a small classifier with its export in it, see `tests.exports`."""
    from tests.exports import exported_classifier

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    (base / "exported").mkdir(exist_ok=True)
    return exported_classifier(base / "exported")


@pytest.fixture(scope="session")
def graphs(tmp_path_factory, folders):
    """The exported folders of runs, by the names of `tests.folders.RUNS`."""
    from tests.exports import Graphs

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    (base / "graphs").mkdir(exist_ok=True)
    return Graphs(folders, base / "graphs")


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


def slow_but(quick: Iterable[str], names: Iterable[str]) -> list[object]:
    """Parameters of a test: `make test` runs those of the quick names, the whole suite all."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def free_port() -> int:
    """A TCP port that no one uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launcher(module: str = "torch.distributed.run") -> tuple[str, ...]:
    """Two processes by `torch.distributed.launch`, which passes `--local-rank`, or by torchrun, which does not."""
    return ("-m", module, "--nproc_per_node=2", f"--master_port={free_port()}")


class Script:
    """A script of the project's root that runs on the CPU, in a process group of its own.

    Without a launcher it is forked from a process that has imported what takes seconds to import, and is run as
    `python run_X.py` runs it.

    Args:
        arguments: the script and its options.
        launcher: options of Python that launch it.
        within: a command that runs the launcher, such as in another network.
    """

    def __init__(self, *arguments: object, launcher: tuple[str, ...] = (), within: tuple[str, ...] = ()) -> None:
        self.arguments = [*launcher, *map(str, arguments)]
        self._folder = Path(tempfile.mkdtemp())
        files = [self._folder / name for name in ("stdout", "stderr")]
        if launcher:
            command = [*within, sys.executable, *self.arguments]
            self._process = multiprocessing.get_context("fork").Process(target=_execute, args=(command, files))
            self._process.start()
        else:
            self._process = fork(_run_main, self.arguments, files)
        self.pid = self._process.pid

    @property
    def stderr(self) -> str:
        """What it has logged so far."""
        file = self._folder / "stderr"
        return file.read_text() if file.exists() else ""

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until it has logged this text."""
        deadline = time.monotonic() + seconds
        while text not in self.stderr:
            assert self._process.is_alive(), self.stderr
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self, check: int = 0, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for its end; `check` is the exit code expected, that of a signal negative."""
        self._process.join(seconds)
        try:
            stdout, stderr = ((self._folder / name).read_text() for name in ("stdout", "stderr"))
            assert not self._process.is_alive(), stderr
            assert self._process.exitcode == check, stderr
        finally:
            if self._process.is_alive():
                os.killpg(self.pid, signal.SIGKILL)  # also what a launcher started
            shutil.rmtree(self._folder)
        return subprocess.CompletedProcess(self.arguments, check, stdout, stderr)


def run_script(*arguments: object, launcher: tuple[str, ...] = (), check: int = 0):
    """Run a script to its end; `check` is the exit code expected."""
    return Script(*arguments, launcher=launcher).finish(check)


def _redirect(files: list[Path]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.chdir(ROOT)
    os.environ.update({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)


def _execute(command: list[str], files: list[Path]) -> None:
    _redirect(files)
    os.execvp(command[0], command)


def _run_main(arguments: list[str], files: list[Path]) -> None:
    _redirect(files)
    torch.set_num_threads(1)
    warnings.resetwarnings()
    sys.argv = arguments
    sys.path.insert(0, str(ROOT))
    runpy.run_path(arguments[0], run_name="__main__")


def fork(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process that is forked from one that has imported what takes seconds to import, and done nothing else."""
    _preload()
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments)
    process.start()
    return process


def wait_for(path: Path, seconds: float = 60) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.005)


def _preload() -> None:
    multiprocessing.set_forkserver_preload(["bertorch.training.loop", "bertorch.inference.load", "scipy.stats"])


def run_processes(world_size: int, function: Callable[..., None], *arguments: object) -> None:
    """Run a function in `world_size` Gloo processes; it and its arguments must be picklable.

    They are forked from a process that has imported what takes seconds to import, and done nothing else.
    """
    _preload()
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
