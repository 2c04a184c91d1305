"""Graphs in folders: which one a backend takes, and what it refuses."""

import json

import numpy as np
import pytest
from transformers import BertConfig

from bertorch.encoder import onnx_files
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
    weights_digests,
)
from bertorch.errors import UserError
from tests.exports import by_hand

TABLE = np.ones((8, 2))


@pytest.fixture
def folder(tmp_path):
    """A folder with weights and graphs of them."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for kind in (FULL, SAFE, VNNI):
        graph = by_hand(tmp_path / "onnx" / kind.file, TABLE)
        made_of, digests = weights_digests(str(tmp_path), record_path(graph))
        ExportRecord(str(tmp_path), made_of, digests).write(graph)
    return tmp_path


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
    with pytest.raises(UserError, match="expected .*model.onnx, which an export makes, got none"):
        opened(folder)


def test_a_graph_of_other_weights_is_refused(folder):
    assert opened(folder).size == 2
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="got a graph of others; export again by: python .* --format onnx --overwrite"):
        opened(folder)


def test_weights_in_the_folder_of_a_module_count(folder):
    """Where sentence-transformers may have the encoder; copies of dense layers alone are no encoder."""
    (folder / "model.safetensors").unlink()
    for module in ("2_Dense", "0_Transformer"):
        opened(folder)
        (folder / module).mkdir()
        (folder / module / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="got a graph of others"):
        opened(folder)


def test_a_config_that_changes_leaves_the_graph_as_it_is(folder):
    """Thresholds and temperatures are there."""
    (folder / "config.json").write_text("{}")
    opened(folder)


def test_a_graph_in_another_folder_warns_of_a_source_that_has_changed(folder, tmp_path, log_lines):
    other = tmp_path / "other"
    (folder / "onnx").rename(tmp_path / "moved")
    other.mkdir()
    (tmp_path / "moved").rename(other / "onnx")
    assert opened(other) is not None
    assert not any("has other weights now" in line for line in log_lines)
    (folder / "model.safetensors").write_bytes(b"others")
    opened(other)
    assert any("has other weights now than those that were exported" in line for line in log_lines)
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
