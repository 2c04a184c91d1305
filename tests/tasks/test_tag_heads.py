from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, AutoTokenizer

from bertorch.crf import CRF
from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.data.tags import TagSet
from bertorch.errors import UserError
from bertorch.tasks.tag_heads import CrfTagger, LinearTagger
from tests.architectures import (
    PACKED,
    PADDED,
    assert_same_gradients,
    batch_both_ways,
    small_tagging_model,
    tagged_batch,
)
from tests.conftest import TINY

LENGTHS = [4, 17, 2, 9]
HEADS = {"linear": LinearTagger, "crf": CrfTagger}
TAGS = TagSet(["O", "B-PER", "I-PER", "S-PER", "B-LOC"], "bios", "labels.txt")


@pytest.mark.parametrize("architecture", PACKED + PADDED)
def test_emissions_loss_and_gradients_are_those_of_the_padded_model(architecture):
    tagger = LinearTagger(small_tagging_model(architecture), TAGS).double().eval()
    tagger.crf = CRF(len(TAGS), learned=False)  # allows everything
    reference = small_tagging_model(architecture).double().eval()
    packed, inputs = batch_both_ways(reference, LENGTHS)
    batch = tagged_batch(packed)

    emissions = tagger(batch)
    logits = reference(**inputs).logits[inputs["attention_mask"].bool()]  # (T, C)
    expected = logits[batch.word_starts]
    torch.testing.assert_close(emissions, expected, rtol=0, atol=1e-12)

    tagger.loss(emissions, batch).backward()
    F.cross_entropy(expected, batch.labels, reduction="sum").backward()
    assert_same_gradients(tagger.model, reference)
    assert torch.equal(tagger.decode(emissions, batch).tags, expected.argmax(-1))


def test_the_crf_scores_the_sentences_apart():
    """The likelihood of a batch is the sum of that of its sentences, and so are the best tags."""
    torch.manual_seed(0)
    tagger = CrfTagger(small_tagging_model("bert"), TAGS).double().eval()
    packed, _ = batch_both_ways(tagger.model, LENGTHS)
    batch = tagged_batch(packed)
    emissions = tagger(batch)
    loss, best = 0.0, []
    for start, end in pairwise(batch.cu_words.tolist()):
        words = slice(start, end)
        alone = torch.tensor([0, end - start])
        loss -= tagger.crf.log_likelihood(emissions[words], batch.labels[words], alone, end - start).item()
        best += tagger.crf.viterbi(emissions[words], alone, end - start).tolist()
    assert tagger.loss(emissions, batch).item() == pytest.approx(loss, rel=1e-12)
    assert tagger.decode(emissions, batch).tags.tolist() == best


def test_weights_of_the_crf_stand_beside_those_of_the_model():
    linear, crf = (HEADS[head].from_pretrained(str(TINY), TAGS) for head in ("linear", "crf"))
    own = {"crf.start_transitions", "crf.end_transitions", "crf.transitions"}
    assert crf.weights.state_dict().keys() == linear.weights.state_dict().keys() | own
    assert linear.encoder_prefix == crf.encoder_prefix == "bert"
    assert linear.model.config.id2label == dict(enumerate(TAGS.tags))
    assert linear.model.config.architectures == ["BertForTokenClassification"]


@pytest.mark.parametrize("head", HEADS)
def test_it_decodes_what_the_scheme_allows(head):
    crf = HEADS[head].from_pretrained(str(TINY), TAGS).crf
    emissions = torch.full((3, 5), 0.0)
    emissions[:, TAGS.tags.index("I-PER")] = 9.0
    tags = crf.viterbi(emissions, torch.tensor([0, 3]), 3)
    assert TAGS.first_violation(tags.numpy()) is None
    assert not crf.constrain_training
    assert CrfTagger.from_pretrained(str(TINY), TAGS, constrain_training=True).crf.constrain_training


