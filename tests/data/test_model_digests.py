"""The content of models, of which large files are read once."""

import json
import os
from pathlib import Path

import pytest

from bertorch.data import model_digests
from bertorch.data.model_digests import ModelDigests

FILES = {
    "config.json": True,
    "vocab.txt": True,
    "tokenizer.json": True,
    "spiece.model": True,
    "model.safetensors": True,
    "1_Pooling/config.json": True,
    "2_Dense/pytorch_model.bin": True,
    "pytorch_model.bin": False,  # beside safetensors transformers does not read it
    "optimizer.safetensors": False,
    "README.md": False,
    "run.json": False,
    "metrics.jsonl": False,
    "checkpoint-3/config.json": False,
}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def recorded(digests: ModelDigests, path: Path) -> Path:
    path.write_text(json.dumps({"digests": digests.weights}))
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_a_model_is_read_from_counts(name, model, tmp_path):
    before = ModelDigests(tmp_path / "none").of_model(str(model))
    assert set(before) == {each for each, counts in FILES.items() if counts}
    (model / name).write_text("changed")
    after = ModelDigests(tmp_path / "none").of_model(str(model))
    assert {file for file in before if before[file] != after[file]} == ({name} if FILES[name] else set())


def test_weights_are_read_again_only_if_size_or_time_has_changed(model, tmp_path, monkeypatch):
    first = ModelDigests(tmp_path / "none")
    before = first.of_model(str(model))
    record = recorded(first, tmp_path / "run.json")
    read, digest = [], model_digests._content_digest
    monkeypatch.setattr(model_digests, "_content_digest", lambda file: read.append(file.name) or digest(file))
    again = ModelDigests(record)
    assert again.of_model(str(model)) == before
    assert again.weights == first.weights
    assert set(read) == {"config.json", "vocab.txt", "tokenizer.json", "spiece.model"}
    weights = model / "model.safetensors"
    status = weights.stat()
    weights.write_text(weights.read_text()[::-1])
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert ModelDigests(record).of_model(str(model))["model.safetensors"] != before["model.safetensors"]


def test_a_model_of_the_hub_has_a_commit(tmp_path, monkeypatch):
    cache = tmp_path / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "snapshots" / "abc123").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc123")
    (cache / "snapshots" / "abc123" / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert ModelDigests(tmp_path / "none").of_model("some/model") == {"commit": "abc123"}
    assert ModelDigests(tmp_path / "none").of_model("another/model") == {}
    assert ModelDigests(tmp_path / "none").of_model("no/such/name") == {}


@pytest.mark.parametrize("as_folder", [False, True])
def test_weights_to_start_from_may_be_gone_when_a_run_goes_on(as_folder, model, tmp_path):
    source = str(model if as_folder else model / "model.safetensors")
    digests = ModelDigests(tmp_path / "none")
    before = digests.of_weights(source)
    record = recorded(digests, tmp_path / "run.json")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").unlink()
    again = ModelDigests(record)
    assert (again.of_weights(source), again.weights) == (before, digests.weights)
    assert ModelDigests(tmp_path / "none").of_weights(source) is None


@pytest.mark.parametrize("text", ["", "[]", "null", '{"digests": 3}', '{"digests": {"a": "b"}}', '{"digests": [1]}'])
def test_a_damaged_record_knows_nothing(text, model, tmp_path):
    (tmp_path / "run.json").write_text(text)
    expected = ModelDigests(tmp_path / "none").of_model(str(model))
    assert ModelDigests(tmp_path / "run.json").of_model(str(model)) == expected
