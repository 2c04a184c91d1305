import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import (
    AlbertTokenizer,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BigBirdTokenizer,
    RemBertTokenizer,
    pipeline,
)

from bertorch.data.batch import PackedBatch
from bertorch.data.tokens import token_pieces, tokenize, tokenize_windows
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.pretrained import load_config, load_pretrained, load_tokenizer
from bertorch.errors import UserError
from tests.architectures import tiny_config
from tests.conftest import TINY


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder / "tokenizer.json"


@pytest.fixture
def folder(tmp_path, tokenizer_file):
    """The embedded model, with a tokenizer.json beside its vocab.txt."""
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    shutil.copy(tokenizer_file, tmp_path)
    return tmp_path


def load_model(name: str):
    return load_pretrained(AutoModel, name)


def told(load, folder: Path) -> str:
    """The error, which is short and names the folder or a file in it."""
    with pytest.raises(UserError) as error:
        load(str(folder))
    message = str(error.value)
    assert str(folder) in message
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    return message


def config_of(folder: Path, **changes: object) -> str:
    return json.dumps(json.loads((folder / "config.json").read_text()) | changes)


def test_the_folder_is_whole_before_it_is_damaged(folder):
    assert len(load_tokenizer(str(folder))) == load_config(str(folder)).vocab_size == 8192
    assert load_model(str(folder)).config.model_type == "bert"


CONFIGS = {
    "empty": "",
    "cut off": '{"model_type": "be',
    "a list": "[]",
    "a number": "1",
    "a string": '"x"',
    "null": "null",
    "another encoding": b"\xff\xfe" + '{"model_type": "bert"}'.encode("utf-16-le"),
    "nested deeply": "[" * 100_000,
    "a long number": '{"model_type": "bert", "hidden_size": ' + "1" * 5000 + "}",
}
CHANGES = {
    "unknown type": {"model_type": "nope"},
    "type of another type": {"model_type": ["bert"]},
    "size of another type": {"hidden_size": "x"},
    "no vocabulary size": {"vocab_size": None},
    "labels of another type": {"id2label": [1, 2]},
}


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
@pytest.mark.parametrize("damage", [*CONFIGS, *CHANGES])
def test_a_damaged_config(load, damage, folder):
    content = CONFIGS[damage] if damage in CONFIGS else config_of(folder, **CHANGES[damage])
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "--pretrained_model_name_or_path" in told(load, folder)


@pytest.mark.parametrize("changes", [{"hidden_size": 0}, {"num_attention_heads": 0}, {"pad_token_id": 10**9}])
@pytest.mark.filterwarnings("ignore")
def test_a_config_that_no_model_can_be_built_from(changes, folder):
    (folder / "config.json").write_text(config_of(folder, **changes))
    told(load_model, folder)


def test_code_in_the_folder_is_neither_run_nor_asked_for(folder, capsys):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    (folder / "config.json").write_text(
        config_of(folder, model_type="nope", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    )
    for load in (load_config, load_tokenizer, load_model):
        told(load, folder)
    assert not (folder / "ran").exists()
    assert "[y/N]" not in capsys.readouterr().out


TOKENIZERS = {
    "tokenizer.json": ["", '{"version": "1.0", "added', "[]", "1", "{}", "null", b"\xff\xfe", "[" * 100_000],
    "tokenizer_config.json": ["", '{"tokenizer_cl', "[]", "1", "null", b"\xff\xfe", '{"tokenizer_class": 3}'],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file in TOKENIZERS for content in TOKENIZERS[file]])
def test_a_damaged_tokenizer(file, content, folder):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    told(load_tokenizer, folder)


