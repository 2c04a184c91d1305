"""The head with a global pointer: weights, batches and windows, saved folders, decoding."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from bertorch.data.dataset import Subset
from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.errors import UserError
from bertorch.inference.load import is_own, load_trained
from bertorch.tasks.global_pointer_head import GlobalPointerTagger, choose_decoding
from bertorch.tasks.tagging import TaggingTask
from bertorch.training.saving import publish
from tests.architectures import PACKED, PADDED, small_encoder
from tests.conftest import TINY
from tests.small_tasks import NO_DROPOUT, TAGS, entity_data, global_pointer_task, tiny_global_pointer_task

TOKENIZER = AutoTokenizer.from_pretrained(TINY)
WORDS = [*"他在北京大学读书。"]


def save(task: TaggingTask, folder) -> None:
    publish(str(folder), task.model.weights.state_dict(), task.savables)


def untagged(words: list[str], max_length: int = 128):
    return TaggedDataset.of(TOKENIZER, TaggedSentences.untagged([words]), max_length=max_length).batch(np.array([0]))


@pytest.mark.parametrize("architecture", PACKED + PADDED)
def test_words_are_those_of_the_padded_encoder(architecture):
    """Outputs and gradients, from the hidden states that transformers gives for each sentence alone."""
    tagger = GlobalPointerTagger(small_encoder(architecture, **NO_DROPOUT), TAGS, decoding="nested").double().eval()
    reference = small_encoder(architecture, **NO_DROPOUT).double().eval()
    batch = entity_data(5).batch(np.arange(5))
    outputs = tagger(batch)
    states = []
    for sentence in batch.split(1):
        inputs, _ = tagger.encoder.inputs.padded(sentence)
        states.append(reference(**inputs).last_hidden_state[0])
    hidden = torch.cat(states)[batch.word_starts]  # (K, H)
    torch.testing.assert_close(outputs, tagger.global_pointer(hidden), rtol=0, atol=1e-11)


def test_a_batch_is_its_sentences_one_by_one():
    task = global_pointer_task(**NO_DROPOUT)
    task.model.double().eval()
    data, model = entity_data(7, windows=2), task.span_model
    with torch.no_grad():
        whole = data.batch(np.arange(7))
        outputs = model(whole)
        together = model.decode(outputs, whole, with_scores=True).spans
        loss, found, scores, gold = 0.0, [], [], []
        for index in range(7):
            batch = data.batch(np.array([index]))
            alone = model(batch)
            loss += model.loss(alone, batch).item()
            spans = model.decode(alone, batch, with_scores=True).spans
            found += [(index, *extent) for _, *extent in spans.extents.tolist()]
            scores += spans.scores.tolist()
            gold += [(index, *extent) for _, *extent in model.gold_extents(batch).tolist()]
        assert model.loss(outputs, whole).item() == pytest.approx(loss, rel=1e-12)
    assert found
    assert sorted(map(tuple, together.extents.tolist())) == sorted(found)
    np.testing.assert_allclose(together.scores, scores, rtol=1e-9)
    assert sorted(map(tuple, model.gold_extents(whole).tolist())) == sorted(gold)
    assert len(gold) == len(data.spans)


def test_filler_changes_nothing():
    """Loss, gradients and gold entities of a batch in one of few shapes."""
    tasks = [global_pointer_task(**NO_DROPOUT) for _ in range(2)]
    batch = entity_data(5).batch(np.arange(5))
    filled = batch.filled(128)
    for task, each in zip(tasks, (batch, filled), strict=True):
        task.model.double()
        task.losses(each)["loss"].backward()
    for ours, expected in zip(*(task.model.parameters() for task in tasks), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(ours.grad, expected.grad, rtol=0, atol=1e-10)
    assert torch.equal(*(task.span_model.gold_extents(each) for task, each in zip(tasks, (batch, filled), strict=True)))


def test_a_long_sentence_is_whole(monkeypatch):
    """Each word as its window has it, and entities cross windows; also with the windows encoded in several calls."""
    tagger = tiny_global_pointer_task().span_model
    words = [*"今天下午三点在北京大学开会讨论学习的最新进展请大家准时参加"]
    batch = untagged(words, max_length=14)
    assert batch.size > 3
    assert batch.cu_words.tolist() == [0, len(words)]
    with torch.no_grad():
        states = torch.cat([tagger.encoder(window) for window in batch.split(1)])  # (T, H)
        expected = tagger.global_pointer(states[batch.word_starts])
        torch.testing.assert_close(tagger(batch), expected, rtol=0, atol=1e-4)
        monkeypatch.setattr("bertorch.encoder.classifier.WINDOWS_AT_ONCE", 2)
        torch.testing.assert_close(tagger(batch), expected, rtol=0, atol=1e-4)
        tagger.global_pointer.bounds.bias[:] = 50.0  # every span is an entity
        extents = tagger.decode(tagger(batch), batch).spans.extents
    assert (extents[:, 2] - extents[:, 1]).max() == len(words)


def test_outputs_are_fp32_under_autocast():
    task = global_pointer_task()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert task.outputs(entity_data(3).batch(np.arange(3))).dtype == torch.float32


def test_the_loss_is_a_mean_over_sentences():
    data, task = entity_data(6), global_pointer_task(**NO_DROPOUT)
    assert task.loss_weight(data, np.arange(6)) == 6
    whole = task.losses(data.batch(np.arange(6)))["loss"]
    parts = sum(task.losses(data.batch(np.array([number])))["loss"] for number in range(6))
    torch.testing.assert_close(whole, parts)


# Saved folders


@pytest.mark.parametrize("decoding", ["flat", "nested"])
def test_a_saved_folder_loads_back_with_one_call(decoding, tmp_path):
    task = tiny_global_pointer_task(decoding=decoding)
    save(task, tmp_path)
    loaded = load_trained(tmp_path)
    assert (loaded.head, loaded.span_model.decoding, loaded.span_model.head_size) == ("global_pointer", decoding, 16)
    assert list(loaded.label_names) == TAGS.types == loaded.span_model.tags.types
    assert loaded.span_model.tags.tags == TAGS.tags
    assert loaded.span_model.tags.scheme_name == "bios"
    batch = untagged(WORDS)
    with torch.no_grad():
        outputs = loaded.model(batch)
        assert torch.equal(outputs, task.model(batch))
        ours, theirs = (each.span_model.decode(outputs, batch, with_scores=True).spans for each in (loaded, task))
    assert torch.equal(ours.extents, theirs.extents)
    assert torch.equal(ours.scores, theirs.scores)
    assert loaded.usage() == task.usage()
    assert f"{decoding} decoding: entities" in loaded.usage()[1]


def test_a_saved_folder_opens_in_auto_model(tmp_path, caplog):
    task = tiny_global_pointer_task()
    save(task, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert config["id2label"] == {str(index): type_ for index, type_ in enumerate(TAGS.types)}
    encoder, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    inputs = AutoTokenizer.from_pretrained(tmp_path)(WORDS, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**inputs).last_hidden_state[0, 1:-1]
        torch.testing.assert_close(
            task.span_model.global_pointer(hidden), task.model(untagged(WORDS)), rtol=0, atol=1e-4
        )


def edit(path, change) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["bertorch"].pop("head_size"), "expected a folder saved by run_ner.py, got a config.json without"),
        (lambda c: c["bertorch"].update(head_size="wide"), "head_size: expected a whole number, got 'wide'"),
        (lambda c: c["bertorch"].update(head_size=17), "head_size: expected an even number, got 17"),
        (lambda c: c["bertorch"].update(head_size=8), "expected all weights|expected .*, got"),
        (lambda c: c["bertorch"].update(decoding="deep"), "decoding: expected one of .*, got 'deep'"),
        (lambda c: c["bertorch"].update(tags=["O", "B-ORG"]), "id2label: expected the types of its tags"),
        (lambda c: c["bertorch"].update(tags="O"), "expected a folder saved by run_ner.py, got a config.json without"),
        (lambda c: c["bertorch"].update(split="letters"), "split: expected one of .*, got 'letters'"),
        (lambda c: c.pop("tag_scheme"), "expected a folder saved by run_ner.py, got a config.json without tag_scheme"),
    ],
)
def test_a_damaged_folder_is_refused(change, message, tmp_path):
    save(tiny_global_pointer_task(), tmp_path)
    edit(tmp_path / "config.json", change)
    with pytest.raises(UserError, match=message):
        load_trained(tmp_path)


def test_a_folder_that_transformers_saved_anew_is_not_ours(tmp_path):
    """With a token classification head, whose labels are types, it is no tagger."""
    save(tiny_global_pointer_task(), tmp_path)
    assert is_own(str(tmp_path))
    edit(tmp_path / "config.json", lambda config: config.update(architectures=["BertForTokenClassification"]))
    assert not is_own(str(tmp_path))
    with pytest.raises(UserError):
        load_trained(tmp_path)


# Decoding


def test_auto_goes_by_the_training_data(log_lines):
    data = entity_data(8)  # with nested ones
    flat = replace(data, spans=np.stack([data.spans[:, 0], data.spans[:, 0] + 1, data.spans[:, 2]], axis=1))
    assert choose_decoding("auto", data) == "nested"
    assert choose_decoding("auto", flat) == choose_decoding("auto", Subset(flat, np.arange(3))) == "flat"
    assert "decoding: nested: some entities of the training data overlap" in log_lines[-3]
    assert "decoding: flat: no entities of the training data overlap" in log_lines[-2]
    assert choose_decoding("nested", flat) == "nested"
    assert choose_decoding("flat", flat) == "flat"
    assert len(log_lines) == 3
    assert choose_decoding("flat", data) == "flat"
    assert "--decoding flat: entities of the training data overlap" in log_lines[-1]


def test_flat_decoding_has_no_overlaps():
    """And each entity that it leaves out overlaps a better one."""
    task = global_pointer_task()
    task.model.eval()
    batch = entity_data(6).batch(np.arange(6))
    with torch.no_grad():
        task.span_model.global_pointer.bounds.bias[:] = 0.5
        outputs = task.outputs(batch)
        found = []
        for task.span_model.is_flat in (True, False):
            spans = task.span_model.decode(outputs, batch, with_scores=True).spans
            found.append(dict(zip(map(tuple, spans.extents.tolist()), spans.scores.tolist(), strict=True)))
    flat, every = found
    assert 1 < len(flat) < len(every)

    def overlap(one, other):
        return one[0] == other[0] and one != other and one[1] < other[2] and other[1] < one[2]

    assert not any(overlap(one, other) for one in flat for other in flat)
    for extent in every.keys() - flat.keys():
        assert any(overlap(extent, kept) or extent[:3] == kept[:3] for kept in flat if flat[kept] >= every[extent])


def test_without_scores_all_are_one():
    task = global_pointer_task()
    batch = entity_data(4).batch(np.arange(4))
    decoded = task.span_model.decode(task.outputs(batch).detach() + 9, batch)
    assert decoded.tags is None
    assert len(decoded.spans.scores)
    assert set(decoded.spans.scores.tolist()) == {1.0}


def test_it_has_no_probabilities_of_tags():
    task = global_pointer_task()
    batch = entity_data(2).batch(np.arange(2))
    for ask in (task.log_probabilities, partial(task.label_probabilities, batch=batch)):
        with pytest.raises(UserError, match="probabilities of tags, which GlobalPointerTagger does not have"):
            ask(task.outputs(batch))
