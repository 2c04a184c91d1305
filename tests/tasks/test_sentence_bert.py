import numpy as np
import pytest
import torch

from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.tasks.sentence_bert import SiameseClassifier
from tests.architectures import random_batch, small_encoder

LENGTHS = [4, 17, 2, 9, 5, 5]  # three pairs


@pytest.mark.parametrize("concat_multiply", [False, True])
def test_logits_are_a_linear_function_of_both_embeddings(concat_multiply):
    embedder = SentenceEncoder(small_encoder("bert"), "mean")
    model = SiameseClassifier(embedder, 3, concat_multiply=concat_multiply).double().eval()
    batch = random_batch(LENGTHS)
    with torch.no_grad():
        logits = model.classify(model(batch)).numpy()
        u, v = (np.concatenate([embedder(one).numpy() for one in side]) for side in sides(batch))
    features = [u, v, np.abs(u - v)] + ([u * v] if concat_multiply else [])
    weight, bias = (parameter.detach().numpy() for parameter in model.classifier.parameters())
    np.testing.assert_allclose(logits, np.concatenate(features, axis=1) @ weight.T + bias, rtol=0, atol=1e-12)


def sides(batch):
    """Every sentence as a batch of its own: the first ones of the pairs, and the second ones."""
    singles = list(batch.split(1))
    return singles[::2], singles[1::2]


def test_both_sides_are_encoded_in_one_call(monkeypatch):
    model = SiameseClassifier(SentenceEncoder(small_encoder("bert"), "linear"), 2)
    calls = []
    forward = model.embedder.encoder.forward
    monkeypatch.setattr(model.embedder.encoder, "forward", lambda batch: calls.append(batch.size) or forward(batch))
    assert model.classify(model(random_batch(LENGTHS))).shape == (3, 2)
    assert calls == [6]


def test_the_names_of_the_weights_are_those_of_the_earlier_bertorch():
    model = SiameseClassifier(SentenceEncoder(small_encoder("bert"), "mean", 5), 2)
    assert {name.split(".")[0] for name in model.weights.state_dict()} == {"bert", "emb_reduce_linear", "classifier"}
    assert model.encoder_prefix == "bert"
    assert model.weights["classifier"] is model.classifier
