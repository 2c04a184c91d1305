import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.training.hooks import ClipGradients, StopIfNotFinite
from bertorch.training.state import State, restore_parts
from bertorch.training.step import OptimizationStep
from tests.architectures import random_batch

CPU = torch.device("cpu")


class BagOfTokens(nn.Module):
    """A model small enough to work out by hand: the mean embedding of all tokens of a sentence is its logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 3, dtype=torch.float64)
        self.unused = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))

    def forward(self, batch):
        bounds = batch.cu_seqlens.tolist()
        hidden = self.embedding(batch.input_ids)
        return torch.stack([hidden[start:end].mean(0) for start, end in pairwise(bounds)])


def take_steps(batches, *, max_grad_norm=0.0, steps=1, loss_weight=None):
    model = BagOfTokens()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    def losses_of(batch):
        logits = model(batch)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        return {"loss": loss, "accuracy": (logits.argmax(-1) == batch.labels).sum()}

    step = OptimizationStep(
        model,
        losses_of,
        optimizer,
        scheduler,
        Precision.resolve("fp32", CPU),
        loss_parts=("loss", "accuracy"),
        hooks=[ClipGradients(max_grad_norm)] if max_grad_norm else [],
    )
    for _ in range(steps):
        reported = step(batches, label_count=sum(batch.size for batch in batches), loss_weight=loss_weight)
    return model, dict(zip(step.reports, reported.tolist(), strict=True))


def expected_step(batch, *, max_grad_norm=0.0):
    model = BagOfTokens()
    loss = F.cross_entropy(model(batch), batch.labels)
    (gradient,) = torch.autograd.grad(loss, [model.embedding.weight])
    norm = gradient.norm()
    if 0 < max_grad_norm < norm:
        gradient = gradient * (max_grad_norm / norm)
    weight = model.embedding.weight.detach()
    return weight - 0.5 * (gradient + 0.1 * weight), loss.item(), norm.item()


def test_the_loss_alone_is_divided_by_its_weight():
    """A weighted mean: of two batches with weights of 3 and 1.5 in all."""
    batches = [random_batch([3, 5, 2]), random_batch([4, 1])]
    model = BagOfTokens()
    sums = [F.cross_entropy(model(batch), batch.labels, reduction="sum") for batch in batches]
    expected = (sums[0] + sums[1]) / 4.5
    right = sum((model(batch).argmax(-1) == batch.labels).sum().item() for batch in batches)
    (gradient,) = torch.autograd.grad(expected, [model.embedding.weight])
    before = model.embedding.weight.detach()
    model, reported = take_steps(batches, loss_weight=4.5)
    assert reported["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert reported["accuracy"] == pytest.approx(right / 5)
    after = before - 0.5 * (gradient + 0.1 * before)
    torch.testing.assert_close(model.embedding.weight.detach(), after, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-3, 100.0])
def test_one_batch(max_grad_norm):
    batch = random_batch([3, 5, 2, 4, 1])
    weight, loss, norm = expected_step(batch, max_grad_norm=max_grad_norm)
    assert 1e-3 < norm < 100
    model, reported = take_steps([batch], max_grad_norm=max_grad_norm)
    torch.testing.assert_close(model.embedding.weight.detach(), weight, rtol=1e-5, atol=1e-9)
    assert reported["loss"] == pytest.approx(loss)
    assert reported["accuracy"] == pytest.approx(
        (BagOfTokens()(batch).argmax(-1) == batch.labels).double().mean().item()
    )


def test_uneven_batches_make_one_mean():
    """Three batches of 3, 2 and 1 sentences take the step of one batch of 6, not a mean of means."""
    whole = random_batch([3, 5, 2, 4, 1, 6])
    bounds = whole.cu_seqlens.numpy()
    parts = []
    for start, end in [(0, 3), (3, 5), (5, 6)]:
        part = random_batch(np.diff(bounds)[start:end].tolist())
        tokens = slice(bounds[start], bounds[end])
        parts.append(
            type(part)(
                input_ids=whole.input_ids[tokens],
                token_type_ids=whole.token_type_ids[tokens],
                position_ids=whole.position_ids[tokens],
                cu_seqlens=part.cu_seqlens,
                max_seqlen=part.max_seqlen,
                labels=whole.labels[start:end],
            )
        )
    weight, loss, _ = expected_step(whole)
    model, reported = take_steps(parts)
    torch.testing.assert_close(model.embedding.weight.detach(), weight, rtol=1e-12, atol=1e-12)
    assert reported["loss"] == pytest.approx(loss)


def test_a_parameter_that_the_loss_does_not_use_stays():
    """Also from weight decay, as in transformers, where it has no gradient."""
    model, _ = take_steps([random_batch([3, 5])], steps=3)
    assert torch.equal(model.unused, torch.ones(2, 2, dtype=torch.float64))


def test_fp16_leaves_out_a_step_that_overflows_and_counts_it():
    """The scaler's first factor, 65536, overflows fp32 with a loss of 1e38; half of it does not."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-39)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda steps: 1 / (1 + steps))
    size = torch.finfo(torch.float32).max / 40000

    def losses_of(batch):
        return {"loss": size * model.weight.sum()}

    hooks = [StopIfNotFinite("folder")]
    step = OptimizationStep(model, losses_of, optimizer, scheduler, Precision("fp16", "cpu"), hooks=hooks)

    before = model.weight.clone()
    norms = [step([random_batch([3])], label_count=1)[step.reports.index("gradient_norm")].item() for _ in range(2)]
    assert norms[0] == 0  # it tells nothing
    assert norms[1] == pytest.approx(size, rel=1e-6)
    assert step.overflows == 1
    assert step.rates == [1e-39 / 2]  # the schedule did not count it
    torch.testing.assert_close(model.weight, before - 1e-39 * size, rtol=1e-5, atol=0)


def test_its_state_brings_another_to_the_same_place():
    def fresh():
        model = BagOfTokens()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda steps: 1 / (1 + steps))

        def losses_of(batch):
            return {"loss": F.cross_entropy(model(batch), batch.labels)}

        return model, OptimizationStep(
            model, losses_of, optimizer, scheduler, Precision("fp32", "cpu"), hooks=[ClipGradients(1.0)]
        )

    def take(step):
        step([random_batch([3, 5, 2])], label_count=3)

    model, step = fresh()
    for _ in range(3):
        take(step)
    other_model, other = fresh()
    other_model.load_state_dict(model.state_dict())
    states = {name: part.state() for name, part in step.parts().items()}
    restore_parts(
        other.parts(), {name: State(*state[:1], json.loads(json.dumps(state.values))) for name, state in states.items()}
    )
    assert other.rates == step.rates == [0.1 / 4]
    take(step)
    take(other)
    assert torch.equal(model.embedding.weight, other_model.embedding.weight)


def test_auto_is_fp32_on_the_cpu():
    assert Precision.resolve("auto", CPU) == Precision("fp32", "cpu")


def test_bf16_runs_the_matrix_products_in_bf16_and_keeps_fp32_weights():
    layer = nn.Linear(2, 2)
    with Precision.resolve("bf16", CPU).autocast():
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match="--precision fp16 needs a CUDA GPU, got cpu"):
        Precision.resolve("fp16", CPU)
