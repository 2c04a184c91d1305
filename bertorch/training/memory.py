"""How much memory a run takes; running out of it: an error that says where, with how large a batch, what to lower."""

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bertorch.config import ContrastiveConfig, TrainingConfig
from bertorch.data.batch import PackedBatch
from bertorch.errors import UserError
from bertorch.training.step import Precision
from bertorch.training.tasks import Task

# Only the allocator on the GPU has an exception of its own; the others are known by what they say.
_SIGNS = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def peak_memory(device: torch.device) -> int:
    """The most that this process has held so far, in bytes: on its GPU, or of the machine where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)  # the allocator's own count, which asks nothing of the GPU
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def lack_of_memory(error: Exception) -> str | None:
    """What an error says that means that memory ran out; None of any other error."""
    reason = str(error).partition("\n")[0]
    own_class = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not own_class and not any(sign in reason for sign in _SIGNS):
        return None
    return reason or type(error).__name__


@contextmanager
def out_of_memory_told(
    where: str,
    config: TrainingConfig,
    task: Task[Any],
    precision: Precision,
    batches: Sequence[PackedBatch] | None = None,
) -> Iterator[None]:
    """Around a training step or an evaluation.

    Args:
        where: it is in the run, such as `step 7`.
        config: the run's options.
        task: what it trains.
        precision: the one that `--precision auto` stands for.
        batches: of the step; None for an evaluation.

    Raises:
        UserError: the memory is not enough for the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = lack_of_memory(error)
        if reason is None:
            raise
        size = "" if batches is None else f" ({max((len(batch.input_ids) for batch in batches), default=0)} tokens)"
        place = "GPU" if precision.device_type == "cuda" else "machine"
        remedies = _remedies(config, precision, training=batches is not None)
        # In one line but for the reason: a process other than the first tells the first line only.
        raise UserError(
            f"{where}: expected enough memory on the {place} for a batch of --batch_size {config.batch_size} per "
            f"process{size}, got too little; {', or '.join(remedies)}. "
            f"{_what_goes_on(config, task, training=batches is not None)}\n{reason}"
        ) from error


def _remedies(config: TrainingConfig, precision: Precision, *, training: bool) -> list[str]:
    """What needs less memory, in the order of what it costs."""
    remedies = []
    negatives = isinstance(config, ContrastiveConfig)
    if training and not config.gradient_checkpointing:
        remedies.append("set --gradient_checkpointing")
    if training and isinstance(config, ContrastiveConfig):
        at_once = min(config.micro_batch_size or config.batch_size, config.batch_size)
        if at_once > 1:
            remedies.append(f"set --micro_batch_size below {at_once}")
    if precision.device_type == "cuda" and precision.name == "fp32":
        remedies.append("set --precision bf16 (fp16 on a GPU that has no bf16)")
    if config.batch_size > 1:
        price = "at the price of fewer negatives" if negatives else "and raise --gradient_accumulation_steps as much"
        remedies.append(f"lower --batch_size, {price}")
    remedies.append(f"lower --max_seq_length {config.max_seq_length}")
    return remedies


def _what_goes_on(config: TrainingConfig, task: Task[Any], *, training: bool) -> str:
    """With which of the remedies a checkpoint goes on; the others make another run, see `describe_run`."""
    changes = []
    if training and not config.gradient_checkpointing:
        changes.append("with --gradient_checkpointing")
    if config.batch_size > 1 and not task.depends_on_processes:
        changes.append("on more processes with a lower --batch_size, as long as the product of both is the same")
    if not changes:
        changes.append("with none of these")
    return (
        f"A checkpoint in --saved_dir goes on {', or '.join(changes)}; any other change makes another run, for another "
        "--saved_dir or --overwrite"
    )
