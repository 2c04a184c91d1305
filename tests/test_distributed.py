import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from bertorch import distributed
from bertorch.errors import UserError
from tests.conftest import free_port, run_processes


def in_two_processes(folder: Path) -> None:
    """Everything in one go, since starting processes takes seconds; an assertion that fails fails the test."""
    rank = distributed.rank()
    assert distributed.world_size() == 2
    assert distributed.is_main() == (rank == 0)
    assert distributed.launched_rank() == rank
    assert distributed.device() == torch.device("cpu")
    assert distributed.all_reduce_sum(torch.tensor([1.0 + rank, 10.0])).tolist() == [3.0, 20.0]

    gather_rows_with_gradient(rank)
    broadcast_named_tensors(rank)

    layer = nn.BatchNorm1d(2)
    nn.init.constant_(layer.weight, rank + 1.0)
    layer.running_mean.fill_(rank + 1.0)
    distributed.broadcast_weights(layer)
    assert layer.weight.tolist() == layer.running_mean.tolist() == [1.0, 1.0]

    distributed.BUCKET_BYTES = 40  # several buckets, one of them of a single tensor that is larger
    shapes = [(3,), (2, 3), (4, 5), (1,), (2,)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    parameters.append(nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    for index, parameter in enumerate(parameters):
        if rank == 0 or index % 2:  # the other process has no gradient for every second one
            parameter.grad = torch.full_like(parameter, 10.0 * index + rank)
    distributed.sum_gradients(parameters)
    for index, parameter in enumerate(parameters):
        assert (parameter.grad == (20.0 * index + 1 if index % 2 else 10.0 * index)).all()

    with distributed.main_first():
        if rank == 0:
            time.sleep(0.5)
            (folder / "downloaded").touch()
        assert (folder / "downloaded").exists()
    with pytest.raises(UserError, match="a mistake"):  # on every process; none waits for ever
        make_a_mistake(folder, rank)


def make_a_mistake(folder: Path, rank: int) -> None:
    with distributed.machine_first():
        (folder / f"tried.{rank}").touch()
        assert (folder / "tried.0").exists()
        raise UserError("a mistake")


def gather_rows_with_gradient(rank: int) -> None:
    """Three rows on the first process, one or none on the second."""
    for others in (1, 0):
        rows = torch.arange(6.0).view(3, 2) if rank == 0 else torch.full((others, 2), 7.0)
        rows.requires_grad_()
        gathered, local_rows = distributed.gather_rows(rows)
        assert gathered.tolist() == [[0, 1], [2, 3], [4, 5], [7, 7]][: 3 + others]
        assert local_rows == (slice(0, 3) if rank == 0 else slice(3, 3 + others))
        factors = torch.arange(1.0, 4 + others)[:, None]  # each process uses the rows in its own way
        (gathered * factors * (10 if rank == 0 else 1)).sum().backward()
        assert torch.equal(rows.grad, (factors * 11).expand(-1, 2)[local_rows])
    numbers, _ = distributed.gather_rows(torch.full((2 - rank, 1), rank))
    assert numbers.tolist() == [[0], [0], [1]]
    assert numbers.dtype == torch.int64


TENSORS = {
    "fp32": torch.tensor([[0.1, -torch.inf], [2.0, 3.0]]).T,  # not contiguous
    "fp64": torch.tensor([0.1, 1 / 3], dtype=torch.float64),
    "int64": torch.tensor([2**62 + 1]),
    "bf16": torch.tensor([1.5, 0.1], dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "no rows": torch.zeros(0, 3),
}


def broadcast_named_tensors(rank: int) -> None:
    for others in (None, {"fp32": torch.ones(9), "else": torch.ones(1)}):
        received = distributed.broadcast_tensors(TENSORS if rank == 0 else others)
        assert list(received) == list(TENSORS)
        for name, tensor in TENSORS.items():
            assert received[name].dtype == tensor.dtype
            assert torch.equal(received[name], tensor)
        assert distributed.broadcast_tensors({} if rank == 0 else others) == {}


def test_two_processes(tmp_path):
    run_processes(2, in_two_processes, tmp_path)


def with_values_of_their_own():
    rank = distributed.rank()
    distributed.require_same({"a": 1, "b": (1, None)}, "options")
    expected = "expected the same options on every process, got others than on the first in: a, c; start the same"
    with pytest.raises(UserError, match=expected):
        distributed.require_same({"a": rank, "b": 2, "c": [rank]}, "options")
    with pytest.raises(UserError, match="in: only; start"):
        distributed.require_same({"only": None} if rank == 0 else {}, "options")
    with pytest.raises(UserError, match="in: what the first does not have; start"):
        distributed.require_same({} if rank == 0 else {"only": None}, "options")


def test_values_that_must_be_the_same():
    distributed.require_same({"a": 1}, "options")
    run_processes(3, with_values_of_their_own)


def test_one_process_needs_no_group():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_reduce_sum(torch.tensor(2.0)).item() == 2.0
    parameter = nn.Parameter(torch.zeros(2))
    distributed.sum_gradients([parameter])
    assert parameter.grad is None
    rows = torch.ones(3, 2)
    gathered, local_rows = distributed.gather_rows(rows)
    assert gathered is rows
    assert local_rows == slice(0, 3)
    tensors = distributed.broadcast_tensors(TENSORS)
    assert tensors.keys() == TENSORS.keys()
    assert all(tensors[name] is tensor for name, tensor in TENSORS.items())
    assert distributed.broadcast_tensors(None) == {}
    distributed.broadcast_weights(nn.Linear(1, 1))
    distributed.barrier()
    with distributed.main_first(), distributed.session(local_rank=-1):
        assert distributed.world_size() == 1


def test_a_part_of_a_launchers_variables(monkeypatch):
    """Such as in a container that sets one."""
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    expected = pytest.raises(UserError, match="beside WORLD_SIZE, got no RANK, MASTER_ADDR, MASTER_PORT; start with to")
    with expected, distributed.session():
        pass


def test_more_processes_than_gpus(monkeypatch):
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.delitem(os.environ, "LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    expected = pytest.raises(UserError, match="got local rank 2 on a machine with 2 GPUs; lower --nproc_per_node")
    with expected, distributed.session(local_rank=2):
        pass


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, [4]),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, [4]),  # as torchrun sets it
        ({"LOCAL_WORLD_SIZE": "16"}, [1]),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, []),
        ({"LOCAL_WORLD_SIZE": "1"}, []),
        ({}, []),
    ],
)
def test_the_processes_of_a_machine_share_its_cores(environment, threads, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed._share_cores()
    assert chosen == threads


@pytest.mark.parametrize("fails", [False, True])
def test_the_group_is_left_at_the_end_but_not_after_an_error(fails, monkeypatch):
    """With NCCL, leaving it waits for the others, which may wait for this process."""
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (group | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    try:
        with suppress(UserError), distributed.session():
            if fails:
                raise UserError("a mistake")
        assert torch.distributed.is_initialized() == fails
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def one_raises(folder: Path) -> None:
    if distributed.rank() == 1:
        raise ValueError("alone")
    distributed.barrier()


def test_a_process_that_fails_does_not_wait_for_those_that_wait_for_it(tmp_path):
    with pytest.raises(ProcessRaisedException, match="alone|Connection closed by peer"):
        run_processes(2, one_raises, tmp_path)
