"""The only user of `torch.distributed`: process groups, ranks, collectives.

Every function also works without a process group, as the only process of a world of one: no caller needs to branch.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bertorch.errors import UserError

TIMEOUT = timedelta(minutes=30)  # long enough for one process to download a model while the others wait
BUCKET_BYTES = 64 * 2**20  # gradients summed at once, about: enough to use the links, little beside the weights
_NOTHING = object()  # is no JSON value


@contextmanager
def session(local_rank: int = -1) -> Iterator[None]:
    """Join the process group of a launcher, and leave it at the end, but not after an error.

    Without a launcher there is none.

    `torch.distributed.launch` passes `local_rank` as `--local-rank`, torchrun sets `LOCAL_RANK` instead.

    Raises:
        UserError: more processes on this machine than it has GPUs, or a part of a launcher's variables.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(
            f"expected the variables of a launcher beside WORLD_SIZE, got no {', '.join(missing)}; start with "
            "torchrun, or unset WORLD_SIZE"
        )
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
    gpu = torch.device("cuda", local_rank) if torch.cuda.is_available() else None
    if gpu is None:
        _share_cores()
    elif local_rank >= torch.cuda.device_count():
        raise UserError(
            f"expected at most one process per GPU, got local rank {local_rank} on a machine with "
            f"{torch.cuda.device_count()} GPUs; lower --nproc_per_node or set CUDA_VISIBLE_DEVICES"
        )
    else:
        torch.cuda.set_device(gpu)
    store, rank, world_size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    # With --master_port, torchrun keeps the store, and in it the keys of the group before, when it restarts processes.
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backend="gloo" if gpu is None else "nccl",
        store=PrefixStore(f"restart {restarts}", store),
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
        device_id=gpu,
    )
    yield
    # Not after an error: NCCL would wait here for processes that wait for this one. Without it this one ends at once,
    # and the launcher ends the others.
    dist.destroy_process_group()


def _share_cores() -> None:
    """Divide the cores of a machine among its processes, unless the user set `OMP_NUM_THREADS`."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun's own default is 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))


def device() -> torch.device:
    """This process's device: its GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    """The index of this process among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, W."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that logs and saves."""
    return rank() == 0


def launched_rank() -> int:
    """This process's rank as the launcher set it, also outside of a process group."""
    return int(os.environ.get("RANK", "0"))


