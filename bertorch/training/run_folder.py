"""`--saved_dir`: the run that it belongs to, the weights for use, the checkpoints to resume from.

    saved_dir/
        pytorch_model.bin, config.json, …   the weights for use: the last ones, or the best with --save_best_model
        metrics.jsonl                       the numbers of its log, see bertorch.training.metrics_file
        run.json                            the run: a random id, its options, the digests of its data, its files
        checkpoint-200/                     everything that the run needs to continue after step 200
            model.safetensors, config.json, …, optimizer.safetensors, training_state.json

A checkpoint is moved into place complete: the tensors of each part of `bertorch.training.state` in a file of its own,
the rest in `training_state.json`. It has the id of its run, so that those of an earlier run in the same folder are
never taken for its own.
"""

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from loguru import logger
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertorch.config import TrainingConfig
from bertorch.data.fingerprint import file_digest
from bertorch.errors import UserError
from bertorch.files import read_record, to_disk
from bertorch.tasks.base import Negatives, Savable
from bertorch.training.metrics_file import METRICS, Line, MetricsFile
from bertorch.training.model_card import is_foreign
from bertorch.training.saving import on_cpu, publish, staged, written_to
from bertorch.training.state import State
from bertorch.weights import SAFE_WEIGHTS, WEIGHTS

RECORD = "run.json"
PROGRESS = "progress"  # the part with the `step` that a run has reached, and its `last_step`
_STATE = "training_state.json"
_CHECKPOINT = "checkpoint-"

Options = Mapping[str, Any]


def describe_run(config: TrainingConfig, *, precision: str, processes: int, negatives: Negatives) -> dict[str, Any]:
    """What the result of a run depends on, by option, to recognise the same run.

    Of files the content counts, not the name; of batch size and processes the product, unless the loss takes its
    negatives from the process's own batch. `precision` is a resolved one, not `auto`.
    """
    described: dict[str, Any] = {"script": type(config).__name__}
    for declared in fields(config):
        value = getattr(config, declared.name)
        if declared.metadata["is_input"] and value is not None and Path(value).is_file():
            described[f"content of --{declared.name}"] = file_digest(value)
        elif declared.metadata["shapes_result"]:
            described[f"--{declared.name}"] = value
    described["--precision"] = precision
    described["--batch_size times processes"] = described.pop("--batch_size") * processes
    if negatives is Negatives.LOCAL:
        described["processes, without --gather_negatives"] = processes
    if config.patience is not None or config.save_best_model:  # the result then depends on the evaluations
        described["steps between evaluations"] = config.evaluation_steps
    return described


