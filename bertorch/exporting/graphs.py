"""From a model to ONNX graphs: in fp32 by PyTorch's exporter, in int8 by ONNX Runtime's dynamic quantisation."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.onnx_files import GraphKind, head_path
from bertorch.encoder.onnx_model import EXTRA, KEY, GraphInfo
from bertorch.encoder.padded import PaddedModel, eager_attention
from bertorch.encoder.trials import eval_mode, trial_batch
from bertorch.errors import UserError
from bertorch.files import reason
from bertorch.tasks.base import Task

OPSET = 18  # what the exporter writes without converting; ONNX Runtime has it since 1.14
_LONGEST_BATCH = 2**20  # a bound, which the exporter wants
_LARGEST_FILE = 2**31 - 2**24  # bytes; protobuf has no larger ones, so that weights beyond are in a file of their own


def require_packages() -> None:
    """Raise a `UserError` where a package that exports is not installed."""
    try:
        import onnx  # noqa: F401, PLC0415 - an extra
        import onnxruntime  # noqa: F401, PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(f"an export to ONNX needs {error.name}; install it by: {EXTRA}") from error


def padded_model(task: Task[Any]) -> PaddedModel:
    """The model of a task as it is exported; a `UserError` that names the head of one that has no such form."""
    try:
        return task.model.padded()
    except NotImplementedError as error:
        raise UserError(
            f"expected a model that can be exported, got one of the task {task.name!r} with the head {task.head!r}, "
            "whose graph is not known here"
        ) from error


def write_graph(model: EncoderModel, padded: PaddedModel, path: Path) -> None:
    """Write a model's graph with dynamic batch and length, its metadata for us, and the weights beside it.

    Raises:
        UserError: the exporter does not get through it.
    """
    encoders = [encoder.model for encoder in model.encoders]
    info = GraphInfo(
        num_token_types=padded.model_inputs.num_token_types,
        padding_id=padded.model_inputs.padding_id,
        max_length=padded.model_inputs.max_length,
        output=padded.output_names[-1],
    )
    arguments = padded.arguments(trial_batch(model.config))  # two sentences of different lengths
    longest = info.max_length or _LONGEST_BATCH
    shape = {0: torch.export.Dim("batch_size", max=_LONGEST_BATCH), 1: torch.export.Dim("sequence_length", max=longest)}
    try:
        with eval_mode(padded), eager_attention(encoders), _quiet():
            program = torch.onnx.export(
                padded,
                arguments,
                dynamo=True,
                input_names=list(padded.input_names),
                output_names=list(padded.output_names),
                dynamic_shapes=((shape,) * len(arguments),),
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props[KEY] = info.to_json()
        bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in padded.state_dict().values())
        _save(program, path, apart=bytes_ > _LARGEST_FILE)
    except (UserError, OSError):  # such as a full disk
        raise
    except Exception as error:  # the exporter raises many kinds
        raise UserError(
            f"expected a model that torch.onnx.export takes, got {type(encoders[0]).__name__}: {reason(error)}"
        ) from error
    _write_head(model, path)


def _save(program: Any, path: Path, *, apart: bool) -> None:
    import onnx  # noqa: PLC0415 - an extra

    if not apart:
        program.save(str(path), external_data=False)
        return
    program.save(str(path), external_data=True)
    # Under the name that other programs look for.
    model = onnx.load(str(path))
    for file in path.parent.glob(f"{path.name}.*"):
        file.unlink()
    path.unlink()
    onnx.save_model(
        model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}_data"
    )


def _write_head(model: EncoderModel, graph: Path) -> None:
    import numpy as np  # noqa: PLC0415

    if beside := model.beside_graph():
        arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in beside.items()}
        np.savez(head_path(graph), **arrays)


def quantised(full: Path, kind: GraphKind, path: Path) -> None:
    """Write a graph with the weights of its matrix products in int8, a scale for each column, from one in fp32.

    The activations are quantised as they come, with a scale of each product. Embeddings, normalisation, the softmax,
    and the products of activations stay in fp32, and so do layers over one vector a sentence, such as a classifier.

    References:
        https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    import onnx  # noqa: PLC0415 - an extra
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    # Those over one vector a sentence are Gemm, which the quantisation replaces by a product of this name first.
    heads = [
        f"{node.name}_MatMul"
        for node in onnx.load(str(full), load_external_data=False).graph.node
        if node.op_type == "Gemm"
    ]
    with _quiet():
        quantize_dynamic(
            full,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=heads,
            per_channel=True,
            reduce_range=kind.reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    model = onnx.load(str(path), load_external_data=False)
    if not any(node.op_type == "MatMulInteger" for node in model.graph.node):
        raise UserError("expected matrix products to quantise, found none in the graph; export it as onnx")
    if not any(entry.key == KEY for entry in model.metadata_props):
        raise AssertionError("quantisation lost the metadata of the graph")
    if head_path(full).exists():
        head_path(path).write_bytes(head_path(full).read_bytes())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice to its developers; what it logs as an error is still logged."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
