"""Save weights and what belongs to them so that no reader ever sees half of them."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from bertorch.errors import UserError
from bertorch.files import to_disk
from bertorch.tasks.base import Savable
from bertorch.weights import WEIGHTS

# Files of a save are complete and on the disk here before the first of them takes its place.
_STAGING = ".saving"


@contextmanager
def staged(folder: str, *, make: bool = False) -> Iterator[Path]:
    """An empty folder inside `folder`, in which files are written in full before they are moved to their places.

    Args:
        folder: exists, unless it is to be made; a folder that vanishes during a run is not made again silently.
        make: whether to make it.

    Raises:
        UserError: something in the block could not be written.
    """
    path = Path(folder)
    staging = path / _STAGING
    with written_to(folder):
        try:
            if make:
                path.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)  # what an interrupted save left
            staging.mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def written_to(folder: str) -> Iterator[None]:
    """Around writing into `--saved_dir`.

    Raises:
        UserError: something in the block could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save and safetensors have their own
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"--saved_dir {folder}: expected a folder with room to write to, got: {reason}. What was saved there "
            "before is as it was; once there is room, the same command with --resume goes on from it"
        ) from error


def publish(
    folder: str,
    weights: Mapping[str, Tensor],
    savables: Iterable[Savable],
    before: Callable[[Path, set[str]], None] = lambda *_: None,
) -> set[str]:
    """Save weights and what belongs to them so that a reader never sees half a file.

    All files are first written to the disk in full, then moved into their places one by one, the weights last. A crash
    or a full disk before that leaves the earlier save as it was.

    Args:
        folder: where.
        weights: name → tensor, saved from the CPU.
        savables: what is saved beside them: config, tokenizer, model card, …
        before: called when all files are written and none is in its place, with where they are and their names.

    Returns:
        The names of the files within the folder.

    Raises:
        UserError: they could not be written.
    """
    path = Path(folder)
    with staged(folder) as staging:
        for savable in savables:
            savable.save_pretrained(staging)
        torch.save(on_cpu(weights), staging / WEIGHTS)
        files = [file.relative_to(staging) for file in staging.rglob("*") if file.is_file()]
        to_disk(staging)
        before(staging, set(map(str, files)))
        for file in sorted(files, key=lambda file: file == Path(WEIGHTS)):
            (path / file).parent.mkdir(exist_ok=True)
            (staging / file).replace(path / file)
        to_disk(path, deep=False)
    return set(map(str, files))


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, none of which shares memory with another, as safetensors wants it."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
