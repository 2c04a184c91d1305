"""A run that ends, or has no more room, at any of its file operations; then the same command goes on.

The processes are forked from one that has imported everything and made the task. `make kills` has every operation of
every variant meet both faults; otherwise of eight in turn of one variant two meet one fault, and two the other.
"""

import json
import os
import re
import shutil
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from bertorch.encoder.classifier import SequenceClassifier
from bertorch.tasks.classification import ClassificationTask
from bertorch.training.checkpoints import STATE
from bertorch.training.metrics_file import METRICS, read_metrics
from bertorch.training.run_folder import RECORD
from bertorch.weights import WEIGHTS
from tests.architectures import small_classifier
from tests.conftest import TINY, fork
from tests.faults import TAKE_ROOM, run_with_faults
from tests.short_runs import config, fit
from tests.small_tasks import DROPOUT, classification_data

SECONDS = 60  # of a run
NEVER = 10**9
TIMES = {"speed", "tokens_per_second", "memory"}
BEST = {"save_best_model": True, "eval_steps": 1}


class Variant(NamedTuple):
    """A run: training examples, of which 8 make a step, and options."""

    examples: int
    settings: dict[str, Any]
    with_tokenizer: bool = False  # more operations


# Saves in the background are made slow, so that training goes on meanwhile. Steps 1, 2 and 3 improve the metric.
VARIANTS = {
    "plain": Variant(32, {"save_steps": 2}, with_tokenizer=True),
    "best": Variant(32, {"save_steps": 2, **BEST}),
    "background": Variant(40, {"save_steps": 1, "save_interval": 0.03}),
    "best, background": Variant(32, {"save_steps": 1, "save_interval": 0.3, **BEST}),
    "overwrite": Variant(32, {"save_steps": 2, "overwrite": True}),
}
Weights = dict[str, torch.Tensor]


class Operation(NamedTuple):
    """A file operation, its path relative to the folder."""

    number: int
    thread: str
    name: str
    path: str

    def moves(self, what: str) -> bool:
        """Whether it moves this file, or folder of this prefix, into place."""
        return self.name == "os.rename" and re.fullmatch(rf"/\.unfinished-\w+/{what}", self.path) is not None


class Runs:
    """Runs in the folder `run`, each in a process of its own."""

    def __init__(self, base: Path, variant: Variant) -> None:
        self.base, self.folder, self.log, self.operations = base, base / "run", base / "log", base / "operations"
        self.is_background, self.has_tokenizer = "save_interval" in variant.settings, variant.with_tokenizer
        self._settings = {"epochs": 1, "logging_steps": 1, "learning_rate": 5e-3, "warmup_proportion": 0.0}
        self._settings |= variant.settings
        self._task = ClassificationTask(
            SequenceClassifier(small_classifier("bert", **DROPOUT)),
            ["a", "b", "c"],
            tokenizer=AutoTokenizer.from_pretrained(TINY) if variant.with_tokenizer else None,
            max_seq_length=64,
        )
        self._train = classification_data(variant.examples, seed=7)
        self._dev = classification_data(16, seed=8) if "save_best_model" in variant.settings else None

    def run(self, number: int = NEVER, *, is_full: bool = False, is_slow: bool = False, **settings: Any) -> int:
        """With a fault at the operation of a number; returns the exit code, that of a signal negative."""
        self._number = number
        slow = 1e-3 if is_slow and self.is_background else 0.0  # seconds

        def run() -> None:
            fit(config(self.folder, **(self._settings | settings)), self._task, self._train, self._dev)

        faults: dict[str, Any] = {"number": number, "is_full": is_full, "slow": slow}
        return run_with_faults(run, self.folder, self.operations, log=self.log, seconds=SECONDS, **faults)

    def begin(self, earlier: Path | None) -> None:
        """Empty the folder, or fill it with earlier results."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if earlier is not None:
            shutil.copytree(earlier, self.folder)

    def begun(self) -> list[Operation]:
        """The operations of the last run."""
        lines = (line.split(" ", 3) for line in self.operations.read_text().splitlines())
        return [Operation(int(number), *rest) for number, *rest in lines]

    def done(self) -> list[Operation]:
        """The operations of the last run that are surely done."""
        last = {operation.thread: operation.number for operation in self.begun()}
        return [each for each in self.begun() if each.number < min(last[each.thread], self._number)]


def weights_of(folder: Path) -> Weights:
    return torch.load(folder / WEIGHTS, weights_only=True)


def is_one_of(found: Weights, known: list[Weights]) -> bool:
    return any(
        found.keys() == each.keys() and all(torch.equal(found[name], each[name]) for name in each) for each in known
    )


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def numbers_in(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the machine, and without where the time went."""
    lines = [line for line in read_metrics(folder / METRICS) if "seconds" not in line]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def content_of(path: Path) -> Any:
    if path.name in {RECORD, STATE}:  # without the random id
        return {name: value for name, value in json.loads(path.read_text()).items() if name not in {"id", "run"}}
    return path.read_bytes()


