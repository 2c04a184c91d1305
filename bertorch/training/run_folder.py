"""`--saved_dir`: the run that it belongs to, the weights for use, the checkpoints to resume from.

    saved_dir/
        pytorch_model.bin, config.json, …   the weights for use: the last ones, or the best with --save_best_model
        metrics.jsonl                       the numbers of its log, see bertorch.training.metrics_file
        run.json                            the run: a random id, its options, digests of its inputs, its files
        .lock                               while the run goes on: who writes here
        checkpoint-200/                     everything that the run needs to continue after step 200
            model.safetensors, config.json, …, optimizer.safetensors, training_state.json

A checkpoint is moved into place complete: the tensors of each part of `bertorch.training.state` in a file of its own,
the rest in `training_state.json`. It has the id of its run, so that those of an earlier run in the same folder are
never taken for its own.
"""

import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

from loguru import logger
from torch import Tensor

from bertorch.atomic import replacing, to_disk
from bertorch.data.model_digests import DIGESTS
from bertorch.encoder.onnx_files import remove_graphs
from bertorch.errors import UserError
from bertorch.files import read_record, to_json
from bertorch.tasks.base import Savable
from bertorch.training.checkpoints import (
    STATE,
    checkpoint_name,
    checkpoints,
    foreign_checkpoints,
    newest_checkpoint,
    progress_of,
    remove_checkpoint,
)
from bertorch.training.metrics_file import METRICS, Line, MetricsFile
from bertorch.training.run_options import Options, differing
from bertorch.training.saved_files import loaded_files, recorded_files, remove_saved
from bertorch.training.saving import publish, staged, written_to
from bertorch.training.state import State
from bertorch.weights import SAFE_WEIGHTS, WEIGHTS, save_file

RECORD = "run.json"
DATA_FILES = "data_files"  # in it
LOCK = ".lock"  # held by the run that writes into the folder


