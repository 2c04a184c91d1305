"""Atomic, durable saves into `--saved_dir`."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bertorch.atomic import to_disk, unfinished
from bertorch.errors import UserError
from bertorch.tasks.base import Savable
from bertorch.weights import SAFE_WEIGHTS, WEIGHTS, on_cpu, save_file


@contextmanager
def staged(folder: str) -> Iterator[Path]:
    """A temporary folder inside `folder`, to write files in full before they are moved into place.

    `folder` must exist: one that vanishes during a run is not silently made again. Errors are those of `written_to`.
    """
    with written_to(folder), unfinished(Path(folder), is_folder=True) as staging:
        yield staging


@contextmanager
def written_to(folder: str) -> Iterator[None]:
    """Raise a UserError for an error of writing into `--saved_dir` in the block."""
    try:
        yield
    except Exception as error:
        # The latter two are of torch.save and tokenizers.
        if not isinstance(error, (OSError, RuntimeError)) and type(error) is not Exception:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"--saved_dir {folder}: expected a folder with room to write to, got: {reason}. What was saved there "
            "before is as it was; once there is room, the same command with --resume, and without --overwrite, goes on "
            "from it"
        ) from error


def publish(
    folder: str,
    weights: Mapping[str, Tensor],
    savables: Iterable[Savable],
    before: Callable[[set[str]], None] = lambda _: None,
    *,
    weights_files: Collection[str] = (WEIGHTS,),
) -> set[str]:
    """Save weights and, beside them, config, tokenizer, model card, …; returns the names of the files in the folder.

    The weights go into each of the `weights_files`, of torch.save or, by its name, of safetensors.

    All files are first written to the disk in full, then moved into place one by one, the weights last. A crash or a
    full disk before that leaves the previous save unchanged. `before` is called in between, with the names of the
    files. Errors are those of `written_to`.
    """
    path = Path(folder)
    with staged(folder) as staging:
        for savable in savables:
            savable.save_pretrained(staging)
        tensors = on_cpu(weights)
        for name in weights_files:
            if name == SAFE_WEIGHTS:
                save_file(tensors, staging / name)
            else:
                torch.save(tensors, staging / name)
        files = [file.relative_to(staging) for file in staging.rglob("*") if file.is_file()]
        to_disk(staging)
        before(set(map(str, files)))
        for file in sorted(files, key=lambda file: str(file) in weights_files):
            inner = path / file.parent
            if inner != path:
                if inner.is_symlink():  # is not followed
                    inner.unlink()
                inner.mkdir(exist_ok=True)
            (staging / file).replace(path / file)
        to_disk(path, deep=False)
    return set(map(str, files))
