"""Where exported graphs are in a folder, and what is recorded of each, so that one of other weights is noticed.

    folder/
        config.json, tokenizer.json, …      as without an export
        onnx/model.onnx                     a graph, and maybe model.onnx_data, its weights beyond 2 GB
        onnx/model.onnx.json                what it was made of, and how it was checked
        onnx/model.head.npz                 the weights that are beside the graph, such as the transitions of a CRF

These are the names that sentence-transformers, transformers' loaders and text-embeddings-inference look for.
"""

import platform
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from transformers import PretrainedConfig

from bertorch.config import BACKENDS
from bertorch.encoder.graph_sources import ENCODER, States, made_of
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.errors import UserError
from bertorch.files import read_record, reason, to_json

FOLDER = "onnx"
ONNX, INT8 = BACKENDS[1:]
_VNNI = ("avx512_vnni", "avx_vnni")  # flags of processors that multiply int8 without intermediate results of 16 bits


@dataclass(frozen=True)
class GraphKind:
    """A form in which a model is exported."""

    backend: str  # that runs it
    file: str
    reduce_range: bool = False  # of int8: weights of 7 bits, where products of 8 would overflow 16


FULL = GraphKind(ONNX, "model.onnx")
# Named as sentence-transformers names what its own quantisation of signed weights gives.
VNNI, SAFE, ARM = (
    GraphKind(INT8, "model_qint8_avx512_vnni.onnx"),
    GraphKind(INT8, "model_qint8_avx2.onnx", reduce_range=True),
    GraphKind(INT8, "model_qint8_arm64.onnx"),
)


def kinds_of(backend: str) -> list[GraphKind]:
    """The forms that this processor can run, and so check, for a backend: the fastest first."""
    if backend == ONNX:
        return [FULL]
    if platform.machine() in ("aarch64", "arm64"):
        return [ARM]
    return [VNNI, SAFE] if has_vnni() else [SAFE]


def has_vnni() -> bool:
    """Whether the processor says that it multiplies int8 without saturation; False where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in text.split() for flag in _VNNI)


def record_path(graph: Path) -> Path:
    """The file that says what a graph was made of."""
    return graph.with_name(f"{graph.name}.json")


def head_path(graph: Path) -> Path:
    """The file of the weights beside a graph."""
    return graph.with_name(f"{graph.stem}.head.npz")


def files_of(graph: Path) -> list[Path]:
    """All files that belong to a graph; some may not be there."""
    return [graph, graph.with_name(f"{graph.name}_data"), head_path(graph), record_path(graph)]


@dataclass(frozen=True)
class ExportRecord:
    """What is recorded of a graph. It may be published with it, so no path of the machine is in it."""

    source: str  # the folder that it was exported from, relative to that of the export
    made_of: Mapping[str, str]  # see `graph_sources.made_of`
    weights: States = field(default_factory=dict)  # of the same
    check: Mapping[str, Any] = field(default_factory=dict)  # what the comparison with the model gave

    @classmethod
    def read(cls, graph: Path) -> "ExportRecord | None":
        """The record beside a graph, None if there is none; a `UserError` if it is damaged."""
        return read_record(
            record_path(graph),
            lambda read: cls(str(read["source"]), dict(read["made_of"]), dict(read["weights"]), dict(read["check"])),
            expected="the record of an export",
            remedy="export again, with --overwrite",
        )

    def write(self, graph: Path) -> None:
        """Write the record beside a graph."""
        record_path(graph).write_text(to_json(asdict(self), indent=1) + "\n", encoding="utf-8")


def remove_graphs(folder: Path) -> None:
    """Remove exports from the folder of a model whose weights are about to be replaced; those of others stay."""
    for kind in (FULL, VNNI, SAFE, ARM):
        graph = folder / FOLDER / kind.file
        if not record_path(graph).exists() or graph.parent.is_symlink():
            continue
        for file in reversed(files_of(graph)):  # the record first: without it the graph is not taken
            file.unlink(missing_ok=True)
        logger.warning("{}: is of weights that are replaced now, and was removed; export again", graph)
    with suppress(OSError):  # it is not there, or has other files
        (folder / FOLDER).rmdir()


def command_for(folder: str, backend: str) -> str:
    """The command that exports a folder for a backend."""
    return f"python -m bertorch.export --model_dir {shlex.quote(folder)} --format {backend}"


def open_graph(folder: str, backend: str, config: PretrainedConfig) -> OnnxModel | None:
    """The graph in a folder that a backend runs; None for torch.

    Raises:
        UserError: there is none, it is of other weights than those of the folder, or ONNX Runtime is not installed.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == BACKENDS[0]:
        return None
    graphs = [Path(folder) / FOLDER / kind.file for kind in kinds_of(backend)]
    graph = next((each for each in graphs if each.exists() and record_path(each).exists()), None)
    if graph is None:
        foreign = next((each for each in graphs if each.exists()), None)
        found = "none" if foreign is None else f"{foreign} without a record, which another program made"
        command = command_for(folder, backend) + ("" if foreign is None else " --output_dir …, another folder")
        raise UserError(
            f"--backend {backend}: expected {graphs[0]}, which an export makes, got {found}; make it by: {command}"
        )
    record = ExportRecord.read(graph)
    assert record is not None
    _require_fresh(Path(folder), backend, graph, record)
    return OnnxModel(graph, config, _read_head(head_path(graph)))


def _require_fresh(folder: Path, backend: str, graph: Path, record: ExportRecord) -> None:
    here, _ = made_of(folder, record.weights)
    expected = {name: record.made_of.get(name) for name in here} if ENCODER not in here else record.made_of
    if here != expected:
        changed = sorted(name for name in {*here, *expected} if here.get(name) != expected.get(name))
        raise UserError(
            f"--backend {backend}: expected {graph} to be of the model in {folder}, got a graph of another one, which "
            f"differs in {', '.join(changed)}; export again by: {command_for(str(folder), backend)} --overwrite"
        )
    source = folder / record.source
    if ENCODER in here or not source.is_dir():
        return
    there, _ = made_of(source, record.weights)
    if there.keys() == record.made_of.keys() and there != record.made_of:
        logger.warning("{}: {} has another model now than the one that was exported", graph, source)


def _read_head(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # numpy raises many kinds
        raise UserError(f"{path}: expected the weights beside a graph, got {reason(error)}; export again") from error
