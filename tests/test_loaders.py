"""What we export, in the programs of others: ONNX Runtime alone, transformers, sentence-transformers, and the server.

sentence-transformers runs graphs by optimum-onnx, which wants an older transformers than ours: `make loaders` makes an
environment of its own for it.
"""

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from scipy.special import softmax
from tokenizers import Tokenizer
from transformers import AutoModelForTokenClassification, AutoTokenizer

from bertorch import load
from bertorch.exporting.export import export_safetensors
from tests import loaders
from tests.conftest import MATCHING, REVIEWS, ROOT, SENTENCES
from tests.environments import Environment
from tests.exports import few_texts

OLDER = ROOT / ".venv-loaders"
# Short ones: a pipeline does not cut.
TEXTS = [line.split("\t")[0] for line in (REVIEWS / "dev.txt").read_text().splitlines() if len(line) < 30][:12]
PAIRS = [tuple(line.split("\t")[:2]) for line in (MATCHING / "dev.txt").read_text().splitlines() if len(line) < 28][:12]
SENTENCE = SENTENCES.read_text().splitlines()[0]
EMBEDDERS = ("simcse", "batchneg", "matching")
TAGGER = "ner with a CRF"
RUNS = ("classifier", "ranking", *EMBEDDERS, TAGGER)  # of all scripts
# What each of the folders gives without torch, for texts of a JSON file: the last output of its graph.
ALONE = """
import json
import sys

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

source, target, *folders = sys.argv[1:]
found = {}
for folder in folders:
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding()
    session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx")
    texts = tokenizer.encode_batch(json.load(open(source)))
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    names = [each.name for each in session.get_inputs()]
    inputs = {name: np.array([getattr(text, columns[name]) for text in texts]) for name in names}
    found[folder] = session.run(None, inputs)[-1]
np.savez(target, **found)
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """An environment with what the docs' example imports, and what that requires."""
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.link("numpy", "onnxruntime", "tokenizers")
    absent = "from importlib.util import find_spec\nprint([find_spec(name) for name in ('torch', 'transformers')])"
    assert environment.run("-c", absent).stdout == "[None, None]\n"
    return environment


@pytest.fixture(scope="module")
def shipped(graphs, tmp_path_factory):
    """The folder of a run as others get it, by its name: safetensors, and the graphs."""
    base = tmp_path_factory.mktemp("shipped")

    def folder(name: str) -> Path:
        made = base / name.replace(" ", "_")
        if not made.exists():
            with pytest.MonkeyPatch.context() as patch:
                few_texts(patch)
                export_safetensors(str(graphs(name)), str(made))
            shutil.copytree(graphs(name) / "onnx", made / "onnx")
        return made

    return folder


def close(found, expected):
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=0, atol=1e-4)


def probabilities(folder, inputs) -> list[list[float]]:
    return [list(each.probabilities.values()) for each in load(folder).predict(inputs)]


