"""Trial runs: how a model behaves is not looked up by its name, but seen in what it gives for two short sentences."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from loguru import logger
from torch import Tensor, nn
from transformers import PretrainedConfig

from bertorch.data.batch import PackedBatch

# Packed and padded results of one fp32 model differ by rounding, about 1e-6 of their size; a model that mixes the
# sentences of a batch is off by more than 1e-3 of it, even with small random weights.
AGREEMENT = 1e-4


def trial_batch(config: PretrainedConfig) -> PackedBatch:
    """Two sentences of arbitrary tokens, to find out how a model behaves; longer than a local attention window."""
    window = getattr(config, "sliding_window", None) or 0
    lengths = torch.tensor([5, 9 + 2 * window])
    tokens = torch.arange(int(lengths.sum())) * 7 % (config.vocab_size - 5) + 5  # (T,), clear of most special tokens
    tokens[tokens == config.pad_token_id] -= 1
    return PackedBatch(
        input_ids=tokens,
        token_type_ids=torch.zeros_like(tokens),
        position_ids=torch.cat([torch.arange(int(length)) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths.cumsum(0).tolist()], dtype=torch.int32),
        max_seqlen=int(lengths.max()),
        labels=torch.zeros(len(lengths), dtype=torch.int64),
    )


def one_by_one(batch: PackedBatch) -> list[Tensor]:
    """The ids of each sentence of a batch as a batch of its own, (1, length) each."""
    return [ids[None] for ids in batch.input_ids.tensor_split(batch.cu_seqlens[1:-1].long())]


def attempt(compute: Callable[[], Tensor]) -> Tensor | None:
    """The result of a trial run, None if it raises."""
    try:
        return compute()
    except Exception as error:  # noqa: BLE001 - a model that is run in a way it is not made for may raise anything
        logger.debug("trial run: {}: {}", type(error).__name__, error)
        return None


def gives(expected: Tensor, compute: Callable[[], Tensor], *, tolerance: float = AGREEMENT) -> bool:
    """Whether a trial run gives the expected result, but for a difference of this share of its size."""
    got = attempt(compute)
    most = tolerance * expected.abs().max().clamp(min=1)
    return got is not None and got.shape == expected.shape and bool((got - expected).abs().max() <= most)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


eval_mode = evaluating
