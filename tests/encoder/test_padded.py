"""Models on padded inputs against themselves on packed batches."""

import pytest
import torch
from torch import nn

from bertorch.encoder.classifier import SequenceClassifier, TokenClassifier
from bertorch.encoder.padded import PADDED_POOLING, PaddedEmbedder, eager_attention
from bertorch.encoder.pooling import POOLING
from bertorch.encoder.sentence_encoder import SentenceEncoder
from tests.architectures import random_batch, small_classifier, small_encoder, small_tagging_model

LENGTHS = [7, 1, 12, 3]
ARCHITECTURES = ["bert", "roberta", "distilbert", "modernbert", "deberta-v2", "albert"]


def padded_outputs(model, batch):
    padded = model.padded()
    with torch.no_grad(), eager_attention([encoder.model for encoder in model.encoders]):
        return padded(*padded.arguments(batch))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_classifiers(architecture):
    model = SequenceClassifier(small_classifier(architecture).eval()).eval()
    batch = random_batch(LENGTHS, token_types=1)
    torch.testing.assert_close(padded_outputs(model, batch), model(batch), rtol=1e-4, atol=1e-5)


def test_token_classifiers():
    model = TokenClassifier(small_tagging_model("bert").eval()).eval()
    batch = random_batch(LENGTHS)
    logits = padded_outputs(model, batch)  # (N, L, C)
    kept = torch.cat([rows[:length] for rows, length in zip(logits, LENGTHS, strict=True)])
    torch.testing.assert_close(kept, model.head_logits(model.encoder(batch)), rtol=1e-4, atol=1e-5)


def test_every_pooling_has_a_padded_form():
    assert PADDED_POOLING.keys() == POOLING.keys()


@pytest.mark.parametrize("mode", [*POOLING, ["cls", "max", "mean"]], ids=str)
def test_embedders(mode):
    model = SentenceEncoder(small_encoder("bert"), mode, output_emb_size=8).eval()
    batch = random_batch(LENGTHS)
    hidden, embeddings = padded_outputs(model, batch)
    assert hidden.shape[:2] == (4, 12)
    torch.testing.assert_close(embeddings, model(batch), rtol=1e-4, atol=1e-5)


def test_layers_after_pooling_and_dimensions_that_are_kept():
    model = SentenceEncoder(small_encoder("bert"), "mean").eval()
    model.layers, model.truncate_dim = nn.Sequential(nn.Linear(32, 16), nn.Tanh()), 5
    batch = random_batch(LENGTHS)
    assert isinstance(model.padded(), PaddedEmbedder)
    _, embeddings = padded_outputs(model, batch)
    assert embeddings.shape == (4, 5)
    torch.testing.assert_close(embeddings, model(batch), rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = SequenceClassifier(small_classifier("bert").eval()).eval()
    batch = random_batch(LENGTHS)
    before = model(batch)
    padded_outputs(model, batch)
    assert not model.training
    assert torch.equal(model(batch), before)