class RunFolder:
    """The `--saved_dir` of a run with the options of `describe_run`, which only the first process uses.

    Keeps `keep` checkpoints. Raises a UserError where it cannot write; the previous save is then unchanged.
    """

    def __init__(self, folder: str, options: Options, *, keep: int) -> None:
        self._name, self._path = folder, Path(folder)
        self._options, self._keep = dict(options), keep
        self._id = secrets.token_hex(8)
        self._files: set[str] = set()  # in the folder, from this run or one before it
        self._is_claimed = False  # whether RECORD names this run
        self._metrics = MetricsFile(self._path)

    def open(self, *, resume: bool, overwrite: bool) -> dict[str, State] | None:
        """Check the folder before training; returns the parts to resume from, None to start from the beginning.

        An interrupted run of the same options continues, with or without `resume`; a finished one starts again unless
        `resume` is set, and then has nothing left to do. With `overwrite` a run starts again in any case.

        Raises:
            UserError: the folder holds another run's results and `overwrite` is not set.
        """
        with staged(self._name, make=True):
            pass  # a folder that cannot be written to should be reported before training
        record = self._record()
        if not overwrite:
            self._require_own(record)
        # transformers would load SAFE_WEIGHTS of another program instead of our weights.
        self._files = set(record["files"]) if record is not None else {SAFE_WEIGHTS}
        saved = None if overwrite or record is None else self._newest_checkpoint(record["id"])
        if record is not None and saved is not None:
            step, last_step = (saved[PROGRESS].values[name] for name in ("step", "last_step"))
            if resume or step < last_step:
                self._resume(record["id"], step, is_complete=step == last_step)
                return saved
        if resume:
            logger.info("{}: no checkpoint to go on from yet; starts from the beginning", self._name)
        if (self._path / WEIGHTS).exists():
            logger.warning("{} is from an earlier run; the first save of this one replaces it", self._path / WEIGHTS)
        elif record is None:  # else the numbers belong to results that are still there
            if (self._path / METRICS).exists():
                logger.warning("{} is from a run that saved nothing; this one replaces it", self._path / METRICS)
            with written_to(self._name):
                self._metrics.start()
        return None

    def write_metrics(self, line: Line) -> None:
        """Add a line to `metrics.jsonl`, which replaces an earlier run's file at the first save."""
        with written_to(self._name):
            self._metrics.append(line)

    def save_weights(self, weights: Mapping[str, Tensor], savables: Sequence[Savable]) -> None:
        """Save weights for use; the first save of a run also removes the files of an earlier one."""
        written = publish(self._name, weights, savables, before=self._claim) | {METRICS}
        for path in (self._path / name for name in self._files - written):
            if not is_foreign(path):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # other files are in it
                    path.parent.rmdir()
        self._files = written

    def save_checkpoint(self, step: int, parts: Mapping[str, State], savables: Sequence[Savable]) -> None:
        """Write the checkpoint after a step, and remove those beyond the newest `keep`.

        Of the parts, `model` holds the weights, and PROGRESS `step` and `last_step`.
        """
        if not self._keep:
            return
        target = self._path / f"{_CHECKPOINT}{step}"
        with staged(self._name) as staging:
            self._claim(staging, self._files)
            new = staging / target.name
            new.mkdir()
            for savable in savables:
                savable.save_pretrained(new)
            values = {name: part.values for name, part in parts.items()}
            with_tensors = [name for name, part in parts.items() if part.tensors]
            for name in with_tensors:
                save_file(on_cpu(parts[name].tensors), new / f"{name}.safetensors", metadata={"format": "pt"})
            content = {"run": self._id, "options": self._options, "with_tensors": with_tensors, "parts": values}
            (new / _STATE).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
            to_disk(new)
            self._metrics.to_disk()
            if target.exists():  # of an earlier run
                shutil.rmtree(target)
            new.rename(target)
            to_disk(self._path, deep=False)
        for old in self._checkpoints()[self._keep :]:
            shutil.rmtree(old)

    def _resume(self, run: str, step: int, *, is_complete: bool) -> None:
        self._id, self._is_claimed = run, True
        how = "the run is complete, after step" if is_complete else "goes on after step"
        rest = "" if is_complete else "; --overwrite would start from the beginning"
        logger.info("{}: {} {}{}", self._name, how, step, rest)
        with written_to(self._name):
            self._metrics.resume(step)

    def _claim(self, staging: Path, files: set[str]) -> None:
        """Before the first file of a run is moved into place, record the run and remove other runs' checkpoints."""
        files = files | {METRICS}
        if self._is_claimed and files <= self._files:
            return
        self._files |= files
        record = {"id": self._id, "options": self._options, "files": sorted(self._files)}
        (staging / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
        to_disk(staging / RECORD)
        (staging / RECORD).replace(self._path / RECORD)
        for old in [] if self._is_claimed else self._checkpoints():
            shutil.rmtree(old)
        self._metrics.release()
        self._is_claimed = True

    def _record(self) -> dict[str, Any] | None:
        return read_record(
            self._path / RECORD,
            lambda read: {"id": str(read["id"]), "options": dict(read["options"]), "files": list(read["files"])},
            expected="the record of a run",
            remedy="choose another --saved_dir, or repair or remove that file",
        )

    def _require_own(self, record: dict[str, Any] | None) -> None:
        if record is None:
            found = next((name for name in (WEIGHTS, SAFE_WEIGHTS) if (self._path / name).exists()), None)
            if found is not None:
                raise UserError(
                    f"--saved_dir {self._name}: expected an empty folder or one of this run, got {found} of another "
                    "program; choose another --saved_dir, or let --overwrite replace them"
                )
            return
        differences = [
            f"  {name}: {_short(record['options'], name)} there, {_short(self._options, name)} now"
            for name in dict.fromkeys([*record["options"], *self._options])
            # An option that is off counts as one that came after the record was written.
            if (record["options"].get(name) or None) != (self._options.get(name) or None)
        ]
        if differences:
            raise UserError(
                f"--saved_dir {self._name}: holds the results of another run. They differ in\n"
                + "\n".join(differences)
                + "\nTo keep both, choose another --saved_dir; --overwrite replaces those that are there."
            )

    def _checkpoints(self) -> list[Path]:
        """The checkpoints, the newest first."""
        found = [path for path in self._path.glob(f"{_CHECKPOINT}*") if path.name.removeprefix(_CHECKPOINT).isdigit()]
        return sorted(found, key=lambda path: -int(path.name.removeprefix(_CHECKPOINT)))

    def _newest_checkpoint(self, run: str) -> dict[str, State] | None:
        """The parts in a run's newest readable checkpoint, None if it has none."""
        for path in self._checkpoints():
            try:
                content = json.loads((path / _STATE).read_text(encoding="utf-8"))
                if content["run"] == run:
                    content = _convert_legacy(content)
                    tensors = {name: load_file(path / f"{name}.safetensors") for name in content["with_tensors"]}
                    return {name: State(tensors.get(name, {}), values) for name, values in content["parts"].items()}
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                logger.warning("{}: skipped, it cannot be read: {}: {}", path, type(error).__name__, error)
        return None


def _convert_legacy(content: dict[str, Any]) -> dict[str, Any]:
    """The content of `training_state.json` from before a checkpoint was a list of parts."""
    if "parts" in content:
        return content
    optimization, best = content["optimization"], content["best"]
    names = {"last_step": "steps", "evaluations_since_best": "unimproved"}
    names |= {name: name for name in ("step", "processes", "weights_step", "history")}
    progress = {name: content[old] for name, old in names.items()}
    progress["best"] = best and {name: best[name] for name in ("name", "value", "step")} | {"summary": best["report"]}
    parts = {"progress": progress, "model": None, "optimizer": {"rates": optimization["rates"]}}
    parts |= {name: optimization[name] for name in ("scheduler", "scaler")}
    parts["step"] = {"overflows": optimization["overflows"]}
    return {"run": content["run"], "with_tensors": ["model", "optimizer"], "parts": parts}


def _short(options: Options, name: str) -> str:
    value = options.get(name)
    return value[:12] if name.startswith("content") and isinstance(value, str) else repr(value)
