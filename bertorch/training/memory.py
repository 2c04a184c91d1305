"""The peak memory of a process, and the error when memory runs out."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bertorch.errors import UserError

# Only CUDA has its own exception class; match the others by message.
_SIGNS = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
IN_TRAINING = (
    "set --gradient_checkpointing, or --micro_batch_size in run_simcse.py and run_batchneg.py; or, as another run, "
    "lower --batch_size and raise --gradient_accumulation_steps as much, or lower --max_seq_length"
)
IN_EVALUATION = "lower --batch_size or --max_seq_length, or free some memory"


def peak_memory(device: torch.device) -> int:
    """The peak of this process so far in bytes: of its GPU's memory, or of the machine's where it has no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)  # the allocator's own count, without waiting for the GPU
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


@contextmanager
def explain_out_of_memory(where: str, remedy: str, tokens: int | None = None) -> Iterator[None]:
    """Raise a UserError if memory runs out in the block.

    It says where (such as `step 7`), the tokens of the batch if they are known, and the remedy.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(sign in reason for sign in _SIGNS):
            raise
        # The remedy is in the first line, since processes other than the first log no more.
        batch = "" if tokens is None else f" for a batch of {tokens} tokens"
        raise UserError(
            f"{where}: expected enough memory{batch}, got too little; {remedy}\n{reason or type(error).__name__}"
        ) from error
