"""Graphs in folders: which one a backend takes, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig

from bertorch.encoder import onnx_files
from bertorch.encoder.graph_sources import made_of
from bertorch.encoder.onnx_files import (
    ARM,
    FULL,
    INT8,
    ONNX,
    SAFE,
    VNNI,
    ExportRecord,
    head_path,
    kinds_of,
    open_graph,
    record_path,
)
from bertorch.errors import UserError
from tests.exports import by_hand

TABLE = np.ones((8, 2))


@pytest.fixture
def folder(tmp_path):
    """A folder with weights and graphs of them."""
    (tmp_path / "onnx").mkdir()
    write_weights(tmp_path, 1.0)
    for kind in (FULL, SAFE, VNNI):
        ExportRecord(".", *made_of(tmp_path, {})).write(by_hand(tmp_path / "onnx" / kind.file, TABLE))
    return tmp_path


def write_weights(folder, value: float) -> None:
    save_file({"weight": torch.full((3,), value)}, folder / "model.safetensors")


def opened(folder, backend=ONNX):
    return open_graph(str(folder), backend, BertConfig())


def test_torch_needs_no_graph(tmp_path):
    assert opened(tmp_path, "torch") is None


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx2 avx512_vnni", [VNNI, SAFE]),
        ("x86_64", "fpu avx2 avx_vnni", [VNNI, SAFE]),
        ("x86_64", "fpu avx2", [SAFE]),
        ("aarch64", "", [ARM]),
    ],
)
def test_the_form_of_int8_that_suits_the_processor(machine, flags, expected, folder, monkeypatch):
    cpuinfo = folder / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(onnx_files, "Path", lambda name: cpuinfo if name == "/proc/cpuinfo" else type(folder)(name))
    monkeypatch.setattr(onnx_files.platform, "machine", lambda: machine)
    assert kinds_of(INT8) == expected
    assert kinds_of(ONNX) == [FULL]
    if machine == "x86_64":
        assert opened(folder, INT8).path == str(folder / "onnx" / expected[0].file)


def test_without_a_graph_the_error_names_the_command(tmp_path):
    with pytest.raises(UserError, match="got none; make it by: python -m bertorch.export --model_dir .* --format onnx"):
        opened(tmp_path)


def test_a_graph_without_its_record_is_not_taken(folder):
    record_path(folder / "onnx" / FULL.file).unlink()
    with pytest.raises(
        UserError, match="an export makes, got .*model.onnx without a record, which another program made"
    ):
        opened(folder)


def test_a_graph_of_other_weights_is_refused(folder):
    assert opened(folder).size == 2
    write_weights(folder, 2.0)
    with pytest.raises(UserError, match="which differs in weights; export again by: python .* --format onnx --over"):
        opened(folder)


@pytest.mark.parametrize("module", ["0_Transformer", "2_Dense"])
def test_weights_in_the_folder_of_a_module_count(folder, module):
    """Where sentence-transformers may have the encoder, and has dense layers; an export has copies of the latter."""
    (folder / "model.safetensors").unlink()
    (folder / module).mkdir()
    write_weights(folder / module, 1.0)
    with pytest.raises(UserError, match=f"which differs in {module}/weights"):
        opened(folder)
    graph = folder / "onnx" / FULL.file
    ExportRecord(".", *made_of(folder, {})).write(graph)
    opened(folder)
    write_weights(folder / module, 2.0)
    with pytest.raises(UserError, match=f"which differs in {module}/weights"):
        opened(folder)


def test_what_is_fitted_or_named_leaves_the_graph_as_it_is(folder):
    config = {
        "hidden_size": 4,
        "id2label": {"0": "a"},
        "bertorch": {"pooling_mode": "mean", "temperature": {"value": 2}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    ExportRecord(".", *made_of(folder, {})).write(folder / "onnx" / FULL.file)
    config |= {"id2label": {"0": "b"}, "bertorch": {"pooling_mode": "mean", "thresholds": {"values": [0.5]}}}
    (folder / "config.json").write_text(json.dumps(config))
    opened(folder)
    config["bertorch"] = {"pooling_mode": "cls"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="which differs in config.json"):
        opened(folder)


def test_a_graph_in_another_folder_warns_of_a_source_that_has_changed(folder, tmp_path, log_lines):
    other = tmp_path / "other"
    (folder / "onnx").rename(tmp_path / "moved")
    other.mkdir()
    (tmp_path / "moved").rename(other / "onnx")
    ExportRecord("..", *made_of(folder, {})).write(other / "onnx" / FULL.file)
    assert opened(other) is not None
    assert not any("has another model now" in line for line in log_lines)
    write_weights(folder, 2.0)
    opened(other)
    assert any("has another model now than the one that was exported" in line for line in log_lines)
    (folder / "model.safetensors").unlink()  # it need not be there
    opened(other)


def test_the_weights_beside_a_graph(folder):
    np.savez(head_path(folder / "onnx" / FULL.file), **{"crf.transitions": np.eye(2, dtype=np.float32)})
    beside = opened(folder).beside
    assert {name: tensor.tolist() for name, tensor in beside.items()} == {"crf.transitions": [[1, 0], [0, 1]]}
    head_path(folder / "onnx" / FULL.file).write_bytes(b"damaged")
    with pytest.raises(UserError, match="model.head.npz: expected the weights beside a graph, got .*; export again"):
        opened(folder)


def test_a_damaged_record(folder):
    record_path(folder / "onnx" / FULL.file).write_text(json.dumps({"source": "here"}))
    with pytest.raises(UserError, match="model.onnx.json: expected the record of an export, got KeyError"):
        opened(folder)


def test_an_unknown_backend(tmp_path):
    with pytest.raises(UserError, match="backend: expected one of torch, onnx, onnx-int8, got 'tensorrt'"):
        opened(tmp_path, "tensorrt")
