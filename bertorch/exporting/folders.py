"""The folder of an export: what it takes over from the model's, and how it is put into place."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from loguru import logger

from bertorch.atomic import to_disk
from bertorch.encoder.onnx_files import (
    ARM,
    FOLDER,
    FULL,
    SAFE,
    VNNI,
    WEIGHTS_OF_DENSE,
    ExportRecord,
    GraphKind,
    files_of,
)
from bertorch.errors import UserError
from bertorch.files import refuse_existing
from bertorch.training.saved_files import describes_model

_MODULES = "[0-9]*_*"  # folders of sentence-transformers' modules


def copied_files(folder: Path) -> list[Path]:
    """The files of a model beside the weights of its encoder, relative to its folder."""
    folders = [folder, *sorted(each for each in folder.glob(_MODULES) if each.is_dir())]
    files = [file.relative_to(folder) for each in folders for file in sorted(each.iterdir()) if file.is_file()]
    return [
        file for file in files if describes_model(file.name) or WEIGHTS_OF_DENSE.fullmatch(file.as_posix()) is not None
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


def stale_files(output: Path, kinds: Sequence[GraphKind], made_of: Mapping[str, str], *, overwrite: bool) -> list[Path]:
    """The files of graphs of other weights, which must not stay beside those of these kinds; relative to the folder.

    Raises:
        UserError: there are some, and `overwrite` is not set.
    """
    stale: list[Path] = []
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
        stale += files_of(Path(FOLDER) / kind.file)
    return stale


def copy_description(source: Path, target: Path) -> None:
    """Copy what describes a model, as it is."""
    for file in copied_files(source):
        (target / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / file, target / file)


def put_into_place(staging: Path, output: Path, files: Sequence[Path], stale: Sequence[Path] = ()) -> None:
    """Move files, relative to both folders, into place, each at once; stale ones are removed.

    Of a graph the record comes last, and an older one goes first: without a record a graph is not taken.
    """
    to_disk(staging)
    records = [file for file in files if _is_record(file)]
    leaving = [file for file in [*records, *stale] if (output / file).exists()]
    for file in sorted(leaving, key=_is_record, reverse=True):
        (output / file).unlink()
        if file not in files and not _is_record(file):
            logger.warning("{}: is of other weights, and was removed", output / file)
    for file in sorted(files, key=_is_record):
        target = output / file
        if target.parent.is_symlink():  # is not followed
            target.parent.unlink()
        target.parent.mkdir(exist_ok=True)
        (staging / file).replace(target)
        to_disk(target.parent, deep=False)


def _is_record(file: Path) -> bool:
    return file.name.endswith(".onnx.json")


def graph_files(staging: Path, kind: GraphKind) -> tuple[list[Path], list[Path]]:
    """The files of a graph relative to the staging folder, and those that it has not, but an older one may have."""
    files = files_of(Path(FOLDER) / kind.file)
    return [file for file in files if (staging / file).exists()], [
        file for file in files if not (staging / file).exists()
    ]
