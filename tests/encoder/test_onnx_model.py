"""Graphs made by hand in the place of models, against sums in NumPy."""

import copy
import pickle
import sys
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig

from bertorch.encoder import onnx_model
from bertorch.encoder.classifier import TokenClassifier
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.errors import UserError
from tests.architectures import VOCABULARY, random_batch, tagged_batch
from tests.exports import by_hand

TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, 3)).astype(np.float32)
LENGTHS = [9, 1, 40, 3, 3, 17, 38, 2]


def model(tmp_path, **settings) -> OnnxModel:
    return OnnxModel(by_hand(tmp_path / "model.onnx", TABLE, **settings), BertConfig(), {})


def rows_of(batch) -> np.ndarray:
    return TABLE[batch.input_ids.numpy()] + batch.token_type_ids.numpy()[:, None]


@pytest.mark.parametrize(("small", "large"), [(2**10, 2**14), (8, 2**14), (8, 40)])
def test_texts_give_what_each_gives_alone(small, large, tmp_path, monkeypatch):
    """In one padded batch, in batches of similar lengths, and in small ones of these."""
    monkeypatch.setattr(onnx_model, "SMALL_BATCH", small)
    monkeypatch.setattr(onnx_model, "LARGEST_BATCH", large)
    batch = random_batch(LENGTHS)
    expected = [rows_of(batch)[start:end].sum(axis=0) for start, end in pairwise(batch.cu_seqlens.tolist())]
    np.testing.assert_allclose(model(tmp_path)(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("small", [2**10, 8])
def test_tokens_are_those_of_the_packed_batch(small, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "SMALL_BATCH", small)
    batch = random_batch(LENGTHS)
    np.testing.assert_allclose(model(tmp_path, per_token=True)(batch), rows_of(batch), rtol=1e-6)


def test_the_emissions_of_words_are_those_of_their_first_tokens(tmp_path):
    batch = tagged_batch(random_batch(LENGTHS))
    tagger = TokenClassifier(model(tmp_path, per_token=True))
    np.testing.assert_allclose(tagger(batch), rows_of(batch)[batch.word_starts], rtol=1e-6)


def test_the_parts_of_a_batch_have_little_padding(monkeypatch):
    monkeypatch.setattr(onnx_model, "SMALL_BATCH", 8)
    monkeypatch.setattr(onnx_model, "LARGEST_BATCH", 40)
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    parts = list(onnx_model._parts(lengths))
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    for part in parts:
        longest = lengths[part].max()
        assert len(part) == 1 or len(part) * longest <= 40
        assert lengths[part].min() >= 0.75 * longest


def test_copies_and_pickles_give_the_same(tmp_path):
    ours, batch = model(tmp_path), random_batch(LENGTHS)
    ours.pooling_mode = "mean"
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(batch), ours(batch))
        assert other.pooling_mode == "mean"


def test_it_has_no_weights_and_knows_its_limit(tmp_path):
    ours = model(tmp_path, max_length=12)
    assert list(ours.weights.state_dict()) == list(ours.parameters()) == ours.encoders == []
    ours.require_positions(12)
    with pytest.raises(UserError, match="--max_seq_length 13: expected at most 12, the positions that OnnxModel has"):
        ours.require_positions(13)


def test_files_that_are_no_export(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="model.onnx: expected a graph that bertorch.export wrote, got .*export it"):
        OnnxModel(path, BertConfig(), {})
    by_hand(path, TABLE)
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    onnx.save(foreign, path)
    with pytest.raises(UserError, match="expected a graph that bertorch.export wrote, got KeyError"):
        OnnxModel(path, BertConfig(), {})


def test_without_onnx_runtime_the_error_names_the_extra(tmp_path, monkeypatch):
    path = by_hand(tmp_path / "model.onnx", TABLE)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime; install it by: pip install 'bertorch\[export\]'"):
        OnnxModel(path, BertConfig(), {})
