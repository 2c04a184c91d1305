"""`--saved_dir` of a run with `--folds K`: K ordinary folders, and what they give together.

    saved_dir/
        run.json            the record of an ordinary run, and under `folds` how far this one is
        fold-1/ … fold-K/   each the folder of an ordinary run, see bertorch.training.run_folder
        out_of_fold.tsv     what each model says of the examples that it has not seen
        report.json, …      all those examples as one evaluation, as bertorch.evaluate writes it
        README.md           how to use the folds as one model

The record is written before a fold is trained for the first time, after each fold, and when the results are there.
"""

import secrets
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch import distributed, program
from bertorch.atomic import remove, replacing
from bertorch.config import FoldsConfig
from bertorch.data.fingerprint import content_digest
from bertorch.data.model_digests import DIGESTS, ModelDigests
from bertorch.data.out_of_fold import OUT_OF_FOLD
from bertorch.errors import UserError
from bertorch.files import ERRORS, PREDICTIONS, REPORT, read_record, refuse_existing, to_json
from bertorch.precision import Precision
from bertorch.tasks.base import Negatives
from bertorch.training.checkpoints import checkpoints, foreign_checkpoints, remove_checkpoint
from bertorch.training.model_card import CARD
from bertorch.training.run_folder import RECORD, RunFolder
from bertorch.training.run_options import describe_run
from bertorch.training.saved_files import loaded_files, recorded_files, remove_saved
from bertorch.training.saving import staged, written_to
from bertorch.weights import WEIGHTS

_KEY = "folds"
RESULTS = (OUT_OF_FOLD, REPORT, ERRORS, PREDICTIONS)


@dataclass(frozen=True)
class Progress:
    """How far a run with folds is, as its record has it."""

    folds: int  # K
    command: str  # that goes on with it
    stale: Sequence[int] = ()  # folds of runs before it, which are to be removed
    is_cleared: bool = False  # whether what they left is removed
    trained: int = 0  # folds that are trained, the first ones
    is_complete: bool = False  # whether the results of all folds are there


def fold_name(fold: int) -> str:
    """The name of a fold's folder, from 1."""
    return f"fold-{fold}"


def fold_folder(folder: str, fold: int) -> str:
    """The folder of a fold, from 1, in that of the run."""
    return str(Path(folder) / fold_name(fold))


def fold_folders(folder: str) -> list[str]:
    """The folders of the folds that a folder holds; none of an ordinary one, or of another program.

    Raises:
        UserError: the run with `--folds` is not complete.
    """
    try:
        record = _read(Path(folder))
    except UserError:  # whoever only loads from a folder needs no record
        return []
    progress = None if record is None else record[_KEY]
    if progress is None:
        return []
    if not progress.is_complete:
        raise UserError(
            f"{folder}: expected a complete run with --folds {progress.folds}, got one of which "
            f"{progress.trained} are trained; the same command goes on with it: {progress.command}"
        )
    return [fold_folder(folder, fold) for fold in range(1, progress.folds + 1)]


