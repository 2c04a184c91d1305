"""The folder of an export: what it takes over from the model's, and how it is put into place."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from loguru import logger

from bertorch.atomic import to_disk
from bertorch.data.model_digests import module_folders
from bertorch.encoder.graph_sources import ENCODER, tensors_digest
from bertorch.encoder.onnx_files import (
    ARM,
    FOLDER,
    FULL,
    SAFE,
    VNNI,
    ExportRecord,
    GraphKind,
    files_of,
    record_path,
)
from bertorch.errors import UserError
from bertorch.files import refuse_existing
from bertorch.training.run_folder import RECORD
from bertorch.training.saved_files import describes_model, loaded_files
from bertorch.weights import SAFE_WEIGHTS, WEIGHTS

# Of sentence-transformers; copies of them stand beside a graph without an encoder.
_WEIGHTS_OF_DENSE = re.compile(r"\d+_Dense/(model\.safetensors|pytorch_model\.bin)")


def copied_files(folder: Path) -> list[Path]:
    """The files of a model beside the weights of its encoder, relative to its folder."""
    folders = [folder, *module_folders(folder)]
    files = [file.relative_to(folder) for each in folders for file in sorted(each.iterdir()) if file.is_file()]
    return [
        file for file in files if describes_model(file.name) or _WEIGHTS_OF_DENSE.fullmatch(file.as_posix()) is not None
    ]


def require_room(
    output: Path, source: Path, targets: Sequence[Path], made_of: Mapping[str, str], *, overwrite: bool
) -> list[Path]:
    """Check the folder of an export before the work starts.

    Returns:
        The files of another model that must not stay there, relative to the folder; only if `overwrite` is set.

    Raises:
        UserError: one of the targets is there, or a file of another model, and `overwrite` is not set; or the folder is
            that of another run.
    """
    refuse_existing(map(str, targets), overwrite=overwrite)
    if output.resolve() == source.resolve():
        return []
    if (output / RECORD).exists():
        raise UserError(
            f"--output_dir {output}: expected no folder of another run, got one with a {RECORD}; choose another one"
        )
    ours = copied_files(source)
    others = [file for file in copied_files(output) if file not in ours] if output.is_dir() else []
    there = [file for file in ours if (output / file).exists()]
    changed = [file for file in there if (output / file).read_bytes() != (source / file).read_bytes()]
    weights = foreign_weights(output, made_of, overwrite=overwrite)
    if not overwrite and (found := [*changed, *others, *weights]):
        raise UserError(
            f"{output / found[0]}: expected no file of another model, got one that is not as in {source}; choose "
            "another --output_dir, or add --overwrite"
        )
    return [*others, *weights]


def foreign_weights(output: Path, expected: Mapping[str, str], *, overwrite: bool) -> list[Path]:
    """The weights of encoders in a folder, if they are not those that are exported; relative to the folder.

    Raises:
        UserError: they are damaged, and `overwrite`, which replaces them, is not set.
    """

    def is_foreign(name: str) -> bool:
        try:
            return tensors_digest(output / name) != expected.get(ENCODER)
        except UserError:
            if overwrite:
                return True
            raise

    names = [name for name in sorted(loaded_files(output)) if not describes_model(name)]
    if {*names} <= {SAFE_WEIGHTS, WEIGHTS}:
        names = [name for name in names if is_foreign(name)]
    return [Path(name) for name in names]


def stale_files(output: Path, kinds: Sequence[GraphKind], made_of: Mapping[str, str], *, overwrite: bool) -> list[Path]:
    """The files of graphs of other models, which must not stay beside those of these kinds; relative to the folder.

    Raises:
        UserError: there are some, and `overwrite` is not set.
    """
    stale: list[Path] = []
    for kind in (FULL, VNNI, SAFE, ARM):
        graph = output / FOLDER / kind.file
        if kind in kinds or not record_path(graph).exists() or is_of(graph, made_of, overwrite=overwrite):
            continue
        if not overwrite:
            raise UserError(
                f"{graph}: expected a graph of the model that is exported, got one of another; choose another "
                "--output_dir, or let --overwrite remove it"
            )
        stale += files_of(Path(FOLDER) / kind.file)
    return stale


def is_of(graph: Path, made_of: Mapping[str, str], *, overwrite: bool) -> bool:
    """Whether a graph is recorded to be of this model; with a damaged record, which `overwrite` replaces, it is not."""
    try:
        record = ExportRecord.read(graph)
    except UserError:
        if overwrite:
            return False
        raise
    return record is not None and record.made_of == made_of


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
    leaving = [file for file in [*records, *set(stale).difference(files)] if (output / file).exists()]
    for file in sorted(leaving, key=_is_record, reverse=True):
        (output / file).unlink()
        if file not in files and not _is_record(file):
            logger.warning("{}: is of another model, and was removed", output / file)
    for file in sorted(files, key=_is_record):
        target = output / file
        if target.parent != output and target.parent.is_symlink():  # within the folder none is followed
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
