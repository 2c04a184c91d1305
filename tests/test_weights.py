import os
import pickle
import re
import struct
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

from bertorch import weights
from bertorch.data.dataset import Dataset
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.errors import UserError
from bertorch.tasks.classification import ClassificationTask
from bertorch.training.saving import publish
from tests.architectures import small_classifier, small_encoder
from tests.conftest import ROOT, TINY
from tests.data.hostile_files import attempt
from tests.small_tasks import tiny_classification_task

TEXTS = ["很好吃", "房间又小又吵，再也不来了。", "值得推荐！"]


def save_task(folder: Path, task: ClassificationTask) -> None:
    publish(str(folder), task.model.weights.state_dict(), task.savables)


@pytest.fixture(scope="module")
def task():
    return tiny_classification_task(["negative", "neutral", "positive"])


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
    assert {weights.WEIGHTS, "config.json", "tokenizer_config.json"} <= names
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
        publish(str(tmp_path), {"a": torch.ones(3)}, [Folders(content)])
        assert (tmp_path / "modules.json").read_text() == content
        assert (tmp_path / "1_Pooling" / "config.json").read_text() == content
    assert {path.name for path in tmp_path.iterdir()} == {"modules.json", "1_Pooling", weights.WEIGHTS}


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


def test_a_tokenizer_that_finds_no_room_is_told_as_such(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            raise Exception("No space left on device (os error 28)")  # noqa: TRY002 - as tokenizers does

    with pytest.raises(UserError, match="--saved_dir .*: expected a folder with room .*, got: No space left on device"):
        publish(str(tmp_path), {"a": torch.ones(3)}, [Tokenizer()])


@pytest.mark.slow
def test_a_process_killed_in_mid_save_leaves_the_earlier_one(task, tmp_path):
    """Killed for real, after the new weights are written and before they take their place."""
    save_task(tmp_path, task)
    before = (tmp_path / weights.WEIGHTS).read_bytes()
    program = (
        "import os, signal, sys, torch; from bertorch.training import saving;"
        "saving.to_disk = lambda path: os.kill(os.getpid(), signal.SIGKILL);"
        "saving.publish(sys.argv[1], {'a': torch.ones(3)}, [])"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert (tmp_path / weights.WEIGHTS).read_bytes() == before


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
    state = source_weights()
    target = tmp_path / {"bin": "weights.bin", "safetensors": "weights.safetensors"}.get(form, "pytorch_model.bin")
    if "safetensors" in form:
        target = tmp_path / "model.safetensors" if "folder" in form else target
        save_file(state, target)
    else:
        torch.save({name: tensor.half() for name, tensor in state.items()} if form == "fp16" else state, target)
    model = fresh_classifier()
    weights.warm_start(model, str(tmp_path if "folder" in form else target), "bert")
    if form == "fp16":
        assert model.classifier.weight.dtype == torch.float32
        assert torch.equal(model.classifier.weight, state["classifier.weight"].half().float())
    else:
        assert_loaded(model)


def renamed(rule) -> dict[str, torch.Tensor]:
    return {rule(name): tensor for name, tensor in source_weights().items()}


@pytest.mark.parametrize(
    "state",
    [
        renamed(lambda name: name.replace("bert.", "encoder.", 1)),
        renamed(lambda name: f"module.{name}"),
        renamed(lambda name: name.replace("bert.", "module.encoder.", 1)),
        renamed(lambda name: re.sub("LayerNorm.weight$", "LayerNorm.gamma", re.sub("Norm.bias$", "Norm.beta", name))),
        {name.removeprefix("bert."): tensor for name, tensor in source_weights().items()},
    ],
    ids=["earlier bertorch: encoder.* and classifier.*", "several GPUs", "both", "gamma and beta", "bare encoder"],
)  # fmt: skip
def test_warm_start_knows_other_names(state, tmp_path, log_lines):
    torch.save(state, tmp_path / "weights.bin")
    model = fresh_classifier()
    weights.warm_start(model, str(tmp_path / "weights.bin"), "bert")
    assert_loaded(model)
    assert not any("missing" in line or "unexpected" in line for line in log_lines)


def test_the_earlier_bertorch_called_every_encoder_bert(tmp_path, log_lines):
    expected = small_encoder("roberta").state_dict()
    torch.save({f"bert.{name}": tensor for name, tensor in expected.items()}, tmp_path / "weights.bin")
    model = nn.ModuleDict({"roberta": small_encoder("roberta").apply(zero), "classifier": nn.Linear(2, 2)})
    weights.warm_start(model, str(tmp_path / "weights.bin"), "roberta")
    assert all(torch.equal(model.state_dict()[f"roberta.{name}"], tensor) for name, tensor in expected.items())
    assert any(line.endswith("missing: classifier.bias, classifier.weight") for line in log_lines)


def zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def test_a_bare_encoder_leaves_the_head_and_says_so(tmp_path, log_lines):
    state = small_encoder("bert").state_dict()
    torch.save(state | {"cls.predictions.bias": torch.zeros(3)}, tmp_path / "weights.bin")
    model = fresh_classifier()
    weights.warm_start(model, str(tmp_path / "weights.bin"), "bert")
    assert any(line.endswith("missing: classifier.bias, classifier.weight") for line in log_lines)
    assert any(line.endswith("unexpected: cls.predictions.bias") for line in log_lines)
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[f"bert.{name}"], tensor)


def test_a_head_of_another_size_is_an_error(tmp_path):
    state = source_weights() | {"classifier.weight": torch.zeros(5, 32), "classifier.bias": torch.zeros(5)}
    torch.save(state, tmp_path / "weights.bin")
    model = fresh_classifier()
    with pytest.raises(UserError) as error:
        weights.warm_start(model, str(tmp_path / "weights.bin"), "bert")
    assert "classifier.weight: expected (3, 32), got (5, 32)" in str(error.value)
    assert "classifier.bias: expected (3,), got (5,)" in str(error.value)
    assert "as many outputs as there are labels" in str(error.value)
    assert all((parameter == -7).all() for parameter in model.parameters())


def test_the_error_of_a_head_names_what_leaves_it_out(tmp_path):
    torch.save(source_weights() | {"classifier.bias": torch.zeros(5)}, tmp_path / "weights.bin")
    with pytest.raises(UserError, match="--new_head leaves it out and trains a new one"):
        weights.warm_start(fresh_classifier(), str(tmp_path / "weights.bin"), "bert")
    torch.save({name: tensor[..., :1] for name, tensor in source_weights().items()}, tmp_path / "weights.bin")
    with pytest.raises(UserError) as error:
        weights.warm_start(fresh_classifier(), str(tmp_path / "weights.bin"), "bert")
    assert "--new_head" not in str(error.value)


@pytest.mark.parametrize("labels", [3, 5])
def test_a_dropped_head_starts_anew_whatever_its_size(labels, tmp_path, log_lines):
    head = {"classifier.weight": torch.ones(labels, 32), "classifier.bias": torch.ones(labels)}
    torch.save(source_weights() | head, tmp_path / "weights.bin")
    model = fresh_classifier()
    source = str(tmp_path / "weights.bin")
    weights.warm_start(model, source, "bert", is_dropped=lambda name: not name.startswith("bert."))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.full_like(tensor, -7) if name in head else source_weights()[name]), name
    assert any(line.endswith("missing: classifier.bias, classifier.weight") for line in log_lines)


