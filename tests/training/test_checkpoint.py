import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    pipeline,
)

from bertorch.data.batching import Dataset
from bertorch.errors import UserError
from bertorch.models.classifier import SequenceClassifier
from bertorch.training import checkpoint
from bertorch.training.tasks import ClassificationTask
from tests.architectures import small_classifier, small_encoder
from tests.conftest import ROOT, TINY

TEXTS = ["很好吃", "房间又小又吵，再也不来了。", "值得推荐！"]


def save_task(folder: Path, task: ClassificationTask) -> None:
    checkpoint.publish(str(folder), task.model.weights.state_dict(), task.companions)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    model = SequenceClassifier.from_pretrained(str(TINY), ["negative", "neutral", "positive"]).eval()
    return ClassificationTask(model, [model.model.config, AutoTokenizer.from_pretrained(TINY)])


@pytest.fixture(scope="module")
def saved(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_task(folder, task)
    return folder


def our_logits(task: ClassificationTask, text: str) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    batch = Dataset.of_sequences(tokenizer, [[text]], np.zeros(1, dtype=np.int64), max_length=128).batch(np.arange(1))
    with torch.no_grad():
        return task.model(batch)


def test_transformers_loads_the_folder_and_gives_our_logits(task, saved):
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert type(model).__name__ == "BertForSequenceClassification"
    with torch.no_grad():
        for text in TEXTS:
            assert torch.equal(model(**tokenizer(text, return_tensors="pt")).logits, our_logits(task, text))


def test_a_pipeline_gives_our_labels_and_probabilities(task, saved):
    classify = pipeline("text-classification", model=str(saved), top_k=None)
    for text in TEXTS:
        expected = our_logits(task, text).softmax(-1).squeeze(0).tolist()
        got = {result["label"]: result["score"] for result in classify([text])[0]}
        assert got == pytest.approx(dict(zip(["negative", "neutral", "positive"], expected, strict=True)), abs=1e-6)


def test_a_save_leaves_nothing_but_its_files(saved):
    names = {path.name for path in saved.iterdir()}
    assert {checkpoint.WEIGHTS, "config.json", "tokenizer_config.json"} <= names
    assert not any(name.startswith(".") for name in names)


class Folders:
    """A companion with files in folders, as sentence-transformers has them."""

    def __init__(self, content: str) -> None:
        self.content = content

    def save_pretrained(self, folder: Path) -> None:
        (folder / "1_Pooling").mkdir()
        for name in ("modules.json", "1_Pooling/config.json"):
            (folder / name).write_text(self.content)


def test_a_save_replaces_files_in_folders_too(tmp_path):
    for content in ("first", "second"):
        checkpoint.publish(str(tmp_path), {"a": torch.ones(3)}, [Folders(content)])
        assert (tmp_path / "modules.json").read_text() == content
        assert (tmp_path / "1_Pooling" / "config.json").read_text() == content
    assert {path.name for path in tmp_path.iterdir()} == {"modules.json", "1_Pooling", checkpoint.WEIGHTS}


def test_a_failing_save_leaves_the_earlier_one(task, tmp_path, monkeypatch):
    save_task(tmp_path, task)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(_, path):
        Path(path).write_bytes(b"half of the wei")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="--saved_dir .*: expected a folder with room .*, got: No space left on device"):
        save_task(tmp_path, task)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    save_task(tmp_path, task)  # what the failed one left behind is no obstacle
    assert {path.name for path in tmp_path.iterdir()} == set(before)