@pytest.mark.parametrize("content", [None, b"", b"\0" * 1000, b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n"])
def test_a_tokenizer_without_its_words(content, folder):
    """transformers makes one of nothing but special tokens, for which each text is [UNK] [UNK] …."""
    (folder / "tokenizer.json").unlink()
    assert len(load_tokenizer(str(folder))) == 8192
    (folder / "vocab.txt").unlink()
    if content is not None:
        (folder / "vocab.txt").write_bytes(content)
    assert "expected a tokenizer of about 8192 tokens, as config.json has it, got one of " in told(
        load_tokenizer, folder
    )


def test_a_tokenizer_that_knows_fewer_words_is_told(folder, log_lines):
    (folder / "tokenizer.json").unlink()
    words = (TINY / "vocab.txt").read_text().splitlines()
    for kept, warned in ((8000, False), (6000, True)):
        (folder / "vocab.txt").write_text("\n".join(words[:kept]) + "\n")
        assert len(load_tokenizer(str(folder))) == kept
        assert any(f"got one of {kept}" in line for line in log_lines) == warned


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("albert", AlbertTokenizer), ("big_bird", BigBirdTokenizer), ("rembert", RemBertTokenizer)],
)
def test_a_pipeline_on_a_saved_folder_tells_the_texts_of_a_pair_apart(architecture, kind, tmp_path):
    """It passes the token types of training, though transformers leaves them out for these tokenizers."""
    words = ["<pad>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]", "▁a", "▁b", *(f"▁c{index}" for index in range(92))]
    words.insert(100, "<unk>")
    tokenizer = kind(vocab=[(word, -float(index)) for index, word in enumerate(words)])
    assert "token_type_ids" not in tokenizer.model_input_names
    torch.manual_seed(0)
    config = tiny_config(architecture, vocab_size=len(words), pad_token_id=0, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)  # so that the token types show in the probabilities
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_tokenizer(str(tmp_path)).save_pretrained(tmp_path)

    store = tokenize(load_tokenizer(str(tmp_path)), [["a b a"], ["b b"]], 16)
    assert sorted(set(store.token_type_ids.tolist())) == [0, 1]
    classify = pipeline("text-classification", model=str(tmp_path), top_k=None)
    got = {row["label"]: row["score"] for row in classify({"text": "a b a", "text_pair": "b b"})}
    batch = PackedBatch.of(store, np.array([0]), labels=torch.zeros(1))
    logits = SequenceClassifier(model).eval()(batch)
    for index, expected in enumerate(logits.softmax(-1)[0].tolist()):
        assert got[model.config.id2label[index]] == pytest.approx(expected, abs=1e-5)


