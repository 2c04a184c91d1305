import pytest
import torch
from torch.nn import functional as F

from bertorch.encoder.classifier import HeadInput, SequenceClassifier
from bertorch.errors import UserError
from tests.architectures import PACKED, PADDED, assert_same_gradients, batch_both_ways, random_batch, small_classifier
from tests.conftest import TINY

LENGTHS = [4, 17, 2, 9]
CASES = [(name, {}) for name in PACKED + PADDED] + [("modernbert", {"classifier_pooling": "mean"})]


@pytest.mark.parametrize(("architecture", "settings"), CASES)
def test_logits_loss_and_gradients_are_those_of_the_padded_model(architecture, settings):
    classifier = SequenceClassifier(small_classifier(architecture, **settings)).double().eval()
    reference = small_classifier(architecture, **settings).double().eval()
    batch, inputs = batch_both_ways(reference, LENGTHS)

    logits = classifier(batch)
    expected = reference(**inputs).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)

    F.cross_entropy(logits, batch.labels).backward()
    F.cross_entropy(expected, batch.labels).backward()
    assert_same_gradients(classifier.model, reference)


def test_which_heads_read_the_first_token_only():
    assert SequenceClassifier(small_classifier("roberta")).head_input is HeadInput.FIRST_TOKENS
    mean = SequenceClassifier(small_classifier("modernbert", classifier_pooling="mean"))
    assert mean.head_input is HeadInput.BLOCK


def test_dropout_of_the_head_acts_in_training_only():
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.5}
    classifier, batch = SequenceClassifier(small_classifier("bert", **settings)), random_batch(LENGTHS)
    classifier.train()
    assert not torch.equal(classifier(batch), classifier(batch))
    classifier.eval()
    assert torch.equal(classifier(batch), classifier(batch))


def test_the_head_shares_its_weights_with_the_model():
    classifier = SequenceClassifier(small_classifier("bert"))
    assert len(list(classifier.parameters())) == len(list(classifier.model.parameters()))
    assert classifier.head.classifier is classifier.model.classifier


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 37}),  # its head reads the last token
        ("bart", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}),  # cannot even run without an <eos> token
    ],
)
def test_a_model_that_is_no_encoder_is_refused(architecture, settings):
    with pytest.raises(UserError, match="expected an encoder with a classification head.*(XLNet|Bart)"):
        SequenceClassifier(small_classifier(architecture, **settings))


def test_labels_go_into_the_config():
    config = SequenceClassifier.from_pretrained(str(TINY), ["bad", "fair", "good"]).model.config
    assert config.num_labels == 3
    assert config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert config.label2id == {"bad": 0, "fair": 1, "good": 2}
    assert config.architectures == ["BertForSequenceClassification"]


def test_a_pretrained_head_of_another_size_is_refused(tmp_path):
    small_classifier("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"classifier.bias: expected \(2,\), got \(3,\)"):
        SequenceClassifier.from_pretrained(str(tmp_path), ["no", "yes"])
