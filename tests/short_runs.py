"""Runs of a few steps: on one process, stopped after a step, and W processes against one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.data.dataset import Dataset
from bertorch.tasks.base import Task
from bertorch.training import loop
from bertorch.training.interruption import Interruption
from bertorch.training.start import started
from tests.conftest import run_processes

Weights = dict[str, torch.Tensor]


def config(folder: Path, kind: type[TrainingConfig] = TrainingConfig, **settings: Any) -> TrainingConfig:
    """The options of a run; `kind` is the class of a script."""
    defaults = {"batch_size": 8, "epochs": 2, "save_steps": 3, "save_interval": 0.0, "logging_steps": 2}
    defaults |= {"learning_rate": 1e-3, "train_data_file": "-", "dev_data_file": "-", "saved_dir": str(folder)}
    return kind(**(defaults | settings))


def fit(config: TrainingConfig, task: Task, train: Any, dev: Any = None) -> bool:
    """A run as a script starts it; returns what `loop.fit` does."""
    with started(config):
        return loop.fit(config, task, train, dev)


def trained(folder: Path, task: Task, train: Any, dev: Any = None, **settings: Any) -> Weights:
    """The weights at the end of a run."""
    fit(config(folder, **settings), task, train, dev)
    return task.model.weights.state_dict()


def stop_after(monkeypatch, *steps: int) -> None:
    """Runs are interrupted after these steps, as a signal would."""
    monkeypatch.setattr(Interruption, "requested", lambda self, step: step in steps)


def assert_equal(ours: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


def train_in_double(folder: Path, make_task: Callable[[], Task], train: Dataset, settings: dict) -> None:
    """Train in float64; every process leaves its weights."""
    task = make_task()
    task.model.double()
    torch.save(trained(folder, task, train, **settings), folder / f"rank{distributed.rank()}.pt")


def assert_same_as_one_process(
    folder: Path, world_size: int, make_task: Callable[[], Task], train: Dataset, settings: dict
) -> None:
    """W processes with batch B end with the weights of one process with batch W·B, to 1e-9, and they have moved.

    In float64, and without dropout if the task has none.
    """
    (folder / "many").mkdir()
    (folder / "one").mkdir()
    run_processes(world_size, train_in_double, folder / "many", make_task, train, settings)
    train_in_double(folder / "one", make_task, train, settings | {"batch_size": world_size * settings["batch_size"]})
    one = torch.load(folder / "one" / "rank0.pt")
    for rank in range(world_size):
        weights = torch.load(folder / "many" / f"rank{rank}.pt")
        for name, expected in one.items():
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-9, msg=f"rank {rank}: {name}")
    start = make_task().model.weights.state_dict()
    assert any((one[name] - tensor).abs().max() > 1e-4 for name, tensor in start.items())
