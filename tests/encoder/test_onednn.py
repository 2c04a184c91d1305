import pytest
import torch

from bertorch.encoder import onednn
from bertorch.encoder.encoder import Encoder
from bertorch.encoder.onednn import OneDnnLinear, use_onednn
from tests.architectures import PACKED, PADDED, batch_both_ways, random_batch, small_encoder

LENGTHS = [3, 17, 1, 9]
# One that the processor cannot do leaves the encoder as it is, which the tests of results do not ask for.
HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported() if torch.backends.mkldnn.is_available() else False


def kinds_in(encoder):
    return {type(module) for module in encoder.modules()} & {torch.nn.Linear, OneDnnLinear}


@pytest.mark.parametrize("architecture", PACKED + PADDED)
def test_hidden_states_are_those_of_the_padded_model(architecture):
    encoder = Encoder(small_encoder(architecture)).eval()
    reference = small_encoder(architecture).eval()
    batch, inputs = batch_both_ways(reference, LENGTHS)
    assert use_onednn(encoder, torch.float32)
    assert kinds_in(encoder) == {OneDnnLinear}
    with torch.inference_mode():
        expected = reference(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
        torch.testing.assert_close(encoder(batch), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not HAS_BF16, reason="a processor without bf16")
@pytest.mark.parametrize("architecture", PACKED)
def test_in_bf16_they_are_as_near_as_autocast_brings_them(architecture):
    encoder, reference = Encoder(small_encoder(architecture)).eval(), Encoder(small_encoder(architecture)).eval()
    batch = random_batch(LENGTHS)
    with torch.inference_mode():
        exact = reference(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert use_onednn(encoder, torch.bfloat16)
            plain, got = reference(batch), encoder(batch)
    assert got.dtype == plain.dtype
    assert 0 < (got - exact).square().mean() < 2 * (plain - exact).square().mean()


@pytest.mark.parametrize(("activation", "is_fused"), [("gelu", True), ("gelu_new", False), ("relu", False)])
def test_only_the_exact_gelu_is_taken_into_the_product(activation, is_fused):
    encoder = Encoder(small_encoder("bert", hidden_act=activation)).eval()
    batch = random_batch(LENGTHS)
    with torch.inference_mode():
        expected = encoder(batch)
        assert use_onednn(encoder, torch.float32)
        torch.testing.assert_close(encoder(batch), expected, rtol=0, atol=1e-5)
    intermediate = encoder.model.encoder.layer[0].intermediate
    assert isinstance(intermediate.intermediate_act_fn, torch.nn.Identity) == is_fused


@pytest.mark.parametrize("fault", ["missing", "refused", "wrong"])
def test_an_encoder_that_would_not_be_the_same_is_left_as_it_is(fault, monkeypatch):
    def refused(*_):
        raise RuntimeError("mkldnn_linear_pointwise: expected a processor with AVX-512")

    class Wrong(OneDnnLinear):
        def forward(self, input):  # noqa: A002
            return super().forward(input) * 1.01

    if fault == "missing":
        monkeypatch.setattr(onednn.torch.ops, "mkldnn", object())
    elif fault == "refused":
        monkeypatch.setattr(OneDnnLinear, "forward", refused)
    else:
        monkeypatch.setattr(onednn, "OneDnnLinear", Wrong)
    encoder = Encoder(small_encoder("bert")).eval()
    batch = random_batch(LENGTHS)
    with torch.inference_mode():
        expected = encoder(batch)
        assert not use_onednn(encoder, torch.float32)
        assert kinds_in(encoder) == {torch.nn.Linear}
        assert torch.equal(encoder(batch), expected)