def has_launcher() -> bool:
    """Whether torchrun started this process, which ends its processes when it is stopped."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def barrier() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        dist.barrier()


def main_first() -> AbstractContextManager[None]:
    """The first process runs the block before the others do, so that only it downloads what the block loads."""
    return _first(is_main())


def machine_first() -> AbstractContextManager[None]:
    """The first process of each machine runs the block before the others do, so that they find what it has written."""
    return _first(int(os.environ.get("LOCAL_RANK", rank())) == 0)


@contextmanager
def _first(goes_first: bool) -> Iterator[None]:  # noqa: FBT001
    if not goes_first:
        barrier()
    try:
        yield
    finally:  # also where the block fails: the others then meet the same error instead of waiting
        if goes_first:
            barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_rows(tensor: Tensor) -> tuple[Tensor, slice]:
    """Concatenate tensors (rows, …), any number of rows each, in the order of the ranks.

    A tensor without rows takes the shape that the others' rows have, of as many dimensions.

    Gradients flow back to the process that a row came from, summed over all processes. So every process must run the
    backward pass through the result, also one without local rows.

    Returns:
        (rows of all processes, …), and which of them are local.
    """
    if world_size() == 1:
        return tensor, slice(0, len(tensor))
    shapes = torch.zeros(world_size(), tensor.dim(), dtype=torch.int64, device=tensor.device)  # (W, dimensions)
    shapes[rank()] = torch.tensor(tensor.shape)
    shapes = all_reduce_sum(shapes)
    counts, fullest = shapes[:, 0].tolist(), shapes[shapes[:, 0].argmax()].tolist()
    tensor = tensor.reshape(len(tensor), *fullest[1:])
    first = sum(counts[: rank()])
    local_rows = slice(first, first + len(tensor))
    return _GatherRows.apply(tensor, local_rows, sum(counts)), local_rows


class _GatherRows(torch.autograd.Function):
    """Each process adds its rows to zeros: one sum, whatever the sizes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, local_rows: slice, total: int) -> Tensor:
        ctx.local_rows = local_rows
        gathered = tensor.new_zeros(total, *tensor.shape[1:])
        gathered[local_rows] = tensor
        return all_reduce_sum(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return all_reduce_sum(gradients[0].clone())[ctx.local_rows], None, None


def broadcast(tensor: Tensor) -> Tensor:
    """Give every process the first one's values, in place; returns the tensor."""
    if world_size() > 1:
        dist.broadcast(tensor.data, src=0)
    return tensor


def broadcast_json(value: Any) -> Any:
    """Return the first process's JSON value on every process; what the others pass is ignored."""
    if world_size() == 1:
        return value
    text = json.dumps(value).encode()
    size = int(broadcast(torch.tensor(len(text), device=device())))
    content = torch.frombuffer(bytearray(text.ljust(size)[:size]), dtype=torch.uint8).to(device())
    return json.loads(bytes(broadcast(content).tolist()))


def broadcast_tensors(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the first process's named tensors on every process, on `device()`; what the others pass is ignored."""
    local = dict(tensors or {})
    if world_size() == 1:
        return {name: tensor.to(device()) for name, tensor in local.items()}
    headers = broadcast_json([[name, str(value.dtype)[len("torch.") :], *value.shape] for name, value in local.items()])
    received = {}
    for name, dtype, *shape in headers:
        empty = torch.empty(shape, dtype=getattr(torch, dtype), device=device())
        received[name] = empty.copy_(local[name].detach()) if is_main() else empty
        broadcast(received[name].view(-1).view(torch.uint8))  # as bytes: not every backend sends every dtype
    return received


def on_main(function: Callable[[], Any]) -> Any:
    """Call a function on the first process, and return its JSON value on every process.

    Raises:
        UserError: the function raised it; on every process, so that none waits.
    """
    outcome = None
    if is_main():
        try:
            outcome = [function(), None]
        except UserError as error:
            outcome = [None, str(error)]
    result, message = broadcast_json(outcome)
    if message is not None:
        raise UserError(message)
    return result


def require_same(values: Mapping[str, Any], what: str) -> None:
    """Compare named JSON values with those of the first process; all must call it.

    Raises:
        UserError: on all processes, if any has others; it says of what, and the names.
    """
    if world_size() == 1:
        return
    first: dict[str, Any] = broadcast_json(dict(values))
    own = json.loads(json.dumps(dict(values)))
    flags = [own.get(name, _NOTHING) != value for name, value in first.items()] + [not own.keys() <= first.keys()]
    counts = all_reduce_sum(torch.tensor(flags, dtype=torch.int64, device=device())).tolist()
    names = [*first, "what the first does not have"]
    if differing := [name for name, count in zip(names, counts, strict=True) if count]:
        raise UserError(
            f"expected the same {what} on every process, got others than on the first in: {', '.join(differing)}; "
            "start the same command everywhere, with the same files"
        )


def any_process(flag: bool) -> bool:  # noqa: FBT001
    """Whether any process passes true; all must call it."""
    return flag if world_size() == 1 else bool(all_reduce_sum(torch.tensor(int(flag), device=device())))


def broadcast_weights(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers, in place."""
    for tensor in (*module.parameters(), *module.buffers()):
        broadcast(tensor)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the processes, in place; a process without an example in this step adds zeros.

    Parameters that no process used must not be among `parameters`.
    """
    if world_size() == 1:
        return
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    ends = accumulate(gradient.nbytes for gradient in gradients)
    with_ends = zip(gradients, ends, strict=True)
    for _, pairs in groupby(with_ends, key=lambda pair: (pair[0].dtype, pair[1] // BUCKET_BYTES)):
        bucket = [gradient for gradient, _ in pairs]
        flat = all_reduce_sum(torch.cat([gradient.flatten() for gradient in bucket]))
        for gradient, summed in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))
