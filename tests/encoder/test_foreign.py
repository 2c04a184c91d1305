"""Folders of transformers as other programs save them: what they are taken for, and what they give."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from bertorch.data.dataset import Dataset
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.foreign import load_complete, recognise
from bertorch.encoder.pretrained import load_config, load_tokenizer
from bertorch.errors import UserError
from tests.conftest import TINY

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def save(folder, auto_class, label_names=("a", "b", "c"), **settings):
    """Save a model with a fresh head over the tiny encoder; its vocabulary stands in `TINY`."""
    torch.manual_seed(0)
    model = auto_class.from_pretrained(TINY, id2label=dict(enumerate(label_names)), **settings)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return model.eval()


def recognised(folder):
    return recognise(str(folder), None, load_config(str(folder)), load_tokenizer(str(folder)))


def edit(file, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_classifier_of_others_gives_its_own_logits(tmp_path):
    reference = save(tmp_path, AutoModelForSequenceClassification)
    assert recognised(tmp_path) == {"task": "classification", "max_seq_length": 512}
    classifier = SequenceClassifier(load_complete(AutoModelForSequenceClassification, str(tmp_path))).eval()
    tokenizer, texts = load_tokenizer(str(tmp_path)), ["很好吃", "房间又小又吵，再也不来了。"]
    batch = Dataset.of_sequences(tokenizer, [texts], np.zeros(2), max_length=512).batch(np.arange(2))
    with torch.no_grad():
        expected = reference(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        torch.testing.assert_close(classifier(batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("label_names", "scheme"),
    [(TAGS, "bio"), (["O", "S-X", "B-X", "I-X", "S-Y"], "bios"), (["O", "B-X", "M-X", "E-X", "S-X"], "bioes")],
)
def test_the_scheme_of_a_tagger_is_that_of_its_label_names(label_names, scheme, tmp_path):
    save(tmp_path, AutoModelForTokenClassification, label_names)
    assert recognised(tmp_path) == {"task": "tagging", "max_seq_length": 512, "tag_scheme": scheme}


@pytest.mark.parametrize(
    ("label_names", "message"),
    [
        (["NOUN", "INTJ"], "'NOUN', which is none, 'INTJ', which is none, no O"),
        (["LABEL_0", "LABEL_1"], "'LABEL_0', which is none"),
        (["O", "B-PER", "U-PER"], "got 'U-PER', which is none"),
        (["O", ""], "got '', which is none"),
        (TAGS[1:], "got no O"),
        (["O", "I-PER", "B-LOC", "I-LOC"], "got I-PER without B-PER"),
    ],
)
def test_label_names_that_are_no_tags_of_a_scheme_are_refused(label_names, message, tmp_path):
    save(tmp_path, AutoModelForTokenClassification, label_names)
    with pytest.raises(UserError, match=f"config.json: id2label: expected O, B-X.*{message}"):
        recognised(tmp_path)


def test_several_numbers_are_refused(tmp_path):
    save(tmp_path, AutoModelForSequenceClassification, ["a", "b"], problem_type="regression")
    with pytest.raises(UserError, match="one of several labels, got problem_type .* and num_labels"):
        recognised(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"problem_type": "regression"}])
def test_one_logit_is_a_score(settings, tmp_path):
    save(tmp_path, AutoModelForSequenceClassification, ["LABEL_0"], **settings)
    assert recognised(tmp_path) == {"task": "score", "max_seq_length": 512}


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], ["BertModel"], None])
def test_what_is_something_else_is_named(architectures, tmp_path):
    save(tmp_path, AutoModelForMaskedLM)
    edit(tmp_path / "config.json", architectures=architectures)
    named = (architectures or ["without architectures"])[0]
    with pytest.raises(UserError, match=f"expected a folder saved by .*got .*{named}"):
        recognised(tmp_path)


@pytest.mark.parametrize(
    ("own", "positions", "expected"), [(64, 512, 64), (10**30, 100, 100), (8192, 8192, 512), (None, -1, 512)]
)
def test_the_longest_input_is_the_tightest_limit(own, positions, expected, tmp_path):
    save(tmp_path, AutoModelForSequenceClassification)
    edit(tmp_path / "config.json", max_position_embeddings=positions)
    edit(tmp_path / "tokenizer_config.json", model_max_length=own)
    assert recognised(tmp_path)["max_seq_length"] == expected


def test_a_model_without_some_of_its_weights_is_refused_unless_it_is_a_pooler(tmp_path):
    save(tmp_path, AutoModelForMaskedLM)
    assert type(load_complete(AutoModel, str(tmp_path))).__name__ == "BertModel"
    with pytest.raises(UserError, match="all weights of BertForSequenceClassification.*bert.pooler.*classifier"):
        load_complete(AutoModelForSequenceClassification, str(tmp_path))


def test_an_adapter_is_refused(tmp_path):
    save(tmp_path, AutoModelForSequenceClassification)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="PEFT adapter"):
        load_complete(AutoModelForSequenceClassification, str(tmp_path))


def test_half_precision_weights_become_fp32(tmp_path):
    save(tmp_path, AutoModelForSequenceClassification, dtype=torch.float16)
    assert load_complete(AutoModelForSequenceClassification, str(tmp_path)).dtype == torch.float32


@pytest.mark.parametrize("label_names", [["a"], ["a", "b"]])
def test_several_labels_a_text_are_recognised(label_names, tmp_path):
    save(tmp_path, AutoModelForSequenceClassification, label_names, problem_type="multi_label_classification")
    assert recognised(tmp_path)["task"] == "multi_label"


def test_weights_that_the_config_does_not_describe_are_refused(tmp_path):
    """transformers would leave them out: of layers beyond those of the config, of another kind of attention."""
    save(tmp_path, AutoModelForSequenceClassification)
    edit(tmp_path / "config.json", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"got others in its encoder: bert.encoder.layer.1.attention.*, …; it would be"):
        load_complete(AutoModelForSequenceClassification, str(tmp_path))