class Malicious:
    """Writes a file where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("form", ["pickle", "archive", "legacy", "as safetensors"])
def test_a_pickle_runs_no_code(form, tmp_path):
    path = tmp_path / ("model.safetensors" if form == "as safetensors" else "weights.bin")
    malicious = {"a": torch.zeros(2), "b": Malicious(tmp_path / "ran")}
    if form in ("archive", "legacy"):
        torch.save(malicious, path, _use_new_zipfile_serialization=form == "archive")
    else:
        path.write_bytes(pickle.dumps(malicious["b"], protocol=2))
    with pytest.raises(UserError, match=f"{path}: expected weights saved by torch.save or safetensors, got: ") as error:
        weights.load_weights(str(path))
    assert len(str(error.value).splitlines()) == 1
    assert "weights_only" not in str(error.value)  # torch's advice, which would run it
    assert not (tmp_path / "ran").exists()


SMALL = {"a": torch.arange(24.0).view(4, 6), "b": torch.arange(5)}


def write_small(path: Path, form: str) -> bytes:
    if form == "safetensors":
        save_file(SMALL, path)
    else:
        torch.save(SMALL, path, _use_new_zipfile_serialization=form == "archive")
    return path.read_bytes()


def loaded_or_error(path: Path) -> dict[str, torch.Tensor] | str:
    """Any error but a UserError passes; that has one line."""
    result = attempt(weights.load_weights, str(path))
    assert isinstance(result, dict) or (result.startswith(f"{path}: expected ") and "\n" not in result)
    return result


@pytest.mark.filterwarnings("ignore")  # of what torch reads in damaged pickles
@pytest.mark.parametrize("form", ["archive", "legacy", "safetensors"])
def test_a_file_that_is_cut_off_is_an_error(form, tmp_path):
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.bin")
    content = write_small(path, form)
    for length in {*range(0, len(content), 7), len(content) - 1}:
        path.write_bytes(content[:length])
        assert isinstance(loaded_or_error(path), str), length


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["archive", "legacy", "safetensors"])
def test_a_changed_bit_is_an_error_wherever_the_format_can_tell(form, tmp_path):
    """An archive has checksums; the older format and safetensors have none, so that a changed number is one."""
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.bin")
    content = write_small(path, form)
    for bit in range(0, 8 * len(content), 31):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        result = loaded_or_error(path)
        if form == "archive" and not isinstance(result, str):
            assert result.keys() == SMALL.keys()
            assert all(torch.equal(result[name], SMALL[name]) for name in SMALL)


def test_a_header_of_an_impossible_size(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "header too large" in loaded_or_error(path)
    header = b'{"a": {"dtype": "F32", "shape": [1099511627776, 1073741824], "data_offsets": [0, 4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert isinstance(loaded_or_error(path), str)


@pytest.mark.filterwarnings("ignore")  # of tensors that torch gives up or has not finished
@pytest.mark.parametrize(
    ("make_state", "flaw"),
    [
        (lambda: {"a": torch.eye(2).to_sparse()}, "expected dense real tensors with their values, got a: torch.sparse"),
        (lambda: {"a": torch.eye(2).to_sparse_csr()}, "expected dense real tensors with their values, got a: "),
        (lambda: {"a": torch.empty(2, device="meta")}, "expected dense real tensors .* on meta; "),
        (lambda: {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "expected dense .* torch.qint8"),
        (lambda: {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "expected dense real tensors"),
        (lambda: {"a": torch.ones(2, dtype=torch.complex64)}, "expected dense real tensors .* torch.complex64"),
        (lambda: {"model": SMALL, "step": 3}, "expected a mapping from names to tensors, got 'model': dict in it"),
        (lambda: SMALL | {"step": 3}, "expected a mapping from names to tensors, got 'step': int in it"),
        (lambda: {1: torch.ones(2)}, "expected a mapping from names to tensors, got 1: Tensor in it"),
        (lambda: torch.ones(2), "expected a mapping from names to tensors, got Tensor"),
        (lambda: None, "expected a mapping from names to tensors, got NoneType"),
        (lambda: nn.Linear(2, 2), "asks for more than tensors .torch.nn.modules.linear.Linear.;"),
    ],
)
def test_only_named_plain_tensors_are_weights(make_state, flaw, tmp_path):
    torch.save(make_state(), tmp_path / "weights.bin")
    with pytest.raises(UserError, match=f"weights.bin: .*{flaw}"):
        weights.load_weights(str(tmp_path / "weights.bin"))


@pytest.mark.parametrize("name", ["weights.bin", "model.safetensors"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    for source in (tmp_path / name, tmp_path) if name == "model.safetensors" else (tmp_path / name,):
        with pytest.raises(UserError, match=f"{name}: expected a .bin or .safetensors file, .*, got a pipe; "):
            weights.load_weights(str(source))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(
        UserError, match="expected a .bin or .safetensors file, or a folder with one, got: No such file"
    ):
        weights.load_weights(str(tmp_path / "nowhere.bin"))
    with pytest.raises(UserError, match="expected model.safetensors or pytorch_model.bin in this folder, got neither"):
        weights.load_weights(str(tmp_path))
    for name in ("weights.bin", "weights.safetensors"):
        for content in (b"hello", b"", "你好\n".encode() * 100):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match=f"{name}: expected weights saved by"):
                weights.load_weights(str(tmp_path / name))
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    with pytest.raises(UserError, match="list.bin: expected a mapping from names to tensors, got list"):
        weights.load_weights(str(tmp_path / "list.bin"))
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.bin")
    with pytest.raises(UserError, match="got none of this model, but other"):
        weights.warm_start(fresh_classifier(), str(tmp_path / "other.bin"), "bert")


def test_the_embedded_checkpoint_loads_into_a_classifier(log_lines):
    model = SequenceClassifier.from_pretrained(str(TINY), ["a", "b"]).model
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.zero_()
    weights.warm_start(model, str(TINY), "bert")
    expected = AutoModel.from_pretrained(TINY, dtype=torch.float32).embeddings.word_embeddings.weight
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, expected)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    model = small_classifier("bert")
    tensors = model.state_dict()
    name = "bert.embeddings.word_embeddings.weight"
    torch.save(tensors | {"embeddings.word_embeddings.weight": tensors[name]}, tmp_path / "two.bin")
    with pytest.raises(UserError, match=f"expected one tensor for {name}, got two: {name}, embeddings.word_embeddings"):
        weights.warm_start(model, str(tmp_path / "two.bin"), "bert")


def test_integers_in_the_place_of_weights_are_refused(tmp_path):
    model = small_classifier("bert")
    name = "bert.encoder.layer.0.output.dense.weight"
    torch.save(model.state_dict() | {name: torch.zeros(32, 64, dtype=torch.int8)}, tmp_path / "int8.bin")
    with pytest.raises(UserError, match=f"int8.bin: expected real numbers for {name}, got torch.int8, as of a"):
        weights.warm_start(model, str(tmp_path / "int8.bin"), "bert")