class Malicious:
    """Writes a file where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("form", ["pickle", "archive", "legacy"])
def test_a_pickle_runs_no_code(form, folder):
    (folder / "model.safetensors").unlink()
    malicious = Malicious(folder / "ran")
    if form == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(malicious, protocol=2))
    else:
        weights = {"a": malicious}
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "archive")
    assert "weights_only" not in told(load_model, folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("damage", ["empty", "text", "cut at the start", "cut at the end", "a changed bit", "a list"])
def test_damaged_weights_of_torch(damage, folder):
    weights = load_model(str(folder)).state_dict()
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save([*weights.values()] if damage == "a list" else weights, path)
    content = bytearray(path.read_bytes())
    if damage == "a changed bit":
        content[len(content) // 2] ^= 1
    cut = {"empty": 0, "cut at the start": 1000, "cut at the end": -100}.get(damage, len(content))
    path.write_bytes(b"hello world" if damage == "text" else content[:cut])
    told(load_model, folder)


@pytest.mark.parametrize("content", [b"", b"hello world", struct.pack("<Q", 2**60) + b"{}", None])
def test_damaged_safetensors(content, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    told(load_model, folder)


def test_weights_of_which_none_fits(folder):
    """transformers would draw them all anew."""
    weights = load_model(str(folder)).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save({"model": weights, "step": torch.ones(1)}, folder / "pytorch_model.bin")
    expected = "expected weights such as embeddings.word_embeddings.weight, got not one that fits"
    assert expected in told(load_model, folder)


def test_a_head_of_which_something_fits_is_no_encoder(folder):
    """Such as of the earlier bertorch, which called every encoder `encoder`."""
    model = load_pretrained(AutoModelForSequenceClassification, str(folder))
    weights = {f"encoder.{name}": tensor for name, tensor in model.bert.state_dict().items()}
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"classifier.weight": model.classifier.weight.detach()}, folder / "pytorch_model.bin")
    expected = "got not one that fits the encoder of BertForSequenceClassification; are they inside another object? --i"
    assert expected in told(lambda name: load_pretrained(AutoModelForSequenceClassification, name), folder)


def test_weights_that_are_missing_or_have_no_place_are_told(folder, log_lines):
    weights = load_model(str(folder)).state_dict()
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(("encoder.layer.1.", "pooler."))}
    table = torch.zeros(1023, 64)  # of relative positions, which transformers no longer knows
    others = {
        "encoder.layer.0.attention.self.distance_embedding.weight": table,
        "embeddings.position_ids": torch.arange(512),
        "cls.predictions.bias": torch.zeros(8192),
        "crf.transitions": torch.zeros(3, 3),
    }
    (folder / "model.safetensors").unlink()
    torch.save(kept | others, folder / "pytorch_model.bin")
    del log_lines[:]
    load_model(str(folder))
    lost, heads, unplaced, fresh = log_lines
    assert "16 weights of the encoder are missing and are made anew, such as encoder.layer.1.attention" in lost
    assert "1 weights of the encoder have no place in BertModel as config.json describes it, and are left" in unplaced
    assert "such as encoder.layer.0.attention.self.distance_embedding.weight; it may not be the model that" in unplaced
    assert heads.endswith("of no use here, left out: cls, crf")
    assert "not in the checkpoint, start fresh: encoder.layer.1.attention" in fresh


def test_a_pooler_that_is_not_needed_is_left_out_by_name(folder, log_lines):
    AutoModelForPreTraining.from_pretrained(folder).save_pretrained(folder)
    del log_lines[:]
    load_pretrained(AutoModelForTokenClassification, str(folder))
    assert any(line.endswith("of no use here, left out: cls, pooler") for line in log_lines)


def test_weights_that_are_not_finite_are_named_as_what_they_are(folder):
    """Not as of an architecture that mixes the sentences of a batch."""
    model = load_model(str(folder))
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="expected finite hidden states of BertModel, got NaN or infinity in a trial"):
        Encoder(model)


@pytest.mark.parametrize("cut", ["texts", "windows", "words"])
def test_a_token_without_an_embedding_is_refused_where_a_text_has_it(cut, folder, log_lines):
    (folder / "tokenizer.json").unlink()
    load_tokenizer(str(folder))
    assert not any("have no embedding" in line for line in log_lines)
    with (folder / "vocab.txt").open("a") as file:
        file.write("🀄\n🀅\n")
    tokenizer = load_tokenizer(str(folder))
    assert any("got one of 8194, of which the last have no embedding" in line and "🀄, 🀅" in line for line in log_lines)
    tokenized = {
        "texts": lambda text: tokenize(tokenizer, [["好", text]], 16),
        "windows": lambda text: tokenize_windows(tokenizer, [["好", text]], 16, 2),
        "words": lambda text: token_pieces(tokenizer, [["好"], [*text]]),
    }[cut]
    tokenized("很好")
    with pytest.raises(UserError, match=r"of the 8192 tokens that the model has embeddings for, got one with '🀅', whi"):
        tokenized("好🀅")


def test_a_text_without_a_token_is_refused(folder):
    """Pooling would give it the vector of its neighbour; only a tokenizer without special tokens has such."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    assert tokenize(tokenizer, [["好", "很好"]], 16).lengths.tolist() == [1, 2]
    with pytest.raises(UserError, match=r"expected texts with a token, got one without: \('',\)"):
        tokenize(tokenizer, [["好", "", "很好"]], 16)


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "vocab.txt", "model.safetensors"])
def test_a_pipe_in_the_folder_is_not_waited_for(load, file, folder):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert f"{file}: expected a regular file in the model's folder, got a pipe" in told(load, folder)


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
def test_a_model_is_no_file(load, folder, special):
    for path in (folder / "config.json", special["pipe"], special["device"]):
        assert "got a file or device; name the folder" in told(load, path)
