"""Where exported graphs are in a folder, and what is recorded of each, so that one of other weights is noticed.

    folder/
        config.json, tokenizer.json, …      as without an export
        onnx/model.onnx                     a graph, and maybe model.onnx_data, its weights beyond 2 GB
        onnx/model.onnx.json                what it was made of, and how it was checked
        onnx/model.head.npz                 the weights that are beside the graph, such as the transitions of a CRF

These are the names that sentence-transformers, transformers' loaders and text-embeddings-inference look for.
"""

import platform
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from transformers import PretrainedConfig

from bertorch.config import BACKENDS
from bertorch.data.model_digests import DIGESTS, ModelDigests
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.errors import UserError
from bertorch.files import read_record, reason, to_json

FOLDER = "onnx"
ONNX, INT8 = BACKENDS[1:]
_VNNI = ("avx512_vnni", "avx_vnni")  # flags of processors that multiply int8 without intermediate results of 16 bits
_WEIGHTS = (".bin", ".safetensors")
# Of sentence-transformers; copies of them stand beside a graph without an encoder.
WEIGHTS_OF_DENSE = re.compile(r"\d+_Dense/(model\.safetensors|pytorch_model\.bin)")


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
    """What is recorded of a graph."""

    source: str  # the folder that it was exported from
    made_of: Mapping[str, str]  # digests of the weights there
    digests: Mapping[str, Any] = field(default_factory=dict)  # see `ModelDigests.weights`
    check: Mapping[str, Any] = field(default_factory=dict)  # what the comparison with the model gave

    @classmethod
    def read(cls, graph: Path) -> "ExportRecord | None":
        """The record beside a graph, None if there is none; a `UserError` if it is damaged."""
        return read_record(
            record_path(graph),
            lambda read: cls(str(read["source"]), dict(read["made_of"]), dict(read[DIGESTS]), dict(read["check"])),
            expected="the record of an export",
            remedy="export again, with --overwrite",
        )

    def write(self, graph: Path) -> None:
        """Write the record beside a graph."""
        content = {"source": self.source, "made_of": self.made_of, DIGESTS: self.digests, "check": self.check}
        record_path(graph).write_text(to_json(content, indent=1) + "\n", encoding="utf-8")


def weights_digests(folder: str, record: Path) -> tuple[dict[str, str], dict[str, list[Any]]]:
    """Digests of the weights in a folder, none without any, and what spares to read them again; see `ModelDigests`."""
    digests = ModelDigests(record)
    found = digests.of_model(folder)
    return {file: digest for file, digest in found.items() if file.endswith(_WEIGHTS)}, digests.weights


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
        raise UserError(
            f"--backend {backend}: expected {graphs[0]}, which an export makes, got none; make it by: "
            f"{command_for(folder, backend)}"
        )
    record = ExportRecord.read(graph)
    assert record is not None
    _require_fresh(folder, backend, graph, record)
    return OnnxModel(graph, config, _read_head(head_path(graph)))


def _require_fresh(folder: str, backend: str, graph: Path, record: ExportRecord) -> None:
    here = weights_digests(folder, record_path(graph))[0]
    encoder = [name for name in here if WEIGHTS_OF_DENSE.fullmatch(name) is None]
    if encoder and here != record.made_of:
        raise UserError(
            f"--backend {backend}: expected {graph} to be of the weights in {folder}, got a graph of others; export "
            f"again by: {command_for(folder, backend)} --overwrite"
        )
    if encoder or not Path(record.source).is_dir():
        return
    there = weights_digests(record.source, record_path(graph))[0]
    if there and there != record.made_of:
        logger.warning("{}: {} has other weights now than those that were exported", graph, record.source)


def _read_head(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # numpy raises many kinds
        raise UserError(f"{path}: expected the weights beside a graph, got {reason(error)}; export again") from error