def assert_same_end(folder: Path, reference: Path) -> None:
    assert files(folder) == files(reference)
    assert numbers_in(folder) == numbers_in(reference)
    assert is_one_of(weights_of(folder), [weights_of(reference)])
    for name in files(reference) - {METRICS, WEIGHTS}:
        if (reference / name).is_file():
            assert content_of(folder / name) == content_of(reference / name), name


def assert_whole(runs: Runs, known: dict[int, Weights], earlier: list[Weights], *, is_claimed: bool) -> None:
    """The weights for use and the newest checkpoint are complete, and what was saved last is there."""
    folder = runs.folder
    if (folder / WEIGHTS).exists():
        assert is_one_of(weights_of(folder), [*known.values(), *earlier])
    saved = [int(each.path.rpartition("-")[2]) for each in runs.done() if each.moves(r"checkpoint-\d+")]
    found = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*")}
    assert max(found, default=0) >= max(saved, default=0)
    if found and (saved or not is_claimed or not earlier):  # else they are the earlier ones, which are being removed
        newest = found[max(found)]
        json.loads((newest / STATE).read_text())
        load_file(newest / "optimizer.safetensors")
        assert is_one_of(load_file(newest / "model.safetensors"), [known[max(found)], *earlier])


def goes_on(runs: Runs, number: int, *, is_full: bool, reference: Path, known, earlier: Path | None) -> bool:
    """End a run at an operation, check what it left, and go on; returns whether it has this operation."""
    folder = runs.folder
    runs.begin(earlier)
    code = runs.run(number, is_full=is_full, is_slow=True)
    log, begun = runs.log.read_text(), runs.begun()
    if len(begun) < number:  # it has no such operation
        assert code == 0, log
        return False
    assert "Traceback" not in log, log
    if code == 0 and is_full:  # nothing that matters came after it
        assert begun[number - 1].name not in TAKE_ROOM, log
    else:
        assert code == (2 if is_full else -signal.SIGKILL), log
        assert not is_full or "No space left on device" in log or "unexpected pos" in log, log
    is_claimed = earlier is None or content_of(folder / RECORD) != content_of(earlier / RECORD)
    assert_whole(runs, known, [] if earlier is None else [weights_of(earlier)], is_claimed=is_claimed)
    again = {"resume": True, "overwrite": False}
    if not is_claimed:
        for name in files(earlier):
            if (earlier / name).is_file():
                assert (folder / name).read_bytes() == (earlier / name).read_bytes(), name
        assert runs.run(**again) == 2
        again = {}
    if number % 4 == 0 and earlier is None:  # and once more, while it goes on
        runs.run(number // 4, is_full=is_full, is_slow=True, **again)
    code = runs.run(**again)
    assert code == 0, runs.log.read_text()
    assert_same_end(folder, reference)
    return True


def drive(base: Path, variant: str, report: Path, fault: str, numbers: Sequence[int]) -> None:
    """In a process of its own, which only forks; it reports what failed."""
    torch.set_num_threads(1)
    try:
        failures = failures_of(base, variant, is_full=fault == "full", numbers=numbers)
    except BaseException:  # noqa: BLE001 - is told by the test
        failures = [traceback.format_exc()]
    report.write_text("\n\n".join(failures))


def failures_of(base: Path, variant: str, *, is_full: bool, numbers: Sequence[int]) -> list[str]:
    """Of an uninterrupted run, then of one that ends at each of these operations."""
    runs, reference, failures = Runs(base, VARIANTS[variant]), base / "reference", []
    known = every_step(runs)
    earlier = earlier_results(runs) if "overwrite" in VARIANTS[variant].settings else None
    for _ in range(5):  # until the saves have been as slow as they are meant to be
        runs.begin(earlier)
        assert runs.run(is_slow=True) == 0, runs.log.read_text()
        if not runs.is_background or is_overlapping(runs):
            break
    else:
        failures.append(f"training waits for saves:\n{runs.operations.read_text()}")
    missed = TAKE_ROOM - {each.name for each in runs.begun()} - ({"tokenizers"} if not runs.has_tokenizer else set())
    assert not missed, f"nothing of this kind was seen: {missed}"
    shutil.copytree(runs.folder, reference)
    for number in numbers:
        try:
            if not goes_on(runs, number, is_full=is_full, reference=reference, known=known, earlier=earlier):
                return failures
        except Exception:  # noqa: BLE001 - is told by the test
            failures.append(f"{number}\n{runs.log.read_text()[-3000:]}\n{traceback.format_exc()}")
    return [*failures, "the run has more operations than these"]


def every_step(runs: Runs) -> dict[int, Weights]:
    """The weights after each step."""
    often = {"save_steps": 1, "save_interval": 0.0, "keep_checkpoints": 99, "save_best_model": False}
    assert runs.run(overwrite=False, **often) == 0, runs.log.read_text()
    return {int(path.name[11:]): load_file(path / "model.safetensors") for path in runs.folder.glob("checkpoint-*")}


def earlier_results(runs: Runs) -> Path:
    """A run of other options, and files of another program that would be loaded in the place of ours."""
    earlier = runs.base / "earlier"
    runs.begin(None)
    assert runs.run(overwrite=False, seed=7) == 0
    for name in ("model.safetensors.index.json", "model-00001-of-00001.safetensors", "notes.txt"):
        (runs.folder / name).write_text("of another")
    shutil.copytree(runs.folder, earlier)
    return earlier


def is_overlapping(runs: Runs) -> bool:
    """Whether numbers of steps were written in the middle of a save, and something due was not saved."""
    threads = "".join(each.thread[0] for each in runs.done())
    evaluated = [line["dev_accuracy"] for line in numbers_in(runs.folder) if "dev_accuracy" in line]
    better = [value for step, value in enumerate(evaluated) if value > max(evaluated[:step], default=-1)]
    due = len(better) or numbers_in(runs.folder)[-1]["step"]
    return "sMs" in re.sub("(.)\\1+", "\\1", threads) and sum(each.moves(WEIGHTS) for each in runs.done()) < due


USUAL = "best, background"
IS_NIGHTLY = "BERTORCH_TEST_KILLS" in os.environ
NIGHTLY = pytest.mark.skipif(not IS_NIGHTLY, reason="takes minutes; make kills")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "numbers"),
    [
        pytest.param(USUAL, range(8, 1000, 24), id="some"),
        *(
            pytest.param(each, range(1, 1000), id=each, marks=(pytest.mark.slow, *([] if each == USUAL else [NIGHTLY])))
            for each in VARIANTS
        ),
    ],
)
@pytest.mark.parametrize("fault", ["killed", pytest.param("full", marks=pytest.mark.slow)])
def test_it_goes_on_from_every_operation(variant, numbers, fault, tmp_path):
    is_whole = IS_NIGHTLY or numbers.step > 1
    turn = 2 if fault == "full" else 0
    numbers = [number for number in numbers if is_whole or number // 2 % 6 == turn]
    fork(drive, tmp_path, variant, tmp_path / "report", fault, numbers).join()
    assert (tmp_path / "report").read_text() == ""
