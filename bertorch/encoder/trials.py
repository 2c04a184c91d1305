"""Trial runs: what a model can do is not looked up by its name, but found from its results for a few sentences."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from loguru import logger
from torch import Tensor, nn
from transformers import PretrainedConfig

from bertorch.data.batch import PackedBatch
from bertorch.errors import UserError
from bertorch.files import reason

# Packed and padded results of one fp32 model differ by rounding, about 1e-6 of their size; a model that mixes the
# sentences of a batch is off by more than 1e-3 of it, even with small random weights.
TOLERANCE = 1e-4
# The longest sentence of a short trial, and of one that models with attention in chunks of 64 tokens must split.
SHORT, LONG = 9, 141


def trial_batch(config: PretrainedConfig, longest: int = SHORT) -> PackedBatch:
    """Two sentences of arbitrary tokens, the second of this length.

    The special tokens <pad> and <mask> are among them as if a text had them: some models count them.
    """
    config = config.get_text_config()
    vocabulary = getattr(config, "vocab_size", None) or 128  # CANINE has code points instead
    lengths, total = [5, longest], 5 + longest
    tokens = torch.arange(total) * 7 % (vocabulary - 5) + 5  # (T,), clear of most special tokens
    for index, special in ((-2, "pad_token_id"), (-4, "mask_token_id")):
        token = getattr(config, special, None)
        if token is not None and 0 <= token < vocabulary:
            tokens[tokens == token] -= 1
            tokens[index] = token
    return PackedBatch(
        input_ids=tokens,
        token_type_ids=torch.arange(total) % 5 // 3,  # (T,), of both types in each sentence
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        labels=torch.zeros(len(lengths), dtype=torch.int64),
    )


def matches(expected: Tensor, compute: Callable[[], Tensor], *, tolerance: float = TOLERANCE) -> bool:
    """Whether a trial run gives the expected result, up to this share of its largest value; False if it raises."""
    try:
        got = compute()
    except Exception as error:  # noqa: BLE001 - a model that is run in a way it is not made for may raise anything
        logger.debug("trial run: {}: {}", type(error).__name__, error)
        return False
    limit = tolerance * expected.abs().max().clamp(min=1)
    return got.shape == expected.shape and bool((got - expected).abs().max() <= limit)


def unsupported(model: nn.Module, expected: str, why: str) -> UserError:
    """The error that refuses an architecture and says what to do."""
    return UserError(
        f"expected {expected}, got {type(model).__name__}: {why}; choose another --pretrained_model_name_or_path"
    )


@contextmanager
def supported(model: nn.Module, expected: str) -> Iterator[None]:
    """Around the construction and the trial of a model: any exception becomes `unsupported`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise unsupported(model, expected, reason(error)) from error


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
