import resource
import signal
import sys

import pytest
from loguru import logger

from bertorch.errors import UserError
from bertorch.training.metrics_file import TensorBoardFolder
from tests.conftest import run_processes
from tests.short_runs import trained
from tests.small_tasks import classification_data, classification_task


def test_a_missing_package_is_named_before_training(tmp_path, monkeypatch, log_lines):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        UserError, match="expected the package tensorboard, got: .* `pip install tensorboard`, or leave"
    ):
        trained(
            tmp_path / "run", classification_task(), classification_data(8), tensorboard_dir=str(tmp_path / "board")
        )
    assert not any(line.startswith("global step") for line in log_lines)


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_it_shows_the_numbers_of_the_lines(tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoardFolder(str(tmp_path), after=0)
    board.write({"step": 2, "epoch": 1, "loss": 0.5, "rate": 0.25})
    board.write({"step": 3, "epoch": 1, "metric": "dev_F1", "dev_F1": 0.75})
    assert scalars(tmp_path) == {
        "epoch": [(2, 1.0), (3, 1.0)], "loss": [(2, 0.5)], "rate": [(2, 0.25)], "dev/F1": [(3, 0.75)]
    }  # fmt: skip


def test_steps_that_are_taken_again_are_shown_once(tmp_path):
    pytest.importorskip("tensorboard")
    for after, value in ((0, 1.0), (2, 2.0)):
        board = TensorBoardFolder(str(tmp_path), after=after)
        for step in range(after + 1, 5):
            board.write({"step": step, "loss": value})
    assert scalars(tmp_path) == {"loss": [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]}


def test_a_file_in_place_of_the_folder(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--tensorboard_dir .*file: expected a folder that can be written to, got: "):
        TensorBoardFolder(str(tmp_path / "file"), after=0)


def fill_the_disk(folder) -> None:
    """In a process of its own: files may grow to 600 bytes, as on a disk that is full then."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
    told: list[str] = []
    logger.add(told.append)
    board = TensorBoardFolder(str(folder / "board"), after=0)
    for step in range(1, 30):
        board.write({"step": step, "loss": 1.0})
    (folder / "told").write_text("".join(told))


def test_a_full_disk_leaves_what_is_written_and_the_run_goes_on(tmp_path):
    pytest.importorskip("tensorboard")
    run_processes(1, fill_the_disk, tmp_path)
    assert len((tmp_path / "told").read_text().splitlines()) == 1
    assert (
        "board: gets no more numbers, since it cannot be written to: File too large" in (tmp_path / "told").read_text()
    )
    steps = [step for step, _ in scalars(tmp_path / "board")["loss"]]
    assert steps == list(range(1, len(steps) + 1))
    assert 1 < len(steps) < 29
