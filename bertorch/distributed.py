"""The only user of `torch.distributed`: joining processes, ranks, sums over them.

Every function also works without a process group, as the one process of a world of one, so that no caller branches.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bertorch.errors import UserError

# Long enough for one process to download a model while the others wait, short enough not to hang for ever.
TIMEOUT = timedelta(minutes=30)
# Gradients are summed in pieces of this size: large enough to use the links, small beside the weights themselves.
BUCKET_BYTES = 64 * 2**20


@contextmanager
def session(local_rank: int = -1) -> Iterator[None]:
    """Join the processes that a launcher started, and leave them at the end.

    Args:
        local_rank: what `torch.distributed.launch` passed as `--local-rank`; torchrun sets `LOCAL_RANK` instead. A run
            without a launcher is a world of one process.

    Raises:
        UserError: more processes on this machine than it has GPUs.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
    cuda = torch.cuda.is_available()
    if cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"expected at most one process per GPU, got local rank {local_rank} on a machine with "
            f"{torch.cuda.device_count()} GPUs; lower --nproc_per_node or set CUDA_VISIBLE_DEVICES"
        )
    if cuda:
        torch.cuda.set_device(local_rank)
    else:
        _share_cores()
    store, rank, world_size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    # With --master_port, torchrun keeps the store over its restarts, and in it where each process was before them.
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backend="nccl" if cuda else "gloo",
        store=PrefixStore(f"restart {restarts}", store),
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
        device_id=torch.device("cuda", local_rank) if cuda else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _share_cores() -> None:
    """Give each process of a machine without GPUs its share of the cores.

    torchrun gives each of several processes one thread where `OMP_NUM_THREADS` says nothing. Any other number that it
    says is kept.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))


def device() -> torch.device:
    """This process's device: its GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    """This process's number among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, W."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that logs and saves."""
    return rank() == 0


def launched_rank() -> int:
    """This process's rank as the launcher set it, also before the processes are joined and after they are left."""
    return int(os.environ.get("RANK", "0"))


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def main_first() -> AbstractContextManager[None]:
    """The first process runs the block before the others do, so that only it downloads what the block loads."""
    return _first(goes_first=is_main())


def machine_first() -> AbstractContextManager[None]:
    """The first process of each machine runs the block before the others do, so that they find what it has written."""
    return _first(goes_first=int(os.environ.get("LOCAL_RANK", rank())) == 0)


@contextmanager
def _first(*, goes_first: bool) -> Iterator[None]:
    if not goes_first:
        barrier()
    try:
        yield
    finally:  # also where the block fails: the others then find the same mistake and tell it, instead of waiting
        if goes_first:
            barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_rows(tensor: Tensor) -> tuple[Tensor, slice]:
    """Put the rows of all processes below each other, in the order of their ranks.

    Gradients flow back to the process that a row came from, summed over all processes that used it. So every process
    must run the backward pass through the result, also one without rows of its own.

    Args:
        tensor: (rows, …), any number of rows on each process, the other dimensions the same.

    Returns:
        (rows of all processes, …), and which of them are this process's.
    """
    if world_size() == 1:
        return tensor, slice(0, len(tensor))
    sizes = all_reduce_sum(
        torch.tensor([len(tensor) if rank() == other else 0 for other in range(world_size())], device=tensor.device)
    ).tolist()
    first = sum(sizes[: rank()])
    own = slice(first, first + len(tensor))
    return _GatherRows.apply(tensor, own, sum(sizes)), own


class _GatherRows(torch.autograd.Function):
    """Each process adds its rows to zeros: one sum, whatever the sizes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, own: slice, total: int) -> Tensor:
        ctx.own = own
        gathered = tensor.new_zeros(total, *tensor.shape[1:])
        gathered[own] = tensor
        return all_reduce_sum(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return all_reduce_sum(gradients[0].clone())[ctx.own], None, None


def broadcast(tensor: Tensor) -> Tensor:
    """Give every process the first one's values, in place; returns the tensor."""
    if world_size() > 1:
        dist.broadcast(tensor.data, src=0)
    return tensor


def broadcast_json(value: Any) -> Any:
    """Give every process what the first one has: a value as JSON has it; what the others pass is not used."""
    if world_size() == 1:
        return value
    text = json.dumps(value).encode()
    size = int(broadcast(torch.tensor(len(text), device=device())))
    content = torch.frombuffer(bytearray(text.ljust(size)[:size]), dtype=torch.uint8).to(device())
    return json.loads(bytes(broadcast(content).tolist()))


def on_main(function: Callable[[], Any]) -> Any:
    """Call a function on the first process; all of them return its result, a value as JSON has it.

    Raises:
        UserError: the function raised it; on every process, so that none waits for the first one in vain.
    """
    outcome: dict[str, Any] = {}
    if is_main():
        try:
            outcome = {"result": function()}
        except UserError as error:
            outcome = {"error": str(error)}
    outcome = broadcast_json(outcome)
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["result"]


def any_process(wish: bool) -> bool:  # noqa: FBT001
    """Whether any process passes true; all must call it."""
    if world_size() == 1:
        return wish
    return bool(all_reduce_sum(torch.tensor(int(wish), device=device())).item())


def broadcast_weights(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        broadcast(tensor)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the processes, in place.

    A process that had no example in this step has no gradients; it adds zeros. Parameters that no process used must
    not be among `parameters`.
    """
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradient = parameter.grad
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            _all_reduce_flat(bucket)
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        _all_reduce_flat(bucket)


def _all_reduce_flat(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def broadcast_tensors(tensors: "dict[str, Tensor] | Any") -> dict[str, Tensor]:
    """Shim."""
    if world_size() == 1:
        return dict(tensors)
    kinds = broadcast_json(
        [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()]
        if is_main()
        else None
    )
    found = {}
    for name, shape, dtype in kinds:
        tensor = (
            tensors[name].to(device()).contiguous()
            if is_main()
            else torch.empty(shape, dtype=getattr(torch, dtype), device=device())
        )
        found[name] = broadcast(tensor)
    return found