class RunFolder:
    """The `--saved_dir` of a run, which only the first process uses.

    `options` are those of `bertorch.training.run_options`; the record also has `digests` of weights, see
    `bertorch.data.model_digests`, and where its `data_files` were. Weights for use go into the `weights_files`, see
    `publish`. Keeps `keep` checkpoints. Raises a UserError where it cannot write; the previous save is then unchanged.
    """

    def __init__(
        self,
        folder: str,
        options: Options,
        *,
        keep: int,
        digests: Mapping[str, Any],
        data_files: Mapping[str, str] = MappingProxyType({}),
        weights_files: Collection[str] = (WEIGHTS,),
    ) -> None:
        self._name, self._path = folder, Path(folder)
        self._options, self._keep, self._digests = dict(options), keep, digests
        self._data_files, self._weights_files = dict(data_files), weights_files
        self._id = secrets.token_hex(8)
        self._files: set[str] = set()  # in the folder, from this run or one before it
        self._is_claimed = False  # whether RECORD names this run
        self._metrics = MetricsFile(self._path)
        self._metrics_lock = Lock()  # lines are written while a thread saves

    def open(self, *, resume: bool, overwrite: bool, sources_inside: Sequence[str] = ()) -> dict[str, State] | None:
        """Check the folder before training; returns the parts to resume from, None to start from the beginning.

        An interrupted run of the same options continues, with or without `resume`; a finished one starts again unless
        `resume` is set, and then has nothing left to do. With `overwrite` a run starts again in any case.

        Args:
            resume, overwrite: the options.
            sources_inside: the options that name a model in the folder, which the first save of weights replaces.

        Raises:
            UserError: the folder holds another run's results and `overwrite` is not set; or this run would start from
                what it may have replaced itself.
        """
        with staged(self._name):
            pass  # a folder that cannot be written to should be reported before training
        record = self._record() if overwrite else self.require_own()
        recorded = set() if record is None else recorded_files(record["files"], self._path / RECORD)
        self._files = recorded | loaded_files(self._path)  # the first save removes those of another program
        saved = None if overwrite or record is None else newest_checkpoint(self._path, record["id"])
        if record is not None and saved is not None:
            step, last_step = progress_of(saved)
            if resume or step < last_step:
                self._resume(record["id"], step, is_complete=step == last_step)
                return saved
        if sources_inside and record is not None and saved is None and not overwrite:
            raise UserError(
                f"--saved_dir {self._name}: expected a checkpoint to go on from, got none; a run began here and may "
                f"have replaced the weights that it started from ({', '.join(sources_inside)}); put them back "
                "elsewhere and name them there, or let --overwrite start from those that are here"
            )
        if resume:
            logger.info("{}: no checkpoint to go on from yet; starts from the beginning", self._name)
        earlier = next((file for name in (WEIGHTS, SAFE_WEIGHTS) if (file := self._path / name).exists()), None)
        if earlier is not None:
            logger.warning("{} is from an earlier run; the first save of this one replaces it", earlier)
        elif os.path.lexists(self._path / METRICS):
            logger.warning(
                "{} is from a run that saved nothing, or of another program; the first save of this one replaces it",
                self._path / METRICS,
            )
        elif record is None:  # else the numbers belong to results that are still there
            self._metrics.start()
        return None

    def require_own(self, *, is_part: bool = False) -> dict[str, Any] | None:
        """The record of the folder, None if it is empty.

        Raises:
            UserError: it holds another program's files, or the results of another run; of a run of which only a part of
                the options is known, one that differs in that part.
        """
        record = self._record()
        recorded = set() if record is None else recorded_files(record["files"], self._path / RECORD)
        if foreign := (loaded_files(self._path) - recorded) | foreign_checkpoints(self._path):
            raise UserError(
                f"--saved_dir {self._name}: expected an empty folder or one of this run, got "
                f"{', '.join(sorted(foreign)[:3])} of another program; choose another --saved_dir, or let --overwrite "
                "replace them"
            )
        if record is None:
            return None
        there = {name: value for name, value in record["options"].items() if name in self._options or not is_part}
        differences = differing(there, self._options, with_models=record[DIGESTS] is not None)
        if differences:
            raise UserError(
                f"--saved_dir {self._name}: holds the results of another run. They differ in\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nTo keep both, choose another --saved_dir; --overwrite replaces those that are there."
            )
        return record

    def write_metrics(self, line: Line) -> None:
        """Add a line to `metrics.jsonl`, which replaces an earlier run's file at the first save."""
        with written_to(self._name), self._metrics_lock:
            self._metrics.append(line)

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether checkpoints are to be saved."""
        return self._keep > 0

    def save_weights(self, weights: Mapping[str, Tensor], savables: Sequence[Savable]) -> None:
        """Save weights for use; the first save of a run also removes the files of an earlier one.

        Exports of the weights that are replaced are removed with a warning: other programs would still take them.
        """

        def before(files: set[str]) -> None:
            self._claim(files)
            remove_graphs(self._path)

        written = publish(self._name, weights, savables, before, weights_files=self._weights_files) | {METRICS}
        if written < self._files:
            with written_to(self._name):
                remove_saved(self._path, self._files - written)
                self._files = written
                self._write_record()

    def save_checkpoint(self, step: int, parts: Mapping[str, State], savables: Sequence[Savable]) -> None:
        """Write the checkpoint after a step, and remove those beyond the newest `keep`.

        Of the parts, `model` holds the weights, and `progress` has `step` and `last_step`.
        """
        target = self._path / checkpoint_name(step)
        with staged(self._name) as staging:
            new = staging / target.name
            new.mkdir()
            for savable in savables:
                savable.save_pretrained(new)
            values = {name: part.values for name, part in parts.items()}
            with_tensors = [name for name, part in parts.items() if part.tensors]
            for name in with_tensors:
                save_file(parts[name].tensors, new / f"{name}.safetensors")
            content = {"run": self._id, "options": self._options, "with_tensors": with_tensors, "parts": values}
            (new / STATE).write_text(to_json(content, indent=1), encoding="utf-8")
            to_disk(new)
            self._claim(self._files)
            self._metrics.to_disk()
            remove_checkpoint(target)  # of an earlier run
            new.rename(target)
            to_disk(self._path, deep=False)
            self._remove_older(step)

    def _resume(self, run: str, step: int, *, is_complete: bool) -> None:
        self._id, self._is_claimed = run, True
        how = "the run is complete, after step" if is_complete else "goes on after step"
        rest = "" if is_complete else "; --overwrite would start from the beginning"
        logger.info("{}: {} {}{}", self._name, how, step, rest)
        with written_to(self._name):
            self._metrics.resume(step)
            if self.keeps_checkpoints:
                self._remove_older(step)  # a killed run may have left one, also half of it

    def _remove_older(self, step: int) -> None:
        """Remove the checkpoints beyond the newest `keep` up to a step; a later one could not be read."""
        for old in checkpoints(self._path, until=step)[self._keep :]:
            remove_checkpoint(old)

    def _claim(self, files: set[str]) -> None:
        """Before the first file of a run is moved into place, record the run and remove other runs' checkpoints."""
        files = files | {METRICS}
        if self._is_claimed and files <= self._files:
            return
        self._files |= files
        self._write_record()
        for old in [] if self._is_claimed else checkpoints(self._path):
            remove_checkpoint(old)
        with self._metrics_lock:
            self._metrics.release()
        self._is_claimed = True

    def _write_record(self) -> None:
        record = {"id": self._id, "options": self._options, "files": sorted(self._files), DIGESTS: self._digests}
        if self._data_files:
            record[DATA_FILES] = self._data_files
        with replacing(self._path / RECORD) as new:
            new.write_text(to_json(record, indent=1), encoding="utf-8")

    def _record(self) -> dict[str, Any] | None:
        return read_record(
            self._path / RECORD,
            lambda read: {
                "id": str(read["id"]),
                "options": dict(read["options"]),
                "files": list(read["files"]),
                DIGESTS: read.get(DIGESTS),
            },
            expected="the record of a run",
            remedy="choose another --saved_dir, or repair or remove that file",
        )
