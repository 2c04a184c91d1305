"""A run with folds that ends at any of its file operations; then the same command goes on."""

import os
import shutil
import signal
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bertorch.training.folds_folder import fold_folders
from bertorch.training.run_folder import RECORD
from tests.conftest import fork
from tests.faults import run_with_faults
from tests.test_folds import config_of, run
from tests.training.test_every_operation import assert_same_end, content_of, files

SECONDS = 60  # of a run
SETTINGS = {"folds": 2, "max_steps": 2, "class_weights": "none", "warmup_proportion": 0.0}
RESULTS = ("out_of_fold.tsv", "errors.tsv", "predictions.jsonl", "report.json")


class Runs:
    """Runs in the folder `run`, each in a process of its own."""

    def __init__(self, base: Path) -> None:
        self.base, self.folder, self.operations, self.log = base, base / "run", base / "operations", base / "log"
        config_of("classifier", self.folder)

    def run(self, number: int = 10**9, **settings: Any) -> int:
        """With an end at the operation of a number; returns the exit code, that of a signal negative."""
        start = partial(run, "classifier", self.folder, **(SETTINGS | settings))
        return run_with_faults(start, self.folder, self.operations, log=self.log, seconds=SECONDS, number=number)


def check(runs: Runs, number: int, reference: Path, earlier: Path | None, *, resume: bool) -> bool:
    """End a run at an operation, and go on; returns whether it has this operation."""
    shutil.rmtree(runs.folder, ignore_errors=True)
    overwrite = earlier is not None
    if earlier is not None:
        shutil.copytree(earlier, runs.folder)
    code = runs.run(number, overwrite=overwrite)
    if len(runs.operations.read_text().splitlines()) < number:
        assert code == 0, runs.log.read_text()
        return False
    assert code == -signal.SIGKILL, runs.log.read_text()
    is_claimed = earlier is None or content_of(runs.folder / RECORD) != content_of(earlier / RECORD)
    if not is_claimed:
        assert runs.run() == 2
    code = runs.run(resume=resume and is_claimed, overwrite=not is_claimed)
    assert code == 0, runs.log.read_text()
    assert files(runs.folder) == files(reference)
    for fold, expected in zip(fold_folders(str(runs.folder)), fold_folders(str(reference)), strict=True):
        assert_same_end(Path(fold), Path(expected))
    for name in (*RESULTS, RECORD):
        assert content_of(runs.folder / name) == content_of(reference / name), name
    return True


def drive(base: Path, report: Path, numbers: range, *, overwrite: bool) -> None:
    """In a process of its own, which only forks; it reports what failed."""
    torch.set_num_threads(1)
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # torch in its threads does not always survive a fork
    runs, failures = Runs(base), []
    try:
        earlier = None
        if overwrite:  # three folds and the files of an ordinary run
            assert runs.run(folds=3, seed=7, max_steps=1) == 0, runs.log.read_text()
            earlier = runs.folder.rename(base / "earlier")
        assert runs.run() == 0, runs.log.read_text()
        reference = runs.folder.rename(base / "reference")
        for number in numbers:
            try:
                if not check(runs, number, reference, earlier, resume=number % 2 == 0):
                    break
            except Exception:  # noqa: BLE001 - is told by the test
                failures.append(f"{number}\n{runs.log.read_text()[-3000:]}\n{traceback.format_exc()}")
        else:
            failures.append("the run has more operations than these")
    except BaseException:  # noqa: BLE001 - is told by the test
        failures.append(traceback.format_exc())
    report.write_text("\n\n".join(failures))


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_it_goes_on_from_any_operation(overwrite, tmp_path):
    fork(drive_part, tmp_path, tmp_path / "report", overwrite).join()
    assert (tmp_path / "report").read_text() == ""


def drive_part(base: Path, report: Path, overwrite: bool) -> None:  # noqa: FBT001 - `fork` passes no keywords
    drive(base, report, range(1, 2000, 180), overwrite=overwrite)  # of some 400
