import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from bertorch.encoder.encoder import Encoder, ModelInputs
from bertorch.encoder.pretrained import load_pretrained, load_tokenizer
from bertorch.errors import UserError
from tests.architectures import (
    PACKED,
    PADDED,
    assert_same_gradients,
    batch_both_ways,
    random_batch,
    small_encoder,
    tiny_config,
)
from tests.conftest import TINY

LENGTHS = [3, 17, 1, 9]  # 17 is more than ModernBERT's window here


def assert_same_results(encoder, hidden, reference, inputs):
    """Hidden states and gradients are those of transformers' own padded model."""
    expected = reference(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-12)
    weights = torch.randn(hidden.shape, dtype=hidden.dtype, generator=torch.Generator().manual_seed(2))
    (hidden * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_same_gradients(encoder.model, reference)


@pytest.mark.parametrize("architecture", PACKED + PADDED)
def test_hidden_states_and_gradients_are_those_of_the_padded_model(architecture):
    encoder = Encoder(small_encoder(architecture)).double().eval()
    reference = small_encoder(architecture).double().eval()
    batch, inputs = batch_both_ways(reference, LENGTHS)
    assert encoder.packed == (architecture in PACKED)

    assert_same_results(encoder, encoder(batch), reference, inputs)


@pytest.mark.parametrize("kind", ["flash", "groups"])
@pytest.mark.parametrize("architecture", PACKED)
def test_also_through_other_attention_and_with_filler(kind, architecture, request):
    request.getfixturevalue(kind)
    encoder = Encoder(small_encoder(architecture)).double().eval()
    reference = small_encoder(architecture).double().eval()
    batch, inputs = batch_both_ways(reference, LENGTHS)
    assert encoder.packed

    assert_same_results(encoder, encoder(batch.filled(16))[: sum(LENGTHS)], reference, inputs)


@pytest.mark.slow
def test_one_compiled_graph_serves_batches_of_all_sizes(flash):
    """With a backend that only traces; what it cannot trace in one piece is an error."""
    encoder, reference = (Encoder(small_encoder("bert")).eval() for _ in range(2))
    counters = torch._dynamo.utils.counters
    torch.compiler.reset()
    encoder.model.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    before = counters["stats"]["unique_graphs"]
    for lengths in (LENGTHS, [5, 6, 7, 8, 20], [30, 2], [11] * 6):
        batch = random_batch(lengths).filled(16)
        hidden = encoder(batch)
        torch.testing.assert_close(hidden, reference(batch))
        hidden.sum().backward()
    assert counters["stats"]["unique_graphs"] == before + 1
    torch.compiler.reset()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_a_sentence_does_not_see_its_neighbours(architecture):
    encoder = Encoder(small_encoder(architecture)).eval()
    together = encoder(random_batch(LENGTHS))
    alone = encoder(random_batch(LENGTHS[:2]))
    torch.testing.assert_close(together[: sum(LENGTHS[:2])], alone)


@pytest.mark.parametrize("architecture", PADDED)
def test_a_padded_model_says_so_once(architecture, log_lines):
    encoder = Encoder(small_encoder(architecture))
    encoder(random_batch(LENGTHS))
    encoder(random_batch(LENGTHS))
    assert len([line for line in log_lines if "padded inside" in line]) == 1


@pytest.mark.parametrize("kind", ["block", "groups", "flash"])
def test_attention_dropout_acts_in_training_only(kind, request):
    if kind != "block":
        request.getfixturevalue(kind)
    model = small_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    encoder, batch = Encoder(model), random_batch(LENGTHS)
    encoder.train()
    assert not torch.equal(encoder(batch), encoder(batch))
    encoder.eval()
    assert torch.equal(encoder(batch), encoder(batch))


@pytest.mark.parametrize(
    ("architecture", "positions"), [("bert", 40), ("roberta", 38), ("mpnet", 38), ("roformer", 40), ("nomic_bert", 40)]
)
def test_positions_of_a_model(architecture, positions):
    """RoBERTa's family has `pad_token_id + 1` = 2 rows in its table that no token uses."""
    encoder = Encoder(small_encoder(architecture, max_position_embeddings=40))
    assert encoder.max_length == positions
    encoder.require_positions(positions)
    with pytest.raises(UserError, match=f"--max_seq_length {positions + 1}: expected at most {positions}"):
        encoder.require_positions(positions + 1)


@pytest.mark.parametrize(
    ("architecture", "positions"), [("ibert", 38), ("mra", 40), ("nystromformer", 40), ("yoso", 40), ("big_bird", 40)]
)
def test_spare_rows_and_quantised_tables_are_no_positions(architecture, positions):
    inputs = ModelInputs.of(AutoModel.from_config(tiny_config(architecture, max_position_embeddings=40)))
    assert inputs.max_length == positions


def test_sparse_attention_is_refused_beyond_the_length_it_starts_at():
    """Up to (5 + 2 · random blocks) · block size tokens, BigBird attends to all tokens, as it does alone."""
    encoder = Encoder(AutoModel.from_config(tiny_config("big_bird")))
    encoder.require_positions(56)
    with pytest.raises(UserError, match="--max_seq_length 57: expected at most 56"):
        encoder.require_positions(57)
    full = Encoder(AutoModel.from_config(tiny_config("big_bird", attention_type="original_full")))
    full.require_positions(512)


def test_half_precision_weights_load_as_fp32(tmp_path):
    small_encoder("bert").half().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    model = load_pretrained(AutoModel, str(tmp_path))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[name].float())


def test_fresh_weights_are_named(log_lines, tmp_path):
    model = AutoModel.from_pretrained(TINY)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pooler")}
    model.save_pretrained(tmp_path, state_dict=weights)
    load_pretrained(AutoModel, str(tmp_path))
    assert any("start fresh: pooler.dense.bias, pooler.dense.weight" in line for line in log_lines)


def test_a_missing_model_is_explained(tmp_path):
    with pytest.raises(UserError, match="--pretrained_model_name_or_path .*nowhere: expected a model"):
        load_pretrained(AutoModel, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="--pretrained_model_name_or_path"):
        load_tokenizer(str(tmp_path))


def test_fresh_linear_layers_are_drawn_by_their_shape(tmp_path):
    """Glorot and Bengio, 2010: uniform in ±√(6 / (in + out))."""
    small_encoder("bert").save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = load_pretrained(AutoModelForSequenceClassification, str(tmp_path), num_labels=16)
    bound = math.sqrt(6 / (32 + 16))
    assert 0.9 * bound < model.classifier.weight.abs().max() <= bound
    assert (model.classifier.bias == 0).all()
    assert model.bert.pooler.dense.weight.std() < 0.03  # not fresh: as it was saved
