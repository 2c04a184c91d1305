"""Graphs that PyTorch's exporter writes, run by ONNX Runtime alone, against the packed model."""

import copy
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bertorch.encoder.onnx_files import SAFE, VNNI, head_path
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.errors import UserError
from bertorch.exporting import graphs
from bertorch.exporting.graphs import padded_model, quantised, require_packages, write_graph
from bertorch.tasks.tagging import TaggingTask
from tests.architectures import padded_inputs, random_batch, tagged_batch
from tests.exports import KINDS, small_task

LENGTHS = [5, 1, 70, 512, 33, 2]


def written(task, path):
    write_graph(task.model, padded_model(task), path)
    return path


def by_runtime(path, batch) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {name: tensor.numpy() for name, tensor in padded_inputs(batch, takes_token_types=True).items()}
    return session.run(None, inputs)


def shapes(path):
    graph = onnx.load(path).graph
    return {
        each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim]
        for each in (*graph.input, *graph.output)
    }


@pytest.mark.slow
def test_a_classifier_and_its_int8(tmp_path):
    task = small_task("classification")
    path = written(task, tmp_path / "model.onnx")
    two = ["batch_size", "sequence_length"]
    assert shapes(path) == {
        "input_ids": two, "attention_mask": two, "token_type_ids": two, "logits": ["batch_size", 2],
    }  # fmt: skip
    batch = random_batch(LENGTHS)
    with torch.inference_mode():
        expected = task.model(batch).numpy()
    (logits,) = by_runtime(path, batch)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    for sentence, row in zip(batch.split(1), expected, strict=True):
        (alone,) = by_runtime(path, sentence)
        np.testing.assert_allclose(alone[0], row, atol=1e-5)
    assert not task.model.training
    with torch.inference_mode():
        assert torch.equal(task.model(batch), torch.from_numpy(expected))  # the model is as it was

    for kind in (VNNI, SAFE):
        quantised(path, kind, tmp_path / kind.file)
        (rounded,) = by_runtime(tmp_path / kind.file, batch)
        assert 0 < np.abs(rounded - expected).max() < 0.2
        _check_int8(onnx.load(tmp_path / kind.file).graph, reduce_range=kind.reduce_range)
        OnnxModel(tmp_path / kind.file, task.model.config, {})  # has our metadata


def _check_int8(graph, *, reduce_range: bool) -> None:
    """The six products of a layer with weights, each with signed ones and a scale a column; no others."""
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 6
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    for node in products:
        weight, zero = weights[node.input[1]], weights[node.input[3]]
        assert weight.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert zero.shape == (weight.shape[1],)
        assert np.abs(weight.astype(int)).max() <= (64 if reduce_range else 127)
    assert sum(node.op_type == "MatMul" for node in graph.node) >= 2  # of queries and keys, of weights and values
    assert any(array.dtype == np.float32 and array.ndim == 2 and len(array) > 1000 for array in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("classification", "windows")])
def test_every_kind_of_model(kind, tmp_path):
    task = small_task(kind)
    path = written(task, tmp_path / "model.onnx")
    batch = random_batch(LENGTHS)
    stand_in = OnnxModel(path, task.model.config, {})
    with torch.inference_mode():
        if isinstance(task, TaggingTask):
            batch = tagged_batch(batch)
            hidden, got = task.model.encoder(batch), stand_in(batch)
            expected = task.model.global_pointer(hidden) if kind == "global pointer" else task.model.head_logits(hidden)
        else:
            expected, got = getattr(task, "embedder_model", task.model)(batch), stand_in(batch)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    if kind == "global pointer":
        assert shapes(path)["span_features"] == ["batch_size", "sequence_length", 2 * 8 + 2 * 2]
    elif isinstance(task, TaggingTask):
        assert shapes(path)["logits"] == ["batch_size", "sequence_length", 5]
    elif hasattr(task, "embedder_model"):
        assert list(shapes(path))[-2:] == ["last_hidden_state", "sentence_embedding"]
        assert shapes(path)["sentence_embedding"] == ["batch_size", task.embedding_size]
    beside = {name: array.shape for name, array in np.load(head_path(path)).items()} if head_path(path).exists() else {}
    assert beside == {
        "CRF": {"crf.start_transitions": (5,), "crf.end_transitions": (5,), "crf.transitions": (5, 5)},
        "sentence bert": {"classifier.weight": (2, 4 * 128), "classifier.bias": (2,)},
    }.get(kind, {})


@pytest.mark.slow
def test_weights_beyond_what_a_file_can_have_are_in_one_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "_LARGEST_FILE", 2**20)
    task = small_task("score")
    path = written(task, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]
    batch = random_batch(LENGTHS)
    with torch.inference_mode():
        np.testing.assert_allclose(OnnxModel(path, task.model.config, {})(batch), task.model(batch), atol=1e-5)


def test_a_head_that_has_no_graph_is_named():
    task = copy.copy(small_task("linear tagger"))
    task.head = "another"

    def padded():
        raise NotImplementedError

    task.model.padded = padded
    with pytest.raises(UserError, match="got one of the task 'tagging' with the head 'another', whose graph is"):
        padded_model(task)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}; install it by: pip install 'bertorch\[export\]'"):
        require_packages()
