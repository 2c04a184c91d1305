"""A model with prompts in use: against sentence-transformers on the same folder, and against texts with the prompts."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer

from bertorch import encode, evaluate, load
from bertorch.config import BatchNegConfig
from bertorch.data.prompts import NO_PROMPTS, Prompts
from bertorch.errors import UserError
from bertorch.inference.load import is_own
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.tasks.in_batch_negatives import InBatchNegatives
from tests.conftest import PARAPHRASES, SENTENCES, STS, TINY

TEXTS = SENTENCES.read_text().splitlines()[:20]
QUERY, PASSAGE = "查询：", "文章：\n"


@pytest.fixture(scope="module")
def folder(folders):
    return folders["prompts"]


@pytest.fixture(scope="module")
def peer(folder):
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def bare(folder, tmp_path_factory):
    """The same weights without prompts."""
    target = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    for name in ("query_prompt", "passage_prompt"):
        del config["bertorch"][name]
    (target / "config.json").write_text(json.dumps(config))
    return load(target)


def assert_close(ours, expected, tolerance=1e-5) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_sentence_transformers_gives_our_embeddings_by_role(folder, peer, bare):
    model = load(folder)
    assert_close(model.encode(TEXTS, prompt="query"), peer.encode_query(TEXTS))
    assert_close(model.encode(TEXTS, prompt="passage"), peer.encode_document(TEXTS))
    assert_close(model.encode(TEXTS, prompt="none"), peer.encode(TEXTS))
    assert_close(model.encode(TEXTS, prompt="query"), bare.encode([QUERY + text for text in TEXTS]))
    assert np.abs(model.encode(TEXTS, prompt="query") - model.encode(TEXTS, prompt="passage")).max() > 0.01


def test_a_model_with_prompts_must_be_told(folder, bare):
    with pytest.raises(UserError, match="expected to be told what the texts are, since the model was trained with"):
        load(folder).encode(TEXTS)
    with pytest.raises(UserError, match="expected a prompt of query, passage, none, got 'document'"):
        load(folder).encode(TEXTS, prompt="document")
    assert_close(bare.encode(TEXTS, prompt="query"), bare.encode(TEXTS))  # one without prompts need not


def test_pairs_are_a_query_and_a_passage(folder, bare):
    pairs = list(zip(TEXTS[:10], TEXTS[10:], strict=True))
    prompted = [(QUERY + a, PASSAGE + b) for a, b in pairs]
    ours, expected = (
        [row.cosine for row in model.predict(rows)] for model, rows in ((load(folder), pairs), (bare, prompted))
    )
    assert_close(ours, expected)
    assert np.abs(np.array(ours) - [row.cosine for row in bare.predict(pairs)]).max() > 1e-3


def test_evaluate_has_the_number_of_the_training(folder, tmp_path):
    settings = {"model_dir": str(folder), "input_file": str(STS), "output_dir": str(tmp_path)}
    evaluate.run(evaluate.EvaluateConfig(**settings))
    report = json.loads((tmp_path / "report.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dev = [line["dev_spearman"] for line in metrics if "dev_spearman" in line]
    assert report["measures"]["spearman"]["value"] == pytest.approx(dev[-1], abs=1e-6)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_command(folder, tmp_path, capsys, peer):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    shared = {"model_dir": str(folder), "input_file": str(tmp_path / "in.txt")}
    vectors = {"output_file": str(tmp_path / "out.npy")}
    with pytest.raises(UserError, match="say so with --prompt"):
        encode.run(encode.EncodeConfig(**shared, **vectors))
    for _ in range(2):  # the second leaves it as it is
        encode.run(encode.EncodeConfig(**shared, **vectors, prompt="passage"))
    assert_close(np.load(tmp_path / "out.npy"), peer.encode_document(TEXTS))
    with pytest.raises(UserError, match="which differs in --prompt"):
        encode.run(encode.EncodeConfig(**shared, **vectors, prompt="query"))
    corpus = {"corpus_file": shared["input_file"], "nearest": len(TEXTS)}
    for role, queries, passages in (
        ("query", peer.encode_query(TEXTS), peer.encode_document(TEXTS)),
        ("passage", peer.encode_document(TEXTS), peer.encode_document(TEXTS)),
        ("none", peer.encode(TEXTS), peer.encode(TEXTS)),
    ):
        encode.run(encode.EncodeConfig(**shared, **corpus, prompt=role))
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        found = np.zeros((len(TEXTS), len(TEXTS)))
        for line, _, cosine, neighbour, _ in rows:
            found[int(line) - 1, int(neighbour) - 1] = float(cosine)
        assert_close(found, unit(queries) @ unit(passages).T)


def test_a_folder_that_sentence_transformers_saved_again_is_its_own(folder, peer, tmp_path):
    peer.save(str(tmp_path))
    assert is_own(str(folder))
    assert not is_own(str(tmp_path))
    theirs = load(tmp_path)
    assert_close(theirs.encode(TEXTS, prompt="passage"), peer.encode_document(TEXTS))
    assert_close(theirs.encode(TEXTS), peer.encode(TEXTS))  # its default prompt is none


@pytest.mark.parametrize("added", [{}, {"similarity_fn_name": "cosine"}])
def test_an_older_release_keeps_our_mark_in_a_folder_that_it_saves(added, folder, tmp_path):
    """Release 2 takes over the `__version__` that it finds; what it writes has no newline at its end."""
    saved = shutil.copytree(folder, tmp_path / "model")
    settings = saved / "config_sentence_transformers.json"
    assert is_own(str(saved))
    with settings.open("r+") as file:
        content = json.load(file) | added
        file.seek(0)
        file.truncate()
        json.dump(content, file, indent=2)
    assert "bertorch" in content["__version__"]
    assert not is_own(str(saved))


def test_a_folder_of_an_earlier_version_is_ours(folder, tmp_path):
    """Its settings said nothing of the similarity."""
    saved = shutil.copytree(folder, tmp_path / "model")
    settings = saved / "config_sentence_transformers.json"
    content = json.loads(settings.read_text())
    assert (content.pop("similarity_fn_name"), content.pop("model_type")) == ("cosine", "SentenceTransformer")
    settings.write_text(json.dumps(content, indent=2) + "\n")
    assert is_own(str(saved))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_prompts_of_other_folders(name, tmp_path):
    torch.manual_seed(0)
    prompts = {"query": QUERY, name: PASSAGE}
    modules = [Transformer(str(TINY), max_seq_length=32), Pooling(128, "mean")]
    other = SentenceTransformer(modules=modules, device="cpu", prompts=prompts, default_prompt_name="query")
    other.save(str(tmp_path))
    model = load(tmp_path)
    for role, expected in (
        ("query", other.encode_query(TEXTS)),
        ("passage", other.encode(TEXTS, prompt_name=name)),  # `encode_document` takes none but `document`
        ("none", other.encode(TEXTS, prompt="")),
        (None, other.encode(TEXTS)),
    ):
        assert_close(model.encode(TEXTS, prompt=role), expected)
    first, second = other.encode(TEXTS[:2])
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert model.predict([(TEXTS[0], TEXTS[1])])[0].cosine == pytest.approx(cosine, abs=1e-5)  # both by default


@pytest.mark.parametrize("name", ["passage", "corpus"])
def test_the_prompt_of_passages_is_the_same_after_it_was_opened_and_saved_again(name, tmp_path):
    """sentence-transformers then saves an empty prompt `document`, and means only that by `encode_document`."""
    torch.manual_seed(0)
    modules = [Transformer(str(TINY), max_seq_length=32), Pooling(128, "mean")]
    SentenceTransformer(modules=modules, device="cpu", prompts={"query": QUERY, name: PASSAGE}).save(
        str(tmp_path / "a")
    )
    settings = tmp_path / "a" / "config_sentence_transformers.json"
    content = json.loads(settings.read_text())
    content["prompts"].pop("document", None)
    settings.write_text(json.dumps(content))
    other = SentenceTransformer(str(tmp_path / "a"), device="cpu")
    other.save(str(tmp_path / "b"))
    assert json.loads((tmp_path / "b" / settings.name).read_text())["prompts"]["document"] == ""
    expected = other.encode(TEXTS, prompt_name=name)
    for folder in ("a", "b"):
        assert_close(load(tmp_path / folder).encode(TEXTS, prompt="passage"), expected)
    assert not np.allclose(expected, other.encode_document(TEXTS), atol=1e-2)


def test_prompts_that_pooling_leaves_out_are_refused_when_asked_for(tmp_path):
    torch.manual_seed(0)
    modules = [Transformer(str(TINY), max_seq_length=32), Pooling(128, "mean", include_prompt=False)]
    other = SentenceTransformer(modules=modules, device="cpu", prompts={"query": QUERY})
    other.save(str(tmp_path))
    model = load(tmp_path)
    for role in (None, "none", "passage"):  # it has none for passages
        assert_close(model.encode(TEXTS, prompt=role), other.encode(TEXTS))
    message = "the prompt query cannot be applied; without it texts are encoded by bertorch.encode --prompt none, or"
    with pytest.raises(UserError, match=message):
        model.encode(TEXTS, prompt="query")
    settings = {"model_dir": str(tmp_path), "input_file": str(PARAPHRASES), "output_dir": str(tmp_path / "report")}
    with pytest.raises(UserError, match=message):  # a command without such an option says whose it is
        evaluate.run(evaluate.EvaluateConfig(**settings))


def test_a_damaged_prompt_is_an_error(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["bertorch"]["query_prompt"] = 7
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json: bertorch: query_prompt: expected a text, got 7"):
        load(tmp_path / "model")


def test_training_on_without_the_prompts_of_the_model_is_told(folder, folders, tmp_path, log_lines):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, prompts in ((folder, Prompts.of_roles("q", "")), (folders["batchneg"], NO_PROMPTS), (folder, NO_PROMPTS)):
        config = BatchNegConfig(train_data_file="unused", pretrained_model_name_or_path=str(name))
        ContrastiveTask.from_config(config, tokenizer, InBatchNegatives.from_config(config), prompts=prompts)
    expected = (
        f"{folder}: was trained with prompts, this run has none: --query_prompt '查询：' --passage_prompt '文章：\n'"
    )
    assert [line for line in log_lines if "prompts" in line] == [expected]