def test_the_example_of_the_docs_needs_no_torch(exported, without_torch):
    """Ten lines with onnxruntime and tokenizers give the labels that torch does."""
    page = (ROOT / "docs" / "export.en.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    example = example.replace("checkpoint/demo", str(exported))
    texts = re.findall(r"encode_batch\(\[\"(.*)\", \"(.*)\"\]\)", example)[0]
    model = load(exported, max_seq_length=128)
    labels = np.array([model.labels.index(each.label) for each in model.predict(texts)])
    assert without_torch.run("-c", example).stdout == f"{labels}\n"


@pytest.mark.slow
def test_the_graphs_of_all_scripts_without_torch(graphs, without_torch, tmp_path):
    folders = {name: str(graphs(name)) for name in RUNS}
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    without_torch.run("-c", ALONE, tmp_path / "texts.json", tmp_path / "found.npz", *folders.values())
    with np.load(tmp_path / "found.npz") as file:
        found = {name: file[folder] for name, folder in folders.items()}
    close(softmax(found["classifier"], axis=1), probabilities(folders["classifier"], TEXTS))
    for name in EMBEDDERS:
        close(found[name], load(folders[name]).encode(TEXTS))
    tokenizer = AutoTokenizer.from_pretrained(folders[TAGGER])
    tokens = tokenizer(TEXTS, max_length=32, truncation=True, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"].bool().numpy()
    close(found[TAGGER][mask], logits_of_tokens(folders[TAGGER], tokens)[mask])
    # The classifier of a pair is beside the graph.
    u, v = found["matching"][:-1], found["matching"][1:]
    with np.load(f"{folders['matching']}/onnx/model.head.npz") as head:
        features = np.concatenate([u, v, abs(u - v), u * v], axis=1)
        logits = features @ head["classifier.weight"].T + head["classifier.bias"]
    pairs = list(pairwise(TEXTS))
    close(softmax(logits, axis=1), probabilities(folders["matching"], pairs))


def jobs(shipped, backends) -> list[tuple[dict, object]]:
    """What loaders are asked of the folders of all scripts, and what they should give."""
    made = []

    def ask(loader, name, inputs, expected, **settings):
        job = {"loader": loader, "folder": str(shipped(name)), "inputs": inputs, "settings": settings}
        made.append((job, expected))

    vectors = {name: load(shipped(name)).encode(TEXTS).tolist() for name in EMBEDDERS}
    scores = [each.score for each in load(shipped("ranking")).predict(PAIRS)]
    for backend in backends:
        settings = {} if backend == "torch" else {"backend": backend, "model_kwargs": {"file_name": "model.onnx"}}
        for name in EMBEDDERS:
            ask("SentenceTransformer", name, TEXTS, vectors[name], **settings)
        ask("CrossEncoder", "ranking", PAIRS, scores, **settings)
    labels = [each.probabilities for each in load(shipped("classifier")).predict(TEXTS)]
    ask("pipeline", "classifier", TEXTS, labels, task="text-classification", top_k=None)
    tokens = AutoTokenizer.from_pretrained(shipped(TAGGER))(SENTENCE, return_tensors="pt")
    logits = logits_of_tokens(shipped(TAGGER), tokens)[0, 1:-1]
    likeliest = softmax(logits, axis=1).max(axis=1)
    ask("pipeline", TAGGER, SENTENCE, likeliest, task="token-classification", ignore_labels=[])
    ask("pipeline", "simcse", TEXTS[0], vectors["simcse"][0], task="feature-extraction")  # before its pooling
    return made


def logits_of_tokens(folder, tokens) -> np.ndarray:
    with torch.no_grad():
        return AutoModelForTokenClassification.from_pretrained(folder)(**tokens).logits.numpy()


def compare(results, made) -> None:
    for result, (job, expected) in zip(results, made, strict=True):
        match job["settings"].get("task"):
            case "text-classification":
                for found, probabilities in zip(result, expected, strict=True):
                    scores = {each["label"]: each["score"] for each in found}
                    assert scores.keys() == probabilities.keys()
                    close([scores[label] for label in probabilities], list(probabilities.values()))
            case "token-classification":
                close([each["score"] for each in result], expected)
            case "feature-extraction":
                close(np.mean(result[0], axis=0), expected)
            case None:
                close(result, expected)


@pytest.mark.slow
def test_the_loaders_of_transformers_and_sentence_transformers(shipped):
    made = jobs(shipped, ["torch"])
    compare(loaders.run([job for job, _ in made]), made)


@pytest.mark.slow
@pytest.mark.skipif(
    not (OLDER / ".complete").exists(), reason="needs optimum-onnx with an older transformers; make loaders"
)
def test_the_loaders_of_optimum(shipped, tmp_path):
    """Graphs in fp32 and int8, and the files beside them in older releases."""
    made = jobs(shipped, ["torch", "onnx"])
    int8 = {"backend": "onnx", "model_kwargs": {"file_name": "model_qint8_avx2.onnx"}}
    quantised = {"loader": "SentenceTransformer", "folder": str(shipped("simcse")), "inputs": TEXTS, "settings": int8}
    (tmp_path / "jobs.json").write_text(json.dumps([*(job for job, _ in made), quantised]))
    command = [
        OLDER / "bin" / "python",
        ROOT / "tests" / "loaders.py",
        tmp_path / "jobs.json",
        tmp_path / "results.json",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *results, vectors = json.loads((tmp_path / "results.json").read_text())
    compare(results, made)
    expected = load(shipped("simcse")).encode(TEXTS, normalize=True)
    assert (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * expected).sum(axis=1).min() > 0.98


def typed(path: Path, **kinds: type | tuple) -> dict:
    """A JSON file that has these keys with values of these types."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, kind in kinds.items():
        assert type(content[name]) is kind, (path, name)
    return content


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "ranking", *EMBEDDERS, "prompts"])
def test_text_embeddings_inference_finds_what_it_reads(name, shipped):
    """Names, keys and types that its router reads of a local folder, and its backends ort and candle."""
    folder = shipped(name)
    numbers = dict.fromkeys(("max_position_embeddings", "pad_token_id", "hidden_size", "num_hidden_layers"), int)
    config = typed(folder / "config.json", architectures=list, model_type=str, **numbers)
    (architecture,) = config["architectures"]
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = typed(folder / "tokenizer_config.json")
    assert tokenizer.get("padding_side", "right") == "right"
    graph = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph
    assert {each.name for each in graph.input} == {"input_ids", "attention_mask", "token_type_ids"}
    outputs = {each.name: len(each.type.tensor_type.shape.dim) for each in graph.output}
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        tensors = set(weights.keys())
    encoder = {each.removeprefix("bert.") for each in tensors}
    assert "embeddings.word_embeddings.weight" in encoder
    if name in ("classifier", "ranking"):
        assert architecture == "BertForSequenceClassification"
        typed(folder / "config.json", id2label=dict, label2id=dict)
        assert {label: str(number) for label, number in config["label2id"].items()} == {
            label: number for number, label in config["id2label"].items()
        }
        assert (len(config["id2label"]) == 1) == (name == "ranking")  # which makes it a reranker there
        assert outputs == {"logits": 2}
        assert {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"} <= tensors
        return
    assert not architecture.endswith("Classification")
    assert outputs["sentence_embedding"] == 2
    pooling = typed(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=bool, pooling_mode_mean_tokens=bool)
    assert pooling["pooling_mode_cls_token"] != pooling["pooling_mode_mean_tokens"]
    typed(folder / "sentence_bert_config.json", max_seq_length=int)
    modules = json.loads((folder / "modules.json").read_text())
    kinds = {each["path"]: each["type"].removeprefix("sentence_transformers.models.") for each in modules}
    dense = [path for path, kind in kinds.items() if kind == "Dense"]
    assert kinds == {"": "Transformer", "1_Pooling": "Pooling"} | dict.fromkeys(dense, "Dense")
    assert len(dense) == (2 if name == "batchneg" else 0)  # the pooler, and the layer after it
    for path in dense:
        layer = typed(
            folder / path / "config.json", in_features=int, out_features=int, bias=bool, activation_function=str
        )
        activations = ("torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity")
        assert layer["activation_function"] in activations
        with safe_open(folder / path / "model.safetensors", framework="np") as weights:
            assert set(weights.keys()) == {"linear.weight", "linear.bias"}
    if name == "prompts":
        settings = typed(folder / "config_sentence_transformers.json", prompts=dict)
        assert all(type(prompt) is str for prompt in settings["prompts"].values())
