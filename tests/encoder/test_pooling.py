import pytest
import torch

from bertorch.config import POOLING_MODES
from bertorch.encoder import pooling
from tests.architectures import random_batch, small_encoder

LENGTHS = [3, 1, 6]


@pytest.fixture
def hidden():
    return torch.randn(sum(LENGTHS), 8, generator=torch.Generator().manual_seed(0))


def test_cls_is_the_first_token(hidden):
    assert torch.equal(pooling.cls(hidden, random_batch(LENGTHS)), torch.stack([hidden[0], hidden[3], hidden[4]]))


def test_mean_is_over_all_tokens_of_the_sentence(hidden):
    expected = torch.stack([hidden[:3].mean(0), hidden[3], hidden[4:].mean(0)])
    torch.testing.assert_close(pooling.mean(hidden, random_batch(LENGTHS)), expected)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize(
    ("mode", "pooled"),
    [
        ("max", lambda tokens: tokens.max(0).values),
        ("mean_sqrt_len_tokens", lambda tokens: tokens.sum(0) / len(tokens) ** 0.5),
        ("weightedmean", lambda tokens: sum(i * row for i, row in enumerate(tokens, 1)) / sum(range(len(tokens) + 1))),
        ("lasttoken", lambda tokens: tokens[-1]),
    ],
)
def test_the_poolings_of_sentence_transformers(mode, pooled, filled, hidden):
    batch = random_batch(LENGTHS)
    expected = torch.stack([pooled(tokens) for tokens in hidden.double().split(LENGTHS)])
    if filled:
        batch = batch.filled(16)
        hidden = torch.cat([hidden, torch.full((16 - len(hidden), 8), 100.0)])
    got = pooling.POOLING[mode](None)(hidden.double(), batch)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ["bert", "ernie", "albert", "big_bird", "xlm-roberta"])
def test_the_pretrained_pooler_gives_the_models_pooler_output(architecture):
    model = small_encoder(architecture).eval()
    output = model(input_ids=torch.tensor([[5, 6, 7], [8, 9, 10]]))
    pooled = pooling.PretrainedPooler(model)(output.last_hidden_state[:, 0])
    torch.testing.assert_close(pooled, output.pooler_output)


def test_an_encoder_without_a_pooler_is_refused():
    with pytest.raises(ValueError, match="expected an encoder with a pooler, got DistilBertModel"):
        pooling.PretrainedPooler(small_encoder("distilbert"))


def test_a_mean_of_bf16_states_is_summed_in_fp32():
    """A running sum of 512 ones and a bit in bf16 would stop growing at 256."""
    states = torch.full((512, 1), 1.0078125, dtype=torch.bfloat16)
    pooled = pooling.mean(states, random_batch([512]))
    assert (pooled.dtype, pooled.item()) == (torch.float32, 1.0078125)


def test_every_pooling_of_the_options_exists():
    assert set(POOLING_MODES) <= pooling.POOLING.keys()
