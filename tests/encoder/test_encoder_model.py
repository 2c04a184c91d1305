"""Recomputed activations: the same gradients in less memory."""

import pytest
import torch

from bertorch.data.batch import PackedBatch
from bertorch.encoder.classifier import SequenceClassifier, TokenClassifier
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.pretrained import ENCODER_DROPOUTS
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.tasks.contrastive import encode_in_chunks
from bertorch.tasks.sentence_bert import SiameseClassifier
from tests.architectures import (
    PACKED,
    PADDED,
    random_batch,
    small_classifier,
    small_config,
    small_encoder,
    small_tagging_model,
    tagged_batch,
)

UNSUPPORTED = ("albert", "mpnet")
SUPPORTED = [name for name in PACKED + PADDED if name not in UNSUPPORTED]
BATCH = random_batch([3, 17, 1, 9], token_types=1)


def with_dropout(architecture: str) -> SentenceEncoder:
    config = small_config(architecture)
    dropout = {name: 0.3 for name in ENCODER_DROPOUTS if hasattr(config, name)}
    return SentenceEncoder(small_encoder(architecture, **dropout), "mean")


def gradients(
    model: EncoderModel, batch: PackedBatch = BATCH, *, precision: str = "fp32", chunk: int | None = None, seed: int = 4
) -> tuple[dict[str, torch.Tensor], int]:
    """Of a training pass from this random state, and how many bytes autograd keeps for the backward pass."""
    device = next(model.parameters()).device
    model.train()
    model.zero_grad()
    torch.manual_seed(seed)
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        Precision(precision, device.type).autocast(),
    ):
        outputs = encode_in_chunks(model, batch.to(device), chunk)
    forward_only = kept
    outputs.square().sum().backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return found, forward_only


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert torch.equal(gradient, other[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", SUPPORTED)
def test_the_same_gradients_with_dropout_in_less_memory(architecture, precision):
    model = with_dropout(architecture)
    expected, kept = gradients(model, precision=precision)
    model.recompute_activations()
    got, kept_now = gradients(model, precision=precision)
    assert_same(got, expected)
    assert kept_now < kept / 4
    other, _ = gradients(model, precision=precision, seed=5)
    assert any(not torch.equal(other[name], gradient) for name, gradient in got.items())


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", SUPPORTED)
def test_the_same_dropout_on_a_gpu(architecture, precision):
    model = with_dropout(architecture).cuda()
    expected, _ = gradients(model, precision=precision)
    model.recompute_activations()
    got, _ = gradients(model, precision=precision)
    # The bias of keys has no gradient but rounding errors, since softmax takes no notice of it.
    noise = 1e-9 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        atol = noise + 1e-3 * gradient.abs().max().item()
        torch.testing.assert_close(got[name], gradient, rtol=1e-2, atol=atol, msg=name)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "roformer"])
def test_within_gradient_caching(architecture):
    """A chunk that runs again runs its layers yet again."""
    model = with_dropout(architecture)
    expected, kept = gradients(model, chunk=2)
    model.recompute_activations()
    got, kept_now = gradients(model, chunk=2)
    assert_same(got, expected)
    assert kept_now <= kept


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda: SequenceClassifier(small_classifier("bert")), BATCH),
        (lambda: SiameseClassifier(SentenceEncoder(small_encoder("bert"), "cls"), num_labels=2), BATCH),
        (lambda: TokenClassifier(small_tagging_model("bert")), tagged_batch(BATCH)),
    ],
    ids=["classifier", "sentence-bert", "tagger"],
)
def test_every_model_finds_its_encoder(make, batch):
    model = make()
    expected, kept = gradients(model, batch)
    model.recompute_activations()
    got, kept_now = gradients(model, batch)
    assert_same(got, expected)
    assert kept_now < kept / 2


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_an_evaluation_runs_each_layer_once(architecture, monkeypatch):
    model = with_dropout(architecture).eval()
    with torch.inference_mode():
        expected = model(BATCH)
    model.recompute_activations()
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            monkeypatch.setattr(module, "_gradient_checkpointing_func", None)
    with torch.inference_mode():
        assert torch.equal(model(BATCH), expected)


@pytest.mark.parametrize("architecture", UNSUPPORTED)
def test_a_model_that_cannot_is_named(architecture):
    model = SentenceEncoder(small_encoder(architecture), "mean")
    name = type(model.encoder.model).__name__
    with pytest.raises(UserError, match=f"--gradient_checkpointing: expected a model whose layers .*, got {name}; "):
        model.recompute_activations()
