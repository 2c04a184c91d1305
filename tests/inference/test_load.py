"""Folders of all scripts in Python, against transformers and sentence-transformers on the same folder."""

import copy
import errno
import json
import math
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from bertorch import load
from bertorch.errors import UserError
from bertorch.inference import engine
from bertorch.inference.load import load_trained
from bertorch.tasks.metadata import KEY
from tests.conftest import MATCHING, NER, NESTED, NLI, REVIEWS, TINY

MAX_LENGTH = 32
TABLE = pandas.DataFrame({"text": ["a", "b"], "other": ["c", "d"]})
TEXTS = [line.split("\t")[0] for line in (REVIEWS / "dev.txt").read_text().splitlines()][:70]
PAIRS = [tuple(line.split("\t")[:2]) for line in (MATCHING / "dev.txt").read_text().splitlines()][:70]
NESTED_TEXTS = [json.loads(line)["text"] for line in (NESTED / "dev.json").read_text().splitlines()]
SENTENCES = [json.loads(line)["text"] for line in (NER / "dev.json").read_text().splitlines()][:40]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """So that there are several."""
    monkeypatch.setattr(engine, "WINDOW", 25)


def probabilities_of(folder, *columns):
    """By transformers, one example at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for texts in zip(*columns, strict=True):
            inputs = tokenizer(*texts, return_tensors="pt", truncation=True, max_length=MAX_LENGTH)
            rows.append(model(**inputs).logits[0].softmax(-1))
    return torch.stack(rows).numpy()


def table(predictions):
    return np.array([list(prediction.probabilities.values()) for prediction in predictions])


def test_a_classifier_predicts_what_transformers_does(folders):
    predictions = load(folders["classifier"]).predict(TEXTS)
    expected = probabilities_of(folders["classifier"], TEXTS)
    np.testing.assert_allclose(table(predictions), expected, atol=1e-5)
    assert [prediction.label for prediction in predictions] == [
        ["negative", "positive"][row.argmax()] for row in expected
    ]
    assert predictions[0].probability == pytest.approx(expected[0].max(), abs=1e-5)
    assert predictions[0].cosine is None


def test_the_results_of_a_batch_are_those_of_each(folders):
    """In any order of lengths, alike or not, and longer than what is one block of attention."""
    model = load(folders["pair classifier"])
    words = ["早餐不错", "房间干净"]
    for lengths in ([14, 15, 13, 16, 15, 12], [15, 2, 14, 1, 13, 16]):
        pairs = [(words[0] * count, words[1] * (count - 1)) for count in lengths]
        alone = np.concatenate([table(model.predict([pair])) for pair in pairs])
        np.testing.assert_allclose(table(model.predict(pairs)), alone, atol=1e-6)


def test_a_folder_that_cannot_be_looked_into(folders, monkeypatch):
    exists = Path.exists

    def denied(self):
        if self.name == "config.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        return exists(self)

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(UserError, match="expected a folder that can be read, got: Permission denied"):
        load(folders["classifier"])


def test_linear_layers_are_those_for_the_device(folders):
    encoder = load(folders["classifier"]).task.model.encoders[0]
    assert not any(type(module) is torch.nn.Linear for module in encoder.modules())


def test_a_classifier_of_pairs(folders):
    predictions = load(folders["pair classifier"]).predict(PAIRS)
    expected = probabilities_of(folders["pair classifier"], *zip(*PAIRS, strict=True))
    np.testing.assert_allclose(table(predictions), expected, atol=1e-5)
    assert list(predictions[0].probabilities) == (NLI / "labels.txt").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matching", "nli", pytest.param("simcse", marks=pytest.mark.slow), "batchneg"])
def test_embeddings_are_those_of_sentence_transformers(name, folders):
    model = load(folders[name])
    peer = SentenceTransformer(str(folders[name]), device="cpu")
    expected = peer.encode(TEXTS, show_progress_bar=False)
    vectors = model.encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert vectors.dtype == np.float32
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode(TEXTS, normalize=True), unit, atol=1e-5)
    assert model.encode([]).shape == (0, expected.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "labels"), [("matching", 2), ("nli", 3), ("simcse", 0), ("batchneg", 0)])
def test_pairs_have_a_cosine_and_sentence_bert_its_classes(name, labels, folders):
    predictions = load(folders[name]).predict(PAIRS)
    peer = SentenceTransformer(str(folders[name]), device="cpu")
    first, second = (peer.encode(list(column), show_progress_bar=False) for column in zip(*PAIRS, strict=True))
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose([prediction.cosine for prediction in predictions], cosine, atol=1e-5)
    assert table(predictions).shape == (len(PAIRS), labels)
    if labels:
        weights = torch.load(folders[name] / "pytorch_model.bin", weights_only=True)
        features = [first, second, abs(first - second), *([first * second] if name == "matching" else [])]
        logits = (
            np.concatenate(features, 1) @ weights["classifier.weight"].numpy().T + weights["classifier.bias"].numpy()
        )
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(table(predictions), expected, atol=1e-5)
    else:
        assert predictions[0].label is None
        assert predictions[0].probability is None


@pytest.mark.slow
def test_a_tagger_without_a_crf_finds_the_best_path_over_the_logits_of_transformers(folders):
    """Where the likeliest tags by themselves spell whole entities, they are the best path."""
    model = AutoModelForTokenClassification.from_pretrained(folders["ner"])
    tokenizer = AutoTokenizer.from_pretrained(folders["ner"])
    tagger = load(folders["ner"])
    compared = 0
    for result, tokens in zip(tagger.tag(SENTENCES), SENTENCES, strict=True):
        assert result.tokens == tokens
        if len(tokens) > MAX_LENGTH - 2:
            continue
        with torch.no_grad():
            logits = model(**tokenizer(tokens, is_split_into_words=True, return_tensors="pt")).logits[0, 1:-1]
        ids = logits.argmax(-1).numpy()
        if tagger.task.span_model.tags.first_violation(ids) is None:
            assert result.tags == [tagger.labels[number] for number in ids]
            compared += 1
    assert compared > 10


@pytest.mark.slow
def test_a_tagger_decodes_with_its_crf(folders):
    tagger = load_trained(folders["ner with a CRF"]).span_model
    model = load(folders["ner with a CRF"])
    tokens = SENTENCES[3]
    tokenizer = AutoTokenizer.from_pretrained(folders["ner with a CRF"])
    encoded = tokenizer(tokens, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        emissions = AutoModelForTokenClassification.from_pretrained(folders["ner with a CRF"])(**encoded).logits[
            0, 1:-1
        ]
        path = tagger.crf.viterbi(emissions, torch.tensor([0, len(emissions)]), len(emissions))
    assert model.tag([tokens])[0].tags == [model.labels[number] for number in path]


@pytest.mark.slow
def test_entities_of_plain_text_stand_where_they_say(folders):
    model = load(folders["ner"])
    texts = ["".join(tokens) for tokens in SENTENCES]
    spaced = [" " + " ".join(tokens) + "　" for tokens in SENTENCES]
    found = 0
    for plain, wide, tokens in zip(model.tag(texts), model.tag(spaced), model.tag(SENTENCES), strict=True):
        assert wide.tags == plain.tags
        assert [entity.type for entity in wide.entities] == [entity.type for entity in plain.entities]
        if tokens.tokens == plain.tokens:
            assert tokens.tags == plain.tags
            assert tokens.entities == plain.entities  # every token is a character: the offsets are the same
            found += len(tokens.entities)
    for text, result in zip(spaced, model.tag(spaced), strict=True):
        assert all(text[entity.start : entity.end] == entity.text for entity in result.entities)
    assert found > 5
    assert model.tag(["", "   ", []]) == model.tag([[]]) * 3


@pytest.mark.slow
def test_entities_that_overlap_have_scores_and_no_tags(folders):
    model = load(folders["nested"])
    assert list(model.labels) == ["PER", "LOC", "ORG", "TITLE", "WORK"]
    spelt = overlapping = 0
    for text, result in zip(NESTED_TEXTS, model.tag(NESTED_TEXTS), strict=True):
        assert "".join(result.tokens) == text
        assert all(text[entity.start : entity.end] == entity.text for entity in result.entities)
        assert all(0.5 < entity.score <= 1 for entity in result.entities)
        assert list(result.entities) == sorted(result.entities, key=lambda entity: (entity.start, entity.end))
        inside = [(a, b) for a in result.entities for b in result.entities if a is not b and a.start < b.end <= a.end]
        if any(a.start <= b.start for a, b in inside):
            assert result.tags == []
            overlapping += 1
        elif result.entities:
            begins = [index for index, tag in enumerate(result.tags) if tag[0] in "BS"]
            assert begins == [entity.start for entity in result.entities]
            spelt += 1
    assert overlapping > 5
    assert spelt > 5
    assert model.tag(["", "   ", []]) == model.tag([[]]) * 3
    one_by_one = [load(folders["nested"], batch_size=1).tag([text])[0].entities for text in NESTED_TEXTS[:9]]
    for alone, together in zip(one_by_one, model.tag(NESTED_TEXTS), strict=False):
        assert [each[:4] for each in alone] == [each[:4] for each in together.entities]


def test_results_do_not_depend_on_the_batch(folders):
    one = load(folders["simcse"], batch_size=1).encode(TEXTS)
    np.testing.assert_allclose(load(folders["simcse"], batch_size=64).encode(TEXTS), one, atol=1e-5)


USES = {
    "classifier": lambda model: model.predict(TEXTS[:9]),
    "matching": lambda model: model.predict(PAIRS[:9]),
    "batchneg": lambda model: model.encode(TEXTS[:9]).tolist(),  # has linear pooling
    "ner with a CRF": lambda model: model.tag(SENTENCES[:9]),
    "nested": lambda model: model.tag(NESTED_TEXTS[:9]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_gives_the_same_and_shares_nothing(name, duplicate, folders):
    model = load(folders[name])
    expected = USES[name](model)
    twin = duplicate(model)
    with torch.no_grad():
        for parameter in model.task.model.parameters():
            parameter.zero_()
    assert USES[name](twin) == expected


def _use(name, model):
    return USES[name](model)


@pytest.mark.slow
def test_a_spawned_process_uses_a_model_that_it_is_sent(folders):
    model = load(folders["classifier"])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_use, ("classifier", model)) == USES["classifier"](model)


def test_fewer_tokens_on_demand(folders):
    model = load(folders["simcse"], max_seq_length=6)
    np.testing.assert_allclose(model.encode([TEXTS[0]]), model.encode([TEXTS[0][:4]]), atol=1e-5)
    with pytest.raises(UserError, match="--max_seq_length 4000: expected at most"):
        load(folders["simcse"], max_seq_length=4000)


@pytest.mark.parametrize(
    ("name", "use", "message"),
    [
        ("classifier", lambda model: model.encode(["a"]), "expected a embedding model to encode with"),
        ("classifier", lambda model: model.tag(["a"]), "to tag with, got one of run_classifier.py"),
        ("ner", lambda model: model.predict(["a"]), "to predict with, got one of run_ner.py"),
        ("ner", lambda model: model.tag(["a"], split="bytes"), "expected one of characters, words, got 'bytes'"),
        ("ner", lambda model: model.tag("a"), "expected a list of texts, got the text 'a'"),
        ("classifier", lambda model: model.predict("a"), "expected a list of inputs, got the text 'a'"),
        ("classifier", lambda model: model.predict(["a", ("a", "b")]), "expected input 2 to be a text, got"),
        ("simcse", lambda model: model.predict(["a"]), "expected input 1 to be a pair, a tuple of two texts, got 'a'"),
        ("simcse", lambda model: model.encode(["\ud800"]), "expected input 1 to be a text, got '\\ud800'"),
        ("ner", lambda model: model.tag(["\ud800"]), "expected text, got half a surrogate pair"),
        ("ner", lambda model: model.tag([["a", 3]]), "expected a text or a list of tokens, got ['a', 3]"),
        ("simcse", lambda model: model.encode([3]), "expected input 1 to be a text, got 3"),
        ("ner", lambda model: model.tag([5]), "expected a text or a list of tokens, got 5"),
        ("ner", lambda model: model.tag([None]), "expected a text or a list of tokens, got None"),
        ("ner", lambda model: model.tag(None), "expected a list of texts, got None"),
        ("ner", lambda model: model.tag({"text": ["a"]}), "expected a list of texts, got a dict; take the column"),
        ("ner", lambda model: model.tag(pandas.Series(["a", None])), "expected a text or a list of tokens, got nan"),
        ("classifier", lambda model: model.predict(5), "expected a list of inputs, got 5"),
        ("classifier", lambda model: model.predict(pandas.Series(["a", math.nan])), "expected input 2 to be a text"),
        ("classifier", lambda model: model.predict(TABLE), "expected a list of inputs, got a DataFrame; take the"),
        ("classifier", lambda model: model.predict(dict(TABLE)), "expected a list of inputs, got a dict; take the"),
        ("classifier", lambda model: model.predict(TABLE.to_numpy()), "expected a list of inputs, got a ndarray"),
        ("simcse", lambda model: model.encode(TABLE), "expected a list of inputs, got a DataFrame; take the column"),
    ],
)
def test_a_wrong_use_is_told(name, use, message, folders):
    with pytest.raises(UserError) as error:
        use(load(folders[name]))
    assert message.replace("a embedding", "an embedding") in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "a batch_size of at least 1, got 'auto' and 0"),
        ({"precision": "half"}, "expected a precision of auto, fp32, bf16, fp16 and"),
        ({"device": "gpu"}, "expected a device that this machine has, such as cpu or cuda:0, got 'gpu'"),
        ({"device": "cuda:99"}, "expected a device that this machine has, such as cpu or cuda:0, got 'cuda:99'"),
    ],
)
def test_wrong_options_are_told(options, message, folders):
    with pytest.raises(UserError, match=message):
        load(folders["classifier"], **options)


def changed(folder, target, config=None, weights=None):
    """A copy of a folder with another config and other weights."""
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config(values) if config else values))
    if weights:
        tensors = torch.load(target / "pytorch_model.bin", weights_only=True)
        torch.save(weights(tensors), target / "pytorch_model.bin")
    return target


def without(*keys):
    return lambda values: {key: value for key, value in values.items() if key not in keys}


@pytest.mark.parametrize("name", ["classifier", "matching", "nli", "simcse", "batchneg", "ner", "ner with a CRF"])
def test_a_folder_from_before_heads_had_names_is_the_same(name, folders, tmp_path):
    def earlier_form(config):
        fields = {"text_pair": None, "pooling_mode": None, "output_emb_size": None, "concat_multiply": False}
        return config | {KEY: fields | without("head")(config[KEY])}

    earlier, now = load_trained(changed(folders[name], tmp_path / "earlier", earlier_form)), load_trained(folders[name])
    assert (type(earlier), earlier.head, earlier.settings()) == (type(now), now.head, now.settings())
    weights = now.model.weights.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in earlier.model.weights.state_dict().items())


def test_what_another_library_made_of_a_folder_is_its_own(folders, tmp_path):
    """It keeps our metadata, which no longer says what is there."""
    peer = SentenceTransformer(str(folders["batchneg"]), device="cpu")
    with torch.no_grad():
        peer[-1].linear.weight.mul_(-3.0)
    peer.save(str(tmp_path / "tuned"))
    expected = peer.encode(TEXTS[:5], show_progress_bar=False)
    np.testing.assert_allclose(load(tmp_path / "tuned").encode(TEXTS[:5]), expected, atol=1e-5)

    model = AutoModelForSequenceClassification.from_pretrained(folders["simcse"], num_labels=3)
    model.save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(folders["simcse"]).save_pretrained(tmp_path / "classifier")
    rows = table(load(tmp_path / "classifier", max_seq_length=MAX_LENGTH).predict(TEXTS[:5]))
    np.testing.assert_allclose(rows, probabilities_of(tmp_path / "classifier", TEXTS[:5]), atol=1e-5)


@pytest.mark.parametrize(
    "layers",
    [
        lambda size: [Pooling(size, "max")],
        lambda size: [Pooling(size, "weightedmean")],
        lambda size: [Pooling(size, ("mean", "max"))],
        lambda size: [Pooling(size, "mean"), Dense(size, 16), Normalize()],
    ],
    ids=["max", "weighted mean", "two poolings", "dense and normalize"],
)
@pytest.mark.parametrize("prompt", [None, "passage"])
def test_a_folder_of_sentence_transformers_gives_its_embeddings(layers, prompt, tmp_path):
    """Its settings one by one are in `tests/encoder/test_sentence_modules.py`."""
    torch.manual_seed(0)
    modules = [Transformer(str(TINY), max_seq_length=MAX_LENGTH), *layers(128)]
    prompts = {"prompts": {"passage": "文章："}, "default_prompt_name": prompt}
    peer = SentenceTransformer(modules=modules, device="cpu", **prompts)
    peer.save(str(tmp_path))
    expected = peer.encode(TEXTS[:30], show_progress_bar=False)
    np.testing.assert_allclose(load(tmp_path).encode(TEXTS[:30]), expected, atol=1e-5)
    other = peer.encode(TEXTS[:30], show_progress_bar=False, prompt="" if prompt else "文章：")
    assert not np.allclose(expected, other, atol=1e-3)


@pytest.mark.parametrize("name", ["classifier", "simcse", "ner"])
def test_a_plain_folder_gives_the_same(name, folders, tmp_path):
    plain, own = (
        load(changed(folders[name], tmp_path / "plain", without(KEY)), max_seq_length=MAX_LENGTH),
        load(folders[name]),
    )
    if name == "classifier":
        assert plain.predict(TEXTS[:3]) == own.predict(TEXTS[:3])
        assert len(plain.predict(PAIRS[:3])) == 3
    elif name == "simcse":
        np.testing.assert_allclose(plain.encode(TEXTS[:3]), own.encode(TEXTS[:3]), atol=1e-6)
    else:
        assert plain.tag(SENTENCES[:5]) == own.tag(SENTENCES[:5])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("simcse", {"config": lambda old: old | {KEY: {"task": "x"}}}, "config.json: bertorch: expected the fields"),
        (
            "simcse",
            {"config": lambda old: old | {KEY: old[KEY] | {"pooling_mode": "max"}}},
            "pooling_mode: expected one of ('linear', 'cls', 'mean'), got 'max'",
        ),
        (
            "classifier",
            {"config": lambda old: old | {KEY: old[KEY] | {"head": ["linear"]}}},
            "expected task and head to be names",
        ),
        ("classifier", {"config": lambda old: old | {"id2label": {"0": "a", "5": "b"}}}, "id2label: expected each"),
        ("classifier", {"weights": without("classifier.weight")}, "got none for classifier.weight (1 missing)"),
        ("nli", {"weights": without("classifier.weight")}, "got none for classifier.weight (1 missing)"),
        ("ner", {"config": lambda old: old | {"id2label": {"0": "a", "1": "O"}}}, "expected a tag of --tag bios"),
        ("ner", {"config": lambda old: old | {"id2label": {"0": "O"}}}, "classifier.bias: expected (1,), got (10,)"),
        ("ner", {"config": without("tag_scheme")}, "expected a folder saved by run_ner.py"),
        ("nested", {"weights": without("global_pointer.bounds.bias")}, "got none for global_pointer.bounds.bias (1"),
        ("nested", {"config": lambda old: old | {"id2label": {"0": "PER"}}}, "expected the types of its tags"),
    ],
)
def test_a_broken_folder_is_told(name, changes, message, folders, tmp_path):
    with pytest.raises(UserError) as error:
        load(changed(folders[name], tmp_path / "broken", **changes))
    assert message in str(error.value)
    assert "pretrained_model_name_or_path" not in str(error.value)


def test_what_is_no_folder_of_a_script_is_told(tmp_path):
    with pytest.raises(UserError, match="expected the folder that a run saved, got no folder"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match="a model without a task is for"):
        load(TINY)
