"""Folders that sentence-transformers saved, or an older release of it, against its own embeddings of the same texts."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Router,
    Transformer,
)
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bertorch.data.dataset import TextRows
from bertorch.encoder.foreign import load_complete, recognise
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.sentence_modules import read_modules
from bertorch.errors import UserError
from tests.conftest import TINY

TEXTS = [
    "很好吃",
    "房间又小又吵，再也不来了。",
    "The Hotel HILTON 值得推荐！",
    "这句话比二十个词还要长，所以两边都要在同一个地方把它截断才行。",
]
HIDDEN = 128
MAX_LENGTH = 20


def save(folder, *layers, source=TINY, max_length=MAX_LENGTH, **settings):
    """Save a model of these modules after the Transformer."""
    torch.manual_seed(0)
    transformer = Transformer(str(source), max_seq_length=max_length)
    SentenceTransformer(modules=[transformer, *layers], device="cpu", **settings).save(str(folder))


def theirs(folder) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)


def ours(folder) -> np.ndarray:
    modules = read_modules(str(folder))
    tokenizer = load_tokenizer(modules.transformer_folder)
    modules.prepare(tokenizer)
    model = load_complete(AutoModel, modules.transformer_folder)
    embedder = SentenceEncoder.from_modules(model, modules).eval()
    found = recognise(str(folder), modules, model.config, tokenizer)
    assert found["task"] == "embedding"
    texts = [(modules.prompts.default or "") + text for text in TEXTS]
    data = TextRows.tokenized(tokenizer, [texts], max_length=found["max_seq_length"])
    with torch.no_grad():
        embeddings = embedder(data.batch(np.arange(len(TEXTS)))).numpy()
    assert embeddings.shape == (len(TEXTS), embedder.size)
    return embeddings


def assert_same(folder) -> None:
    expected = theirs(folder)
    assert expected.std() > 0.01
    np.testing.assert_allclose(ours(folder), expected, rtol=0, atol=1e-5)


def edit(file, **changes) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    "mode",
    [*Pooling.POOLING_MODES, ("mean", "max"), ("lasttoken", "cls", "weightedmean")],
    ids=lambda mode: mode if isinstance(mode, str) else "+".join(mode),
)
def test_every_pooling(mode, tmp_path):
    save(tmp_path, Pooling(HIDDEN, mode))
    assert_same(tmp_path)


@pytest.mark.parametrize("architecture", ["distilbert", "mpnet", "xlm-roberta", "qwen2"])
def test_other_architectures_packed_and_padded(architecture, tmp_path):
    config = AutoConfig.for_model(architecture, vocab_size=8192, pad_token_id=0, num_hidden_layers=2)
    config.hidden_size = 48
    config.max_position_embeddings = 40
    AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "base")
    save(tmp_path / "saved", Pooling(48, ("max", "lasttoken", "weightedmean", "mean")), source=tmp_path / "base")
    assert_same(tmp_path / "saved")


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [Normalize()],
        lambda: [Dense(HIDDEN, 24)],
        lambda: [Dense(HIDDEN, 24, activation_function=nn.GELU()), Dense(24, 7, bias=False, activation_function=None)],
        lambda: [Dense(HIDDEN, 24, activation_function=nn.SiLU()), Normalize()],
        lambda: [Normalize(), Dense(HIDDEN, 24, activation_function=nn.ReLU())],
    ],
    ids=["normalize", "tanh", "gelu-identity", "silu-normalize", "normalize-relu"],
)
def test_layers_after_pooling(layers, tmp_path):
    save(tmp_path, Pooling(HIDDEN, "mean"), *layers())
    assert_same(tmp_path)


def test_the_first_dimensions_of_an_embedding(tmp_path):
    save(tmp_path, Pooling(HIDDEN, "mean"), Normalize(), truncate_dim=16)
    assert_same(tmp_path)
    assert ours(tmp_path).shape == (len(TEXTS), 16)


def test_a_default_prompt_stands_before_every_text_and_others_do_not(tmp_path):
    prompts = {"query": "查询：", "passage": "文章："}
    save(tmp_path / "none", Pooling(HIDDEN, "cls", include_prompt=False), prompts=prompts)
    save(tmp_path / "default", Pooling(HIDDEN, "cls"), prompts=prompts, default_prompt_name="passage")
    for folder in ("none", "default"):
        assert_same(tmp_path / folder)
    assert not np.allclose(ours(tmp_path / "none"), ours(tmp_path / "default"), atol=1e-2)


def test_weights_in_several_files_and_half_precision(tmp_path):
    save(tmp_path, Pooling(HIDDEN, "mean"), Dense(HIDDEN, 8))
    model = AutoModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.half().float().save_pretrained(tmp_path, max_shard_size="1MB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    expected = theirs(tmp_path)
    model.half().save_pretrained(tmp_path, max_shard_size="1MB")
    np.testing.assert_allclose(ours(tmp_path), expected, rtol=0, atol=1e-5)


def as_older_release(folder, *, inside: str = "0_Transformer") -> None:
    """Turn a saved folder into the form of the first releases, by hand."""
    (folder / inside).mkdir(exist_ok=True)
    if inside:
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / file).rename(folder / inside / file)
        (folder / "config.json").write_text('{"__version__": "0.3.0"}')
    for old in ("config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / old).unlink()
    edit(folder / inside / "tokenizer_config.json", model_max_length=512)
    (folder / inside / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {MAX_LENGTH}}}')
    switches = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]
    modes = {f"pooling_mode_{switch}": switch in ("mean_tokens", "max_tokens") for switch in switches}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN} | modes))
    edit(folder / "2_Dense" / "config.json", activation_function="torch.nn.modules.linear.Identity")
    for name, target in (("2_Dense", "2_Dense"), (".", inside)):
        weights = folder / name / "model.safetensors"
        torch.save(load_file(weights), folder / target / "pytorch_model.bin")
        weights.unlink()
    (folder / "3_Normalize" / "config.json").unlink()
    kinds = {"0": (inside, "Transformer"), "1": ("1_Pooling", "Pooling"), "2": ("2_Dense", "Dense")}
    kinds["3"] = ("3_Normalize", "Normalize")
    modules = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, (path, kind) in kinds.items()
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_folders_of_older_releases(inside, tmp_path):
    save(tmp_path, Pooling(HIDDEN, "cls"), Dense(2 * HIDDEN, 8), Normalize(), max_length=None)
    as_older_release(tmp_path, inside=inside)
    assert_same(tmp_path)
    modules = read_modules(str(tmp_path))
    assert modules.transformer_folder == str(tmp_path / inside)
    assert (modules.pooling_modes, modules.max_seq_length) == (("max", "mean"), MAX_LENGTH)


def test_texts_are_lowercased_where_the_folder_says_so(tmp_path):
    save(tmp_path, Pooling(HIDDEN, "cls"), Dense(2 * HIDDEN, 8), Normalize(), max_length=None)
    as_older_release(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(TINY, do_lower_case=False)
    tokenizer.save_pretrained(tmp_path / "0_Transformer")
    cased = ours(tmp_path)
    edit(tmp_path / "0_Transformer" / "sentence_bert_config.json", do_lower_case=True)
    assert_same(tmp_path)
    assert not np.allclose(ours(tmp_path)[2], cased[2], atol=1e-3)


def test_lowercasing_takes_a_fast_tokenizer(saved):
    modules = replace(read_modules(str(saved)), lowercase=True)
    with pytest.raises(UserError, match="do_lower_case: expected a fast tokenizer"):
        modules.prepare(object())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(folder, Pooling(HIDDEN, "mean"), Dense(HIDDEN, 8), Normalize(), prompts={"query": "查询："})
    return folder


_DAMAGED = "expected settings as sentence-transformers saves them, got .*; save the model again"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode": "median"},
            r"pooling_mode: expected some of cls, .*got \('median',\)",
        ),
        ("1_Pooling/config.json", {"layer_start": 4}, "settings of a Pooling that can be opened, got layer_start: 4"),
        (
            "2_Dense/config.json",
            {"activation_function": "os.system"},
            "expected one of torch.nn.Identity, .*'os.system'",
        ),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Softmax"}, "activation_function: .*Softmax"),
        ("2_Dense/config.json", {"use_residual": True}, "settings of a Dense .*use_residual: True"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name: 'token_embeddings'"),
        ("2_Dense/config.json", {"in_features": "many"}, "2_Dense: expected the settings and weights of a Dense"),
        ("2_Dense/config.json", {"in_features": 64}, "2_Dense: .*size mismatch"),
        ("2_Dense/config.json", {"bias": False}, "2_Dense: .*bias"),
        ("3_Normalize/config.json", {"module_input_name": "token_embeddings"}, "settings of a Normalize"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task: 'fill-mask'"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"message": {}}},
            "settings of a Transformer .*modality_config",
        ),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "query_expansion"),
        ("sentence_bert_config.json", {"config_args": {"hidden_act": "relu"}}, "config_args"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "got SparseEncoder"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "expected one of query, document, got 'q'"),
        ("config_sentence_transformers.json", {"default_prompt_name": ["q"]}, _DAMAGED),
        ("config_sentence_transformers.json", {"prompts": "abc"}, _DAMAGED),
        ("config_sentence_transformers.json", {"prompts": {"query": 5}}, "expected texts as prompts and a number as"),
        ("config_sentence_transformers.json", {"truncate_dim": "x"}, "expected texts as prompts and a number as"),
        ("1_Pooling/config.json", {"pooling_mode": 5}, _DAMAGED),
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, _DAMAGED),
        ("2_Dense/config.json", {"activation_function": ["x"]}, _DAMAGED),
    ],
)
def test_settings_that_cannot_be_opened_are_refused(file, changes, message, saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / file, **changes)
    with pytest.raises(UserError, match=message):
        ours(tmp_path)


def test_a_cross_encoder_is_named(tmp_path):
    CrossEncoder(str(TINY), num_labels=2, device="cpu").save(str(tmp_path))
    with pytest.raises(UserError, match="expected the model_type SentenceTransformer, got CrossEncoder"):
        read_modules(str(tmp_path))


def test_arguments_that_change_no_embedding_are_left_alone(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "sentence_bert_config.json", model_args={"torch_dtype": "float32", "trust_remote_code": True})
    assert_same(tmp_path)


def test_a_default_prompt_that_pooling_leaves_out_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "config_sentence_transformers.json", default_prompt_name="query")
    edit(tmp_path / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(UserError, match="1_Pooling/config.json: expected include_prompt: true with the default prompt"):
        read_modules(str(tmp_path))


@pytest.mark.parametrize("content", ["{", '{"idx": 0}', '[{"idx": 0}]', '["Transformer"]', "7", "\udcff"])
def test_a_damaged_modules_json_is_refused(content, saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "modules.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match="modules.json: expected"):
        read_modules(str(tmp_path))


@pytest.mark.parametrize("file", ["2_Dense/model.safetensors", "2_Dense/config.json", "1_Pooling/config.json"])
def test_files_that_are_missing_are_named(file, saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=file.partition("/")[0]):
        read_modules(str(tmp_path))


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (list, "got an end as module 1"),
        (lambda: [Pooling(HIDDEN), LayerNorm(HIDDEN)], "layer_norm.LayerNorm as module 2"),
        (lambda: [Pooling(HIDDEN), Dropout(0.1)], "dropout.Dropout as module 2"),
        (lambda: [Pooling(HIDDEN), Pooling(HIDDEN)], "pooling.Pooling as module 2"),
        (lambda: [Dense(HIDDEN, 8, module_input_name="token_embeddings"), Pooling(8)], "dense.Dense as module 1"),
    ],
)
def test_other_modules_are_refused_by_name(layers, named, tmp_path):
    save(tmp_path, *layers())
    with pytest.raises(UserError, match=f"expected sentence-transformers' Transformer, Pooling, then any .*{named}"):
        read_modules(str(tmp_path))


def test_a_router_and_code_of_others_are_refused(saved, tmp_path):
    parts = [Transformer(str(TINY)), Pooling(HIDDEN)]
    router = Router.for_query_document(query_modules=parts, document_modules=parts)
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "router"))
    shutil.copytree(saved, tmp_path / "custom")
    modules = json.loads((saved / "modules.json").read_text())
    modules[1]["type"] = "custom_st.Pooling"
    (tmp_path / "custom" / "modules.json").write_text(json.dumps(modules))
    for folder, named in (("router", "router.Router as module 0"), ("custom", "custom_st.Pooling as module 1")):
        with pytest.raises(UserError, match=f"modules.json: .*{named}"):
            read_modules(str(tmp_path / folder))


def test_layers_that_do_not_fit_on_pooling_are_refused(tmp_path):
    save(tmp_path, Pooling(HIDDEN, "mean"), Dense(HIDDEN + 1, 8))
    with pytest.raises(UserError, match="expected Dense modules that take the 128 features of pooling"):
        ours(tmp_path)


def test_a_folder_without_modules_json_is_none_of_them():
    assert read_modules(str(TINY)) is None
