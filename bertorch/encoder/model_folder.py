"""A pre-trained model that is missing, broken or incomplete: one error that names it, and what to do."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from loguru import logger
from torch import nn

from bertorch.errors import UserError
from bertorch.files import check_sums, reason, require_file

# Tables of embeddings are rounded up, or have rows to spare: a few percent, in what is published.
_FEW_TOKENS = 0.9
_TOO_FEW_TOKENS = 0.5
PRETRAINED = "--pretrained_model_name_or_path"


@contextmanager
def explained(name: str, option: str = PRETRAINED) -> Iterator[None]:
    """Turn whatever a missing or broken model leads to inside transformers into an error that names it.

    Args:
        name: hub name or local folder.
        option: that named it.

    Raises:
        UserError: instead of any other exception of the block, or because a local model is no folder of whole files.
    """
    option = f"{option} {name}"
    expected = "a model of the hub or a local folder with config.json, weights and the tokenizer's files"
    try:
        _check_folder(Path(name), f"{option}: expected {expected}")
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower, and a broken config.json fails anywhere
        raise UserError(f"{option}: expected {expected}, got {reason(error)}") from error


def _check_folder(path: Path, expected: str) -> None:
    """Make sure that a local model is a folder without pipes and devices, and that its archives are whole."""
    if not path.exists():
        return  # a name of the hub
    if not path.is_dir():
        raise UserError(f"{expected}, got a file or device; name the folder")
    for file in path.iterdir():
        if file.exists() and not file.is_dir():
            require_file(file, "a regular file in the model's folder")
            if file.suffix == ".bin":
                check_sums(file)


def require_vocabulary(name: str, got: int, expected: int, option: str = PRETRAINED) -> None:
    """Make sure that a tokenizer has its vocabulary.

    Where vocab.txt is missing or cut off, transformers makes a tokenizer of what is left without a word, and nearly
    every token of a text is unknown.

    Args:
        name: of the model.
        got: tokens that the tokenizer knows.
        expected: tokens that the model has embeddings for; 0 if that is not known.
        option: that named the model.

    Raises:
        UserError: it knows less than half of the model's tokens; a smaller gap is told in the log.
    """
    counts = f"expected a tokenizer of about {expected} tokens, as config.json has it, got one of {got}"
    if got < expected * _TOO_FEW_TOKENS:
        raise UserError(f"{option} {name}: {counts}; are vocab.txt and the tokenizer's other files there and complete?")
    if got < expected * _FEW_TOKENS:
        logger.warning("{}: {}", name, counts)


def require_weights(name: str, model: nn.Module, fresh: Collection[str]) -> None:
    """Make sure that a checkpoint held at least one of a model's weights.

    Args:
        name: of the model.
        model: as it was loaded.
        fresh: names of the weights that the checkpoint does not hold.

    Raises:
        UserError: it held none, so that training would begin from nothing.
    """
    weights = [weight for weight, _ in model.named_parameters()]
    if set(weights) <= set(fresh):
        raise UserError(
            f"--pretrained_model_name_or_path {name}: expected weights such as {weights[0]}, got not one that fits "
            f"{type(model).__name__}; are they inside another object?"
        )
