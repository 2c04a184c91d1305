"""W processes train as one: the same run on both, in float64 and without dropout."""

from collections.abc import Callable
from pathlib import Path

import torch
from bertorch.training.tasks import Task

from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.data.dataset import Dataset
from bertorch.training.loop import fit
from tests.conftest import run_processes

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def config(folder: Path, **settings) -> TrainingConfig:
    defaults = {"batch_size": 8, "epochs": 2, "save_steps": 3, "logging_steps": 2, "learning_rate": 1e-3}
    return TrainingConfig(train_data_file="-", dev_data_file="-", saved_dir=str(folder), **(defaults | settings))


def train_in_double(folder: Path, make_task: Callable[[], Task], train: Dataset, settings: dict) -> dict:
    """Train in float64; every process leaves its weights."""
    task = make_task()
    task.model.double()
    fit(config(folder, **settings), task, train, None)
    torch.save(task.model.weights.state_dict(), f"{folder}/rank{distributed.rank()}.pt")


def assert_same_as_one_process(
    folder: Path, world_size: int, make_task: Callable[[], Task], train: Dataset, settings: dict
) -> None:
    """W processes with batch B end with the weights of one process with batch W·B, to 1e-9, and they have moved."""
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