def test_the_linear_head_decodes_the_best_of_the_allowed_paths():
    """Among all sentences of four tags that the scheme allows, the one with the largest sum of emissions."""
    tagger = LinearTagger.from_pretrained(str(TINY), TAGS)
    emissions = torch.randn(4, 5, generator=torch.Generator().manual_seed(5)) * 3
    allowed = [path for path in product(range(5), repeat=4) if TAGS.first_violation(np.array(path)) is None]
    best = max(allowed, key=lambda path: sum(emissions[word, tag].item() for word, tag in enumerate(path)))
    assert best != tuple(emissions.argmax(1).tolist())
    batch = SimpleNamespace(cu_words=torch.tensor([0, 4]), max_words=4)
    assert tuple(tagger.decode(emissions, batch).tags.tolist()) == best


def test_a_long_sentence_is_tagged_by_the_windows_of_its_words(monkeypatch):
    """Each word as transformers' own model sees it in its window; also with the windows encoded in several calls."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    words = [*"今天下午三点在北京大学开会讨论", "reinforcement", "\u200b", *"学习的最新进展请大家准时参加"]
    data = TaggedDataset.of(tokenizer, TaggedSentences([words], [np.zeros(len(words), dtype=np.int64)]), max_length=14)
    torch.manual_seed(0)
    tagger = LinearTagger.from_pretrained(str(TINY), TAGS).eval()
    torch.manual_seed(0)
    reference = AutoModelForTokenClassification.from_pretrained(TINY, num_labels=5, dtype=torch.float32).eval()
    reference.load_state_dict(tagger.weights.state_dict())
    batch = data.batch(np.array([0]))
    assert batch.size > 3
    expected = []
    with torch.no_grad():
        for number, (start, end) in enumerate(
            zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True)
        ):
            logits = reference(input_ids=batch.input_ids[None, start:end]).logits[0]
            window = slice(data.word_offsets[number], data.word_offsets[number + 1])
            expected.append(logits[torch.from_numpy(data.word_starts[window])])
        emissions = tagger(batch)
        monkeypatch.setattr("bertorch.encoder.classifier.WINDOWS_AT_ONCE", 2)
        in_parts = tagger(batch)
    assert len(emissions) == len(words)
    torch.testing.assert_close(emissions, torch.cat(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(in_parts, emissions, rtol=0, atol=1e-5)


def test_emissions_are_fp32_under_autocast():
    tagger = LinearTagger(small_tagging_model("bert"), TAGS)
    packed, _ = batch_both_ways(tagger.model, LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tagger(tagged_batch(packed)).dtype == torch.float32


def test_a_model_that_is_no_encoder_is_refused():
    model = small_tagging_model("bros")  # wants the place of each token on a page
    with pytest.raises(UserError, match="expected an encoder with a token classification head.*Bros.*bbox"):
        LinearTagger(model, TAGS)


@pytest.mark.parametrize("head", HEADS)
def test_the_score_of_a_span_is_the_probability_of_its_tags(head):
    """Against all paths of the sentence, by enumeration in float64."""
    torch.manual_seed(0)
    tagger = HEADS[head](small_tagging_model("bert"), TAGS).double().eval()
    emissions = torch.randn(4, len(TAGS), dtype=torch.float64)
    emissions[range(4), [1, 2, 0, 3]] += 2  # B-PER I-PER O S-PER
    batch = SimpleNamespace(cu_words=torch.tensor([0, 4]), max_words=4)
    with torch.no_grad():
        (extents, scores), tags = tagger.decode(emissions, batch, with_scores=True)
        crf, words = tagger.crf, torch.arange(4)
        weights = {}
        for path in product(range(len(TAGS)), repeat=4):
            score = emissions[words, list(path)].sum() + crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
            weights[path] = (score + sum(crf.transitions[pair] for pair in pairwise(path))).exp().item()
    assert len(extents) > 1
    assert any(end - start > 1 for _, start, end, _ in extents.tolist())
    for (_, start, end, _), score in zip(extents.tolist(), scores.tolist(), strict=True):
        same = sum(w for path, w in weights.items() if list(path[start:end]) == tags[start:end].tolist())
        assert score == pytest.approx(same / sum(weights.values()), rel=1e-9)