def test_a_process_killed_in_mid_save_leaves_the_earlier_one(task, tmp_path):
    """Killed for real, after the new weights are written and before they take their place."""
    save_task(tmp_path, task)
    before = (tmp_path / checkpoint.WEIGHTS).read_bytes()
    program = (
        "import os, signal, sys, torch; from bertorch.training import checkpoint;"
        "checkpoint.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL);"
        "checkpoint.publish(sys.argv[1], {'a': torch.ones(3)}, [])"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert (tmp_path / checkpoint.WEIGHTS).read_bytes() == before


# Warm start


def fresh_classifier() -> PreTrainedModel:
    model = small_classifier("bert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-7.0)
    return model


def source_weights() -> dict[str, torch.Tensor]:
    return small_classifier("bert").state_dict()


def assert_loaded(model: nn.Module, *, head: bool = True) -> None:
    expected = source_weights()
    for name, tensor in model.state_dict().items():
        loaded = head or not name.startswith("classifier")
        assert torch.equal(tensor, expected[name] if loaded else torch.full_like(tensor, -7.0)), name


@pytest.mark.parametrize("form", ["bin", "safetensors", "folder with bin", "folder with safetensors", "fp16"])
def test_warm_start_reads_every_form(form, tmp_path):
    weights = source_weights()
    target = tmp_path / {"bin": "weights.bin", "safetensors": "weights.safetensors"}.get(form, "pytorch_model.bin")
    if "safetensors" in form:
        target = tmp_path / "model.safetensors" if "folder" in form else target
        save_file(weights, target)
    else:
        torch.save({name: tensor.half() for name, tensor in weights.items()} if form == "fp16" else weights, target)
    model = fresh_classifier()
    checkpoint.warm_start(model, str(tmp_path if "folder" in form else target), "bert")
    if form == "fp16":
        assert model.classifier.weight.dtype == torch.float32
        assert torch.equal(model.classifier.weight, weights["classifier.weight"].half().float())
    else:
        assert_loaded(model)


def renamed(rule) -> dict[str, torch.Tensor]:
    return {rule(name): tensor for name, tensor in source_weights().items()}


@pytest.mark.parametrize(
    "weights",
    [
        renamed(lambda name: name.replace("bert.", "encoder.", 1)),
        renamed(lambda name: f"module.{name}"),
        renamed(lambda name: name.replace("bert.", "module.encoder.", 1)),
        renamed(lambda name: re.sub("LayerNorm.weight$", "LayerNorm.gamma", re.sub("Norm.bias$", "Norm.beta", name))),
        {name.removeprefix("bert."): tensor for name, tensor in source_weights().items()},
    ],
    ids=["earlier bertorch: encoder.* and classifier.*", "several GPUs", "both", "gamma and beta", "bare encoder"],
)  # fmt: skip
def test_warm_start_knows_other_names(weights, tmp_path, log_lines):
    torch.save(weights, tmp_path / "weights.bin")
    model = fresh_classifier()
    checkpoint.warm_start(model, str(tmp_path / "weights.bin"), "bert")
    assert_loaded(model)
    assert not any("missing" in line or "unexpected" in line for line in log_lines)


def test_the_earlier_bertorch_called_every_encoder_bert(tmp_path, log_lines):
    expected = small_encoder("roberta").state_dict()
    torch.save({f"bert.{name}": tensor for name, tensor in expected.items()}, tmp_path / "weights.bin")
    model = nn.ModuleDict({"roberta": small_encoder("roberta").apply(zero), "classifier": nn.Linear(2, 2)})
    checkpoint.warm_start(model, str(tmp_path / "weights.bin"), "roberta")
    assert all(torch.equal(model.state_dict()[f"roberta.{name}"], tensor) for name, tensor in expected.items())
    assert any(line.endswith("missing: classifier.bias, classifier.weight") for line in log_lines)


def zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def test_a_bare_encoder_leaves_the_head_and_says_so(tmp_path, log_lines):
    weights = small_encoder("bert").state_dict()
    torch.save(weights | {"cls.predictions.bias": torch.zeros(3)}, tmp_path / "weights.bin")
    model = fresh_classifier()
    checkpoint.warm_start(model, str(tmp_path / "weights.bin"), "bert")
    assert any(line.endswith("missing: classifier.bias, classifier.weight") for line in log_lines)
    assert any(line.endswith("unexpected: cls.predictions.bias") for line in log_lines)
    for name, tensor in weights.items():
        assert torch.equal(model.state_dict()[f"bert.{name}"], tensor)


def test_a_head_of_another_size_is_an_error(tmp_path):
    weights = source_weights() | {"classifier.weight": torch.zeros(5, 32), "classifier.bias": torch.zeros(5)}
    torch.save(weights, tmp_path / "weights.bin")
    model = fresh_classifier()
    with pytest.raises(UserError) as error:
        checkpoint.warm_start(model, str(tmp_path / "weights.bin"), "bert")
    assert "classifier.weight: expected (3, 32), got (5, 32)" in str(error.value)
    assert "classifier.bias: expected (3,), got (5,)" in str(error.value)
    assert "as many outputs as there are labels" in str(error.value)
    assert all((parameter == -7).all() for parameter in model.parameters())


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_pickle_runs_no_code(tmp_path, capfd):
    (tmp_path / "weights.bin").write_bytes(pickle.dumps(Malicious(), protocol=2))
    torch.save({"a": Malicious()}, tmp_path / "zipped.bin")
    for name in ("weights.bin", "zipped.bin"):
        with pytest.raises(UserError, match=f"{name}: expected weights saved by torch.save or safetensors, got: "):
            checkpoint.load_weights(str(tmp_path / name))
    assert "code ran" not in capfd.readouterr().out


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="expected a .bin or .safetensors file, or a folder with one, got no such file"):
        checkpoint.load_weights(str(tmp_path / "nowhere.bin"))
    with pytest.raises(UserError, match="expected model.safetensors or pytorch_model.bin in this folder, got neither"):
        checkpoint.load_weights(str(tmp_path))
    for name in ("weights.bin", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"hello")
        with pytest.raises(UserError, match=f"{name}: expected weights saved by"):
            checkpoint.load_weights(str(tmp_path / name))
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    with pytest.raises(UserError, match="list.bin: expected a mapping from names to tensors, got list"):
        checkpoint.load_weights(str(tmp_path / "list.bin"))
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.bin")
    with pytest.raises(UserError, match="got none of this model, but other"):
        checkpoint.warm_start(fresh_classifier(), str(tmp_path / "other.bin"), "bert")


def test_the_embedded_checkpoint_loads_into_a_classifier(log_lines):
    model = SequenceClassifier.from_pretrained(str(TINY), ["a", "b"]).model
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.zero_()
    checkpoint.warm_start(model, str(TINY), "bert")
    expected = AutoModel.from_pretrained(TINY, dtype=torch.float32).embeddings.word_embeddings.weight
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, expected)
