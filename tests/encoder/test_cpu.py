import pytest
import torch
from scipy import stats
from torch import nn

from bertorch.encoder import cpu
from bertorch.encoder.cpu import Dropout, OneDnnLinear, dropped, use_fast_dropout, use_onednn, with_onednn
from bertorch.encoder.encoder import Encoder
from tests.architectures import PACKED, PADDED, batch_both_ways, random_batch, small_classifier, small_encoder

LENGTHS = [3, 17, 1, 9]
# One that the processor cannot do leaves the encoder as it is, which the tests of results do not ask for.
HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported() if torch.backends.mkldnn.is_available() else False


@pytest.mark.parametrize("probability", [1e-4, 0.1, 0.5, 0.9, 0.9999])
def test_drops_with_the_probability_asked_for_and_keeps_the_mean(probability):
    torch.manual_seed(0)
    size = 400_003  # no multiple of four
    result = dropped(torch.ones(size), probability)
    gone = int((result == 0).sum())
    assert stats.binomtest(gone, size, round(probability * 2**16) / 2**16).pvalue > 1e-3
    kept = result[result != 0]
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - probability), rel=0.2 if probability > 0.99 else 1e-4)


def test_elements_are_dropped_independently():
    """Each number serves four neighbours: no pair of places within it goes together."""
    torch.manual_seed(0)
    gone = (dropped(torch.ones(400_000), 0.3) == 0).view(-1, 8).double()
    correlations = torch.corrcoef(gone.T) - torch.eye(8)
    assert correlations.abs().max() < 5 / 50_000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (2, 1, 3)])
def test_keeps_shape_and_type_and_passes_the_gradient_of_what_is_kept(dtype, shape):
    torch.manual_seed(0)
    tensor = torch.ones(shape, dtype=dtype, requires_grad=True)
    result = dropped(tensor, 0.5)
    assert (result.shape, result.dtype) == (tensor.shape, dtype)
    result.sum().backward()
    assert torch.equal(tensor.grad, result.detach())


def test_the_seed_decides_what_is_dropped():
    layer = Dropout(0.5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(layer(torch.ones(100)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_and_everything(probability, expected):
    assert Dropout(probability)(torch.ones(100)).unique().tolist() == [expected]


def test_nothing_is_dropped_at_evaluation():
    assert torch.equal(Dropout(0.5).eval()(torch.ones(100)), torch.ones(100))


def test_takes_the_place_of_a_models_own_and_of_no_other():
    model = small_classifier("bert", hidden_dropout_prob=0.3)
    before = {name: module for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    weights = model.state_dict().keys()
    use_fast_dropout(model)
    after = {name: module for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert before.keys() == after.keys()
    assert {type(module) for module in after.values()} == {Dropout}
    assert {name: module.p for name, module in after.items()} == {name: module.p for name, module in before.items()}
    assert model.state_dict().keys() == weights


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
        monkeypatch.setattr(cpu.torch.ops, "mkldnn", object())
    elif fault == "refused":
        monkeypatch.setattr(OneDnnLinear, "forward", refused)
    else:
        monkeypatch.setattr(cpu, "OneDnnLinear", Wrong)
    encoder = Encoder(small_encoder("bert")).eval()
    batch = random_batch(LENGTHS)
    with torch.inference_mode():
        expected = encoder(batch)
        assert not use_onednn(encoder, torch.float32)
        assert kinds_in(encoder) == {torch.nn.Linear}
        assert torch.equal(encoder(batch), expected)


def test_weights_of_fp64_stay():
    encoder = Encoder(small_encoder("bert")).double().eval()
    assert use_onednn(encoder, torch.float32) is None
    assert kinds_in(encoder) == {torch.nn.Linear}


def test_what_is_done_is_not_tried_again(monkeypatch):
    encoder = Encoder(small_encoder("bert")).eval()
    assert use_onednn(encoder, torch.float32)
    monkeypatch.setattr(cpu, "trial_batch", None)
    with with_onednn([encoder], torch.float32):
        assert kinds_in(encoder) == {OneDnnLinear}
    assert kinds_in(encoder) == {OneDnnLinear}


def test_layers_are_replaced_meanwhile_only(monkeypatch):
    """Also where what is done meanwhile fails, and where they cannot be."""
    encoder = Encoder(small_encoder("bert")).eval()
    before = dict(encoder.named_modules())

    def is_as_before():
        after = dict(encoder.named_modules())
        return before.keys() == after.keys() and all(after[name] is module for name, module in before.items())

    with with_onednn([encoder], torch.float32):
        assert kinds_in(encoder) == {OneDnnLinear}
    assert is_as_before()
    with pytest.raises(ValueError, match="meanwhile"), with_onednn([encoder], torch.float32):
        raise ValueError("meanwhile")
    assert is_as_before()
    monkeypatch.setattr(cpu.torch.ops, "mkldnn", object())
    with with_onednn([encoder], torch.float32):
        assert is_as_before()
    assert is_as_before()
