import pytest
import torch
from scipy import stats
from torch import nn

from bertorch.encoder.dropout import Dropout, dropped, with_fast_dropout
from tests.architectures import small_classifier


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
    with_fast_dropout(model)
    after = {name: module for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert before.keys() == after.keys()
    assert {type(module) for module in after.values()} == {Dropout}
    assert {name: module.p for name, module in after.items()} == {name: module.p for name, module in before.items()}
    assert model.state_dict().keys() == weights
