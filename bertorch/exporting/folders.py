"""The folder of an export: what it takes over from the model's, and how it is put into place."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from loguru import logger

from bertorch.atomic import remove, to_disk
from bertorch.encoder.onnx_files import ARM, FOLDER, FULL, SAFE, VNNI, ExportRecord, GraphKind, files_of, record_path
from bertorch.errors import UserError
from bertorch.files import refuse_existing
from bertorch.training.saved_files import describes_model

_MODULES = "[0-9]*_*"  # folders of sentence-transformers' modules
_WEIGHTS_OF_DENSE = re.compile(r"\d+_Dense/(model\.safetensors|pytorch_model\.bin)")


def copied_files(folder: Path) -> list[Path]:
    """The files of a model beside the weights of its encoder, relative to its folder."""
    folders = [folder, *sorted(each for each in folder.glob(_MODULES) if each.is_dir())]
    files = [file.relative_to(folder) for each in folders for file in sorted(each.iterdir()) if file.is_file()]
    return [
        file for file in files if describes_model(file.name) or _WEIGHTS_OF_DENSE.fullmatch(file.as_posix()) is not None
    ]


def require_room(output: Path, source: Path, targets: Sequence[Path], *, overwrite: bool) -> None:
    """Check the folder of an export before the work starts.

    Raises:
        UserError: one of the targets is there, or a file of another model, and `overwrite` is not set.
    """
    refuse_existing(map(str, targets), overwrite=overwrite)
    if overwrite or output.resolve() == source.resolve():
        return
    for file in copied_files(source):
        if (output / file).exists() and (output / file).read_bytes() != (source / file).read_bytes():
            raise UserError(
                f"{output / file}: expected no file of another model, got one that is not as in {source}; choose "
                "another --output_dir, or add --overwrite"
            )


def require_same_source(
    output: Path, kinds: Sequence[GraphKind], made_of: Mapping[str, str], *, overwrite: bool
) -> None:
    """Check that graphs that stay beside those of these kinds are of the same weights; with `overwrite` remove others.

    Raises:
        UserError: one is not, and `overwrite` is not set.
    """
    for kind in (FULL, VNNI, SAFE, ARM):
        graph = output / FOLDER / kind.file
        record = ExportRecord.read(graph) if kind not in kinds else None
        if record is None or record.made_of == made_of:
            continue
        if not overwrite:
            raise UserError(
                f"{graph}: expected a graph of the weights that are exported, got one of other weights; choose another "
                "--output_dir, or let --overwrite remove it"
            )
        logger.warning("{}: is of other weights, and is removed", graph)
        for file in reversed(files_of(graph)):  # the record first
            file.unlink(missing_ok=True)


def copy_description(source: Path, target: Path) -> None:
    """Copy what describes a model, as it is."""
    for file in copied_files(source):
        (target / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / file, target / file)


def put_into_place(staging: Path, output: Path, files: Sequence[Path]) -> None:
    """Move files, relative to both folders, into place, each at once.

    Of a graph the record comes last, and an older one goes first: without a record a graph is not taken.
    """
    to_disk(staging)
    records = [file for file in files if file.name.endswith(".onnx.json")]
    for file in records:
        (output / file).unlink(missing_ok=True)
    for file in [*(each for each in files if each not in records), *records]:
        target = output / file
        if target.parent.is_symlink():  # is not followed
            target.parent.unlink()
        target.parent.mkdir(exist_ok=True)
        (staging / file).replace(target)
        to_disk(target.parent, deep=False)


def graph_files(staging: Path, kind: GraphKind, output: Path) -> list[Path]:
    """The files of a graph in the staging folder, relative to it; what an older one has beside them is removed."""
    graph = Path(FOLDER) / kind.file
    there = [file for file in files_of(graph) if (staging / file).exists()]
    if record_path(output / graph).exists() or (output / graph).exists():
        for file in files_of(graph):
            if file not in there:
                remove(output / file)
    return there
