"""Saved folders in sentence-transformers itself, against our embeddings of the same texts."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from bertorch.data.dataset import TextRows
from bertorch.encoder.foreign import load_complete
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.sentence_modules import read_modules
from bertorch.encoder.sentence_transformers import SentenceTransformerFiles
from bertorch.tasks.sentence_bert import SiameseClassifier
from bertorch.training.saving import publish
from tests.architectures import small_encoder
from tests.conftest import TINY

TEXTS = [
    "很好吃",
    "房间又小又吵，再也不来了。",
    "值得推荐！",
    "这句话比二十个词还要长，所以两边都要在同一个地方把它截断才行。",
]
MAX_LENGTH = 20


def our_embeddings(embedder: SentenceEncoder, tokenizer) -> torch.Tensor:
    data = TextRows.tokenized(tokenizer, [TEXTS], max_length=MAX_LENGTH)
    with torch.no_grad():
        return embedder.eval()(data.batch(np.arange(len(TEXTS))))


@pytest.mark.slow
@pytest.mark.parametrize("output_emb_size", [None, 16])
@pytest.mark.parametrize("pooling_mode", ["linear", "cls", "mean"])
def test_sentence_transformers_gives_our_embeddings(pooling_mode, output_emb_size, tmp_path):
    torch.manual_seed(0)
    embedder = SentenceEncoder.from_pretrained(str(TINY), pooling_mode, output_emb_size)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    companions = [embedder.config, tokenizer, SentenceTransformerFiles(embedder, MAX_LENGTH)]
    weights = SiameseClassifier(embedder, 2).weights if pooling_mode == "mean" else embedder.weights
    publish(str(tmp_path), weights.state_dict(), companions)

    model = SentenceTransformer(str(tmp_path), device="cpu")
    ours = our_embeddings(embedder, tokenizer)
    got = torch.from_numpy(model.encode(TEXTS, show_progress_bar=False))
    torch.testing.assert_close(got, ours, rtol=0, atol=1e-5)
    modules = read_modules(str(tmp_path))
    read_back = SentenceEncoder.from_modules(load_complete(AutoModel, modules.transformer_folder), modules)
    torch.testing.assert_close(our_embeddings(read_back, tokenizer), ours, rtol=0, atol=1e-6)
    assert (modules.max_seq_length, modules.lowercase, modules.prompts.default) == (MAX_LENGTH, False, "")
    assert model.max_seq_length == MAX_LENGTH
    assert ours.std() > 0.1

    inside = AutoModel.from_pretrained(tmp_path)
    assert type(inside).__name__ == "BertModel"
    for name, tensor in inside.state_dict().items():
        assert torch.equal(tensor, embedder.encoder.model.state_dict()[name]), name


@pytest.mark.parametrize("architecture", ["albert", "ernie", "xlm-roberta"])
def test_poolers_that_are_a_dense_layer(architecture, tmp_path):
    embedder = SentenceEncoder(small_encoder(architecture), "linear").eval()
    SentenceTransformerFiles(embedder, MAX_LENGTH).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "2_Dense" / "config.json").read_text())
    assert config == {
        "in_features": 32,
        "out_features": 32,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }


def test_a_pooler_that_is_something_else_is_logged(tmp_path, log_lines):
    for pooling_mode, expected in (("linear", False), ("cls", True)):
        model = small_encoder("bert")
        model.pooler.activation = torch.nn.ReLU()
        SentenceTransformerFiles(SentenceEncoder(model, pooling_mode), MAX_LENGTH).save_pretrained(tmp_path)
        assert (tmp_path / "modules.json").is_file() == expected
    assert len([line for line in log_lines if "knows no pooler like that of BertModel" in line]) == 1