class FoldsFolder:
    """The folder of a run with folds, which only the first process uses; a UserError where it cannot write.

    Args:
        config: of the run.
        assignment: a hash of which example is in which fold.
    """

    def __init__(self, config: FoldsConfig, assignment: str) -> None:
        self._config, self._assignment, self._path = config, assignment, Path(config.saved_dir)
        self._id = secrets.token_hex(8)
        self._files: set[str] = set()  # in the folder, beside the folds
        assert config.folds is not None
        self._progress = Progress(config.folds, shlex.join([*program.command(), *program.arguments_again()]))

    def open(self) -> tuple[int, bool]:
        """Check the folder before training; returns how many folds are trained, and whether all is done.

        An unfinished run of the same options goes on, with or without `--resume`; a finished one starts again unless
        `--resume` is set. One that starts removes the folds of a run before it.

        Raises:
            UserError: the folder holds another run's results, or files of this name, and `--overwrite` is not set; or
                what the folds start from.
        """
        config = self._config
        self._require_start_elsewhere()
        with staged(config.saved_dir):
            pass  # a folder that cannot be written to should be reported before training
        record = _read(self._path)
        recorded = set() if record is None else recorded_files(record["files"], self._path / RECORD)
        self._options, self._digests = self._describe()
        if not config.overwrite:
            RunFolder(config.saved_dir, self._options, keep=0, digests=self._digests).require_own()
            refuse_existing((str(self._path / name) for name in RESULTS if name not in recorded), overwrite=False)
        self._files = recorded | loaded_files(self._path)
        before: Progress | None = None if record is None else record[_KEY]
        goes_on = before is not None and not config.overwrite and (config.resume or not before.is_complete)
        if record is not None and before is not None and goes_on:
            self._id, self._progress = record["id"], before
            how = "the run is complete, with" if before.is_complete else "goes on, trained are"
            logger.info("{}: {} {} of {} folds", config.saved_dir, how, before.trained, before.folds)
        else:
            stale = self._folds_there(before)
            self._require_unused({*range(1, self._progress.folds + 1)} - {*stale})
            self._note(stale=stale)
        if not self._progress.is_cleared:
            self._clear()
        return self._progress.trained, self._progress.is_complete

    def note_trained(self, fold: int) -> None:
        """Note that a fold and those before it are trained."""
        self._note(trained=fold)

    def note_results(self) -> None:
        """Note that the results of all folds are about to be written.

        Raises:
            UserError: the training file, of which they have the texts, is no longer what it was.
        """
        name = self._config.train_data_file
        if content_digest(name) != self._options.get("content of --train_data_file"):
            raise UserError(
                f"{name}: expected the training file as it was when the folds were made, got another content; put it "
                "back, and the same command writes the results"
            )
        self._files |= {*RESULTS, CARD}
        self._note()

    def note_complete(self) -> None:
        """Note that the results of all folds are there."""
        self._note(is_complete=True)

    def _require_start_elsewhere(self) -> None:
        saved_dir = self._path.resolve()
        for option in ("pretrained_model_name_or_path", "init_from_ckpt"):
            name = getattr(self._config, option)
            if name is not None and Path(name).exists() and saved_dir in (Path(name).resolve() / WEIGHTS).parents:
                raise UserError(
                    f"--{option} {name}: expected a model outside of --saved_dir {self._config.saved_dir}, which is "
                    "cleared; each of the --folds starts from it"
                )

    def _describe(self) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """The options of the record, and the digests of models."""
        config, digests = self._config, ModelDigests(self._path / RECORD)
        precision, processes = Precision.resolve(config.precision, distributed.device()).name, distributed.world_size()
        options = describe_run(config, digests, precision=precision, processes=processes, negatives=Negatives.NONE)
        return options | {"content of the folds": self._assignment}, digests.weights

    def _require_unused(self, folds: Collection[int]) -> None:
        used = [name for name in map(fold_name, sorted(folds)) if _is_used(self._path / name)]
        if used:
            raise UserError(
                f"--saved_dir {self._config.saved_dir}: expected no results in {', '.join(used)}, got those of another "
                "run or program; choose another --saved_dir, or let --overwrite replace them"
            )

    def _folds_there(self, before: Progress | None) -> list[int]:
        """The folds of the run before this one, and with `--overwrite` what other runs left under the names of ours."""
        ours = range(1, self._progress.folds + 1) if self._config.overwrite else ()
        paths = {fold: self._path / fold_name(fold) for fold in ours}
        others = {fold for fold, path in paths.items() if _is_used(path)}
        recorded = set() if before is None else {*range(1, before.folds + 1), *before.stale}
        return sorted(others | {fold for fold in recorded if (self._path / fold_name(fold)).exists()})

    def _clear(self) -> None:
        """Remove what runs before this one have left; if it is killed meanwhile, it does so again."""
        folds = [self._path / fold_name(fold) for fold in self._progress.stale]
        if folds:
            logger.warning("{}: removes {} folds of an earlier run", self._config.saved_dir, len(folds))
        with written_to(self._config.saved_dir):
            for old in folds:
                remove(old)
            for old in checkpoints(self._path):
                remove_checkpoint(old)
            remove_saved(self._path, self._files)
        self._files = set()
        self._note(is_cleared=True, stale=())

    def _note(self, **changes: Any) -> None:
        self._progress = replace(self._progress, **changes)
        record = {"id": self._id, "options": self._options, "files": sorted(self._files), DIGESTS: self._digests}
        with written_to(self._config.saved_dir), replacing(self._path / RECORD) as new:
            new.write_text(to_json(record | {_KEY: asdict(self._progress)}, indent=1), encoding="utf-8")


def _is_used(fold: Path) -> bool:
    """Whether a run, or another program, has left a model or checkpoints in the folder of a fold."""
    return (fold / RECORD).exists() or bool(loaded_files(fold) | foreign_checkpoints(fold))


def _read(folder: Path) -> dict[str, Any] | None:
    """The record of a folder, None without one; under `_KEY` the progress, None of an ordinary run."""
    return read_record(
        folder / RECORD,
        lambda read: {
            "id": str(read["id"]),
            "files": list(read["files"]),
            _KEY: None if read.get(_KEY) is None else Progress(**read[_KEY]),
        },
        expected="the record of a run",
        remedy="choose another --saved_dir, or repair or remove that file",
    )
