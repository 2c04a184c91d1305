"""From a saved folder to the task as it was trained, and to a model for inference."""

import json
from pathlib import Path
from typing import Any

import torch

from bertorch import distributed
from bertorch.config import BACKENDS, PRECISIONS, InferenceConfig
from bertorch.data.fingerprint import file_digest
from bertorch.encoder.cpu import use_onednn
from bertorch.encoder.encoder import LimitedLength
from bertorch.encoder.onnx_files import files_of, record_path
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.encoder.sentence_transformers import is_of_sentence_transformers
from bertorch.errors import UserError
from bertorch.files import reason
from bertorch.inference.engine import Engine
from bertorch.inference.model import Model
from bertorch.precision import Precision
from bertorch.tasks.base import Task
from bertorch.tasks.ensembles import joined
from bertorch.tasks.metadata import KEY
from bertorch.tasks.registry import TASKS, foreign_task, own_task
from bertorch.training.folds_folder import fold_folders


def load_trained(folder: str | Path, *, max_seq_length: int | None = None, backend: str = BACKENDS[0]) -> Task[Any]:
    """Load a task as it was trained: on the CPU, in evaluation mode, with transformers' own layers.

    Args:
        folder: `--saved_dir` of a run, a checkpoint in it, a plain folder of `AutoModelForSequenceClassification` or
            `AutoModelForTokenClassification`, or one of sentence-transformers. That of a run with `--folds` is all of
            its models, see `bertorch.tasks.ensembles`.
        max_seq_length: tokens of an input; None for as many as in training.
        backend: with another one than `torch`, the graph that `bertorch.export` made stands for the model.

    Raises:
        UserError: no such folder, or one that cannot be read, or that has no such graph.
    """
    name = str(folder)
    if not Path(name).is_dir():
        raise UserError(f"{name}: expected the folder that a run saved, got no folder")
    if folds := fold_folders(name):
        members = [load_trained(fold, max_seq_length=max_seq_length, backend=backend) for fold in folds]
        task = joined(members, folds)
        task.model.eval()
        return task
    owned = is_own(name)
    task = (own_task if owned else foreign_task)(name, max_seq_length, backend)
    for encoder in (module for module in task.model.modules() if isinstance(module, LimitedLength)):
        if not owned and max_seq_length is None and encoder.max_length is not None:  # others may not say how many
            task.max_seq_length = min(task.max_seq_length, encoder.max_length)
        encoder.require_positions(task.max_seq_length)
    task.model.eval()
    return task


def is_own(folder: str) -> bool:
    """Whether bertorch saved a folder.

    Other libraries keep our metadata when they save a model that they loaded from such a folder. So it counts only with
    the architecture of its task, and without the file that sentence-transformers writes beside it.

    Raises:
        UserError: it cannot be looked into.
    """
    path = Path(folder)
    try:
        if not (path / "config.json").exists() or is_of_sentence_transformers(path):
            return False
    except OSError as error:
        raise UserError(f"{folder}: expected a folder that can be read, got: {error.strerror or error}") from error
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        metadata, architecture = config.get(KEY), str(next(iter(config.get("architectures") or [""])))
    except (OSError, ValueError, AttributeError):
        return True  # damaged: loading it says what is wrong
    task, head = (metadata.get(key) if isinstance(metadata, dict) else None for key in ("task", "head"))
    kind = TASKS.get(task) if isinstance(task, str) else None
    ending = "" if kind is None else kind.architecture_of(str(head))
    if not ending:
        others = tuple(each.architecture for each in TASKS.values() if each.architecture)
        return metadata is not None and not architecture.endswith(others)
    return architecture.endswith(ending)


def load(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: str = "auto",
    batch_size: int = 32,
    max_seq_length: int | None = None,
    shared: bool = False,
    backend: str = BACKENDS[0],
) -> Model:
    """Load a folder, see `load_trained`, for inference.

        from bertorch import load

        model = load("checkpoint")
        print(model.predict(["房间干净，早餐也丰富。"])[0].label)

    Args:
        folder: of the model.
        device: such as `cuda:1`; by default a GPU if there is one, else the CPU.
        precision: `fp32`, `bf16` or `fp16`; `auto` is half precision on a GPU, fp32 on the CPU.
        batch_size: inputs of a batch; larger on a GPU.
        max_seq_length: tokens of an input; None for as many as in training.
        shared: whether the processes of a launcher share the inputs; see `Engine`.
        backend: `torch`; or `onnx` or `onnx-int8`, which run on the CPU what `bertorch.export` made.

    Raises:
        UserError: no such folder, device or precision, or a folder that cannot be read.
    """
    if precision not in PRECISIONS or batch_size < 1:
        raise UserError(
            f"load: expected a precision of {', '.join(PRECISIONS)} and a batch_size of at least 1, got "
            f"{precision!r} and {batch_size}"
        )
    is_elsewhere = device is not None and str(device) != "cpu"
    if backend != BACKENDS[0] and (precision not in ("auto", "fp32") or is_elsewhere):
        raise UserError(
            f"load: expected neither a device nor a precision with the backend {backend!r}, which runs on the CPU as "
            f"exported, got {device!r} and {precision!r}"
        )
    precision = precision if backend == BACKENDS[0] else "fp32"
    on = distributed.device() if device is None else _device(device)
    resolved = Precision.resolve(precision, on)
    if precision == "auto" and on.type == "cuda" and resolved.name == "fp32":
        resolved = Precision.resolve("fp16", on)  # a GPU without bf16
    task = load_trained(folder, max_seq_length=max_seq_length, backend=backend)
    task.model.to(on)
    with resolved.autocast():
        for encoder in task.model.encoders:
            use_onednn(encoder, resolved.dtype)
    return Model(task, Engine(on, resolved, batch_size=batch_size, shared=shared))


def graph_contents(model: Model) -> dict[str, str]:
    """The digests of the graphs that stand for a model, by file: what its results depend on too."""
    graphs = [Path(each.path) for each in model.task.model.modules() if isinstance(each, OnnxModel)]
    files = [file for graph in graphs for file in files_of(graph) if file != record_path(graph) and file.exists()]
    return {f"graph {file.name}": file_digest(str(file)) for file in files}


def load_shared(config: InferenceConfig) -> Model:
    """The model of a command, on all processes, which share the inputs; see `load`."""
    return load(
        config.model_dir,
        precision=config.precision,
        batch_size=config.batch_size,
        max_seq_length=config.max_seq_length,
        shared=True,
        backend=config.backend,
    )


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"load: expected a device that this machine has, such as cpu or cuda:0, got {str(name)!r}: {reason(error)}"
        ) from error
