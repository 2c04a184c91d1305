"""Exports of a folder: made beside their place, compared with the model, and moved there if all is well."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch import distributed
from bertorch.atomic import unfinished
from bertorch.encoder.graph_sources import States, made_of
from bertorch.encoder.onnx_files import (
    FOLDER,
    FULL,
    ONNX,
    ExportRecord,
    kinds_of,
)
from bertorch.errors import UserError
from bertorch.exporting.card import write_card
from bertorch.exporting.check_data import built_in, check_data
from bertorch.exporting.checking import Check, check_metric, check_outputs
from bertorch.exporting.folders import (
    copied_files,
    copy_description,
    graph_files,
    is_of,
    put_into_place,
    require_room,
    stale_files,
)
from bertorch.exporting.graphs import padded_model, quantised, require_packages, write_graph
from bertorch.files import writing
from bertorch.inference.fitted_folder import writing_to
from bertorch.inference.load import load_trained
from bertorch.tasks.base import Task
from bertorch.training.folds_folder import fold_folders
from bertorch.training.hub_metadata import NOTHING_GIVEN, HubOptions
from bertorch.training.run_folder import LOCK
from bertorch.weights import SAFE_WEIGHTS, load_weights, save_file, weights_file
from bertorch.writer_lock import only_writer


class FailedCheckError(Exception):
    """An export that is worse than the model by more than is allowed, and was not put into place."""

    def __init__(self, name: str, check: Check) -> None:
        super().__init__(f"{name}: {check}; nothing was put into place")
        self.check = check


def export_graphs(
    model_dir: str,
    backend: str,
    output_dir: str,
    *,
    check_file: str | None = None,
    max_loss: float = 0.01,
    batch_size: int = 32,
    overwrite: bool = False,
    hub: HubOptions = NOTHING_GIVEN,
) -> dict[str, Check]:
    """Export a folder for a backend, `onnx` or `onnx-int8`, of ONNX Runtime; returns what the check of each file gave.

    Raises:
        UserError: it cannot be exported, or files are there already and `overwrite` is not set.
        FailedCheckError: an export is worse than the model; what was there before is as it was.
    """
    require_packages()
    source, output, kinds = _source(model_dir), Path(output_dir), kinds_of(backend)
    with _held(model_dir, output_dir):
        digests, weights = made_of(source, {})
        targets = [output / FOLDER / kind.file for kind in kinds]
        stale = require_room(output, source, targets, digests, overwrite=overwrite)
        stale += stale_files(output, kinds, digests, overwrite=overwrite)
        task = load_trained(model_dir)
        padded_model(task)  # raises
        data = check_data(task, model_dir, check_file)
        checks: dict[str, Check] = {}
        files: list[Path] = []
        with writing(output), unfinished(output, is_folder=True) as staging:
            copy_description(source, staging)
            (staging / FOLDER).mkdir()
            full = _full_graph(task, staging, output, digests, is_wanted=backend == ONNX)
            task.model.to(distributed.device())
            for kind in reversed(kinds):  # a fast one would be opened in the place of a safe one
                graph = staging / FOLDER / kind.file
                if backend != ONNX:
                    quantised(full, kind, graph)
                record = ExportRecord(os.path.relpath(source, output), digests, weights)
                record.write(graph)
                exported = load_trained(staging, max_seq_length=task.max_seq_length, backend=backend)
                exported.model.to(distributed.device())
                if kind is FULL:
                    check = check_outputs(task, exported, data, batch_size)
                else:
                    check = check_metric(task, exported, data, batch_size, max_loss)
                if not check.passed:
                    raise FailedCheckError(kind.file, check)
                logger.info("{}: {}", kind.file, check)
                checks[kind.file] = check
                replace(record, check=check.record()).write(graph)
                new, gone = graph_files(staging, kind)
                files, stale = [*files, *new], [*stale, *gone]
            if output.resolve() != source.resolve():
                files = [*copied_files(staging), *files]
            _require_same(source, digests, weights)
            put_into_place(staging, output, files, stale)
        write_card(task, source, output, hub)
    return checks


def export_safetensors(
    model_dir: str, output_dir: str, *, overwrite: bool = False, hub: HubOptions = NOTHING_GIVEN
) -> Check:
    """Write a folder whose weights are in `model.safetensors`, of one with a `.bin`; the model gives the same.

    Raises:
        UserError: the folder has other weights, or files are there already and `overwrite` is not set.
        FailedCheckError: the model gives something else.
    """
    source, output = _source(model_dir), Path(output_dir)
    if output.resolve() == source.resolve():
        raise UserError(
            f"--output_dir {output_dir}: expected another folder than --model_dir: with two files of weights in one, "
            f"programs would take {SAFE_WEIGHTS}, also when a run has replaced the other"
        )
    weights = weights_file(model_dir)
    if weights.name == SAFE_WEIGHTS:
        raise UserError(f"--model_dir {model_dir}: expected weights in a .bin file, got {weights.name} already")
    with _held(model_dir, output_dir):
        digests, states = made_of(source, {})
        stale = require_room(output, source, [output / SAFE_WEIGHTS], digests, overwrite=overwrite)
        stale += stale_files(output, [], digests, overwrite=overwrite)
        task = load_trained(model_dir)
        with writing(output), unfinished(output, is_folder=True) as staging:
            copy_description(source, staging)
            save_file(load_weights(model_dir), staging / SAFE_WEIGHTS)
            exported = load_trained(staging, max_seq_length=task.max_seq_length)
            found = check_outputs(task, exported, built_in(task), batch_size=32)
            check = replace(found, limit=0.0)
            if not check.passed:
                raise FailedCheckError(SAFE_WEIGHTS, check)
            _require_same(source, digests, states)
            put_into_place(staging, output, [*copied_files(staging), Path(SAFE_WEIGHTS)], stale)
        logger.info("{}: {}", output / SAFE_WEIGHTS, check)
        write_card(task, source, output, hub)
    return check


def _full_graph(task: Task[Any], staging: Path, output: Path, digests: Mapping[str, str], *, is_wanted: bool) -> Path:
    """The graph in fp32: in its place if it `is_wanted`, else beside it; or one that is there, of the same model."""
    there = output / FOLDER / FULL.file
    if not is_wanted and there.exists() and is_of(there, digests, overwrite=True):
        return there
    full = staging / FOLDER / FULL.file if is_wanted else staging / FULL.file
    write_graph(task.model, padded_model(task), full)
    return full


def _require_same(source: Path, digests: Mapping[str, str], states: States) -> None:
    if made_of(source, states)[0] != digests:
        raise UserError(f"--model_dir {source}: expected it not to change meanwhile, and it did; export again")


def _source(model_dir: str) -> Path:
    if folds := fold_folders(model_dir):
        raise UserError(
            f"--model_dir {model_dir}: expected the folder of one model, got that of --folds; export each of them, "
            f"such as {folds[0]}; --backend then takes this folder too"
        )
    if not Path(model_dir).is_dir():
        raise UserError(f"--model_dir {model_dir}: expected the folder that a run saved, got no folder")
    return Path(model_dir)


@contextmanager
def _held(model_dir: str, output_dir: str) -> Iterator[None]:
    """Meanwhile no other command writes into the folder of the export, nor a run if that is the model's."""
    if Path(output_dir).resolve() == Path(model_dir).resolve():
        with writing_to(model_dir):
            yield
        return
    with only_writer(Path(os.path.realpath(output_dir)) / LOCK, f"--output_dir {output_dir}"):
        yield
