from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from bertorch.encoder import cpu_attention
from bertorch.encoder.attention import BlockLayout, FlashLayout, packed_attention, runs_flash
from bertorch.encoder.cpu import dropped
from bertorch.encoder.cpu_attention import CPULayout
from bertorch.encoder.encoder import layout_of
from tests.architectures import random_batch

LENGTHS = [3, 1, 7]
HEADS, SIZE = 4, 6


@pytest.fixture
def layout():
    return BlockLayout.of(random_batch(LENGTHS))


def states(heads: int) -> torch.Tensor:
    return torch.randn(
        1, heads, sum(LENGTHS), SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(heads)
    )


def plain_attention(query, key, value, *, scaling, window=None):
    """Softmax attention sentence by sentence, head by head, token by token."""
    group = query.shape[1] // key.shape[1]
    result = torch.zeros(1, sum(LENGTHS), query.shape[1], SIZE, dtype=query.dtype)
    start = 0
    for length in LENGTHS:
        for head in range(query.shape[1]):
            for i in range(start, start + length):
                seen = [j for j in range(start, start + length) if window is None or abs(i - j) < window]
                scores = torch.stack([query[0, head, i] @ key[0, head // group, j] * scaling for j in seen])
                weights = scores.softmax(0)
                result[0, i, head] = sum(w * value[0, head // group, j] for w, j in zip(weights, seen, strict=True))
        start += length
    return result


@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_equals_plain_attention_within_each_sentence(layout, key_heads, window):
    query, key, value = states(HEADS), states(key_heads), states(key_heads) + 1
    got, weights = packed_attention(
        torch.nn.Identity(), query, key, value, None, layout=layout, scaling=0.3, sliding_window=window
    )
    assert weights is None
    torch.testing.assert_close(got, plain_attention(query, key, value, scaling=0.3, window=window))


def test_pad_and_unpad(layout):
    packed = torch.arange(1, 12)
    block = layout.pad(packed, -1)
    assert block.tolist() == [[1, 2, 3, -1, -1, -1, -1], [4, -1, -1, -1, -1, -1, -1], [5, 6, 7, 8, 9, 10, 11]]
    assert layout.mask.tolist() == (block > 0).tolist()
    assert torch.equal(layout.unpad(block), packed)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("lengths", [[2, 1], [3, 3], [3]])
def test_max_seqlen_may_be_a_loose_bound(lengths, window):
    """Also where a tight one leaves no padding at all."""
    batch = random_batch(lengths)
    tight, loose = BlockLayout.of(batch), BlockLayout.of(replace(batch, max_seqlen=5))
    assert (tight.is_full, loose.is_full) == (len(set(lengths)) == 1, False)
    query = torch.randn(1, 2, sum(lengths), 4, generator=torch.Generator().manual_seed(0))
    results = [
        packed_attention(torch.nn.Identity(), query, query, query, None, layout=item, sliding_window=window)[0]
        for item in (tight, loose)
    ]
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_equals_plain_attention_within_each_sentence(flash, key_heads, window):
    layout = layout_of(random_batch(LENGTHS), torch.float64, SIZE)
    assert isinstance(layout, FlashLayout)
    query, key, value = states(HEADS), states(key_heads), states(key_heads) + 1
    got, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, layout=layout, scaling=0.3, sliding_window=window
    )
    torch.testing.assert_close(got, plain_attention(query, key, value, scaling=0.3, window=window))


@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_blocks_of_like_length_equal_plain_attention(groups, key_heads, window):
    """Their gradients too."""
    layout = layout_of(random_batch(LENGTHS), torch.float64, SIZE)
    assert isinstance(layout, CPULayout)
    assert [(block.sentences, block.length) for block in layout.blocks] == [(1, 7), (1, 3), (1, 1)]
    inputs = [states(heads).requires_grad_() for heads in (HEADS, key_heads, key_heads)]
    got, _ = packed_attention(torch.nn.Identity(), *inputs, None, layout=layout, scaling=0.3, sliding_window=window)
    expected = plain_attention(*inputs, scaling=0.3, window=window)
    torch.testing.assert_close(got, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gradient, exact in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, exact)


def test_sentences_of_like_length_share_a_block(groups):
    layout = CPULayout.of(random_batch([50, 9, 100, 75, 100, 40, 76]))
    assert [(block.sentences, block.length) for block in layout.blocks] == [(4, 100), (2, 50), (1, 9)]
    assert [len(block.slots) for block in layout.blocks] == [351, 90, 9]


@pytest.mark.parametrize("lengths", [[100, 110, 128, 120], [100, 128, 9, 120]])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_order_of_the_sentences_is_that_of_the_batch(lengths, dropout):
    """Whether they are one block or several, and wherever the longest stands."""
    layout = CPULayout.of(random_batch(lengths))
    assert len(layout.blocks) == len({length < 50 for length in lengths})
    query, key, value = torch.randn(3, 1, HEADS, sum(lengths), SIZE, generator=torch.Generator().manual_seed(0))
    got, _ = packed_attention(torch.nn.Identity(), query, key, value, None, layout=layout, dropout=dropout)
    options = {"layout": BlockLayout.of(random_batch(lengths)), "dropout": 0.0}
    expected, _ = packed_attention(torch.nn.Identity(), query, key, value, None, **options)
    if dropout:
        assert torch.nn.functional.cosine_similarity(got, expected, dim=-1).mean() > 0.9
    else:
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("seed", range(12))
def test_any_batch_has_the_attention_of_one_padded_block(seed):
    """Short and long ones, of similar lengths and of different ones, split or not; and the gradients."""
    random = np.random.default_rng(seed)
    for _ in range(4):
        longest = int(random.choice([3, 30, 150]))
        lengths = random.integers(max(1, int(longest * random.choice([0.01, 0.5, 0.8]))), longest + 1, 6).tolist()
        batch = random_batch(lengths)
        inputs = [torch.randn(1, 2, sum(lengths), 4, dtype=torch.float64).requires_grad_() for _ in range(3)]
        weights = torch.randn(1, sum(lengths), 2, 4, dtype=torch.float64)
        results = []
        for layout in (CPULayout.of(batch), BlockLayout.of(batch)):
            got, _ = packed_attention(torch.nn.Identity(), *inputs, None, layout=layout)
            results.append((got, *torch.autograd.grad((got * weights).sum(), inputs)))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)


def test_small_batches_are_one_block():
    assert len(CPULayout.of(random_batch([60, 10, 10])).blocks) == 1
    assert len(CPULayout.of(random_batch([60, 10, 10] * 6)).blocks) == 2


@pytest.fixture(params=["one block", "several blocks"])
def blocks(request, monkeypatch):
    """Attention on the CPU with a block, and with one for each length."""
    monkeypatch.setattr(cpu_attention, "SMALL_BLOCK", 0 if request.param == "several blocks" else 2**20)


@pytest.mark.parametrize("lengths", [LENGTHS, [4, 4]])
@pytest.mark.parametrize("window", [None, 3])
def test_a_weight_is_dropped_or_that_of_plain_attention_times_the_factor(blocks, lengths, window):
    """Each value is a unit vector, so that what a token attends to shows each of its weights."""
    torch.manual_seed(0)
    tokens, size = sum(lengths), max(lengths)
    batch = random_batch(lengths)
    query, key = torch.randn(2, 1, HEADS, tokens, size, dtype=torch.float64)
    value = torch.eye(size, dtype=torch.float64)[batch.position_ids].expand(1, HEADS, -1, -1)
    options = {"layout": CPULayout.of(batch), "scaling": 0.3, "sliding_window": window}
    plain, _ = packed_attention(torch.nn.Identity(), query, key, value, None, **options)
    seen = 0
    dropped = 0
    for _ in range(40):
        got, _ = packed_attention(torch.nn.Identity(), query, key, value, None, dropout=0.25, **options)
        torch.testing.assert_close(got[got != 0], plain[got != 0] / 0.75)
        seen += int((plain != 0).sum())
        dropped += int(((plain != 0) & (got == 0)).sum())
    assert stats.binomtest(dropped, seen, 0.25).pvalue > 1e-3


@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_the_gradient_with_dropout_is_that_of_the_result(blocks, key_heads, window):
    """By finite differences in random directions, with the same draws each time."""
    layout = CPULayout.of(random_batch(LENGTHS))
    inputs = [states(heads).requires_grad_() for heads in (HEADS, key_heads, key_heads)]

    def attended(query, key, value):
        torch.manual_seed(0)
        options = {"layout": layout, "scaling": 0.3, "sliding_window": window, "dropout": 0.25}
        return packed_attention(torch.nn.Identity(), query, key, value, None, **options)[0]

    assert torch.autograd.gradcheck(attended, inputs, fast_mode=True)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_sentence_that_is_not_finite_harms_no_other(blocks, dropout):
    """Wherever it stands; padding is none of its tokens."""
    batch = random_batch(LENGTHS)
    bounds = batch.bounds.tolist()
    for sentence, first in enumerate(bounds[:-1]):
        query, key, value = states(HEADS), states(2), states(2) + 1
        for tensor in (query, key, value):
            tensor[0, :, first] = torch.nan
        layout = CPULayout.of(batch)
        got, _ = packed_attention(torch.nn.Identity(), query, key, value, None, layout=layout, dropout=dropout)
        for other, (start, end) in enumerate(pairwise(bounds)):
            assert bool(got[0, start:end].isnan().any()) == (other == sentence)


def test_draws_are_saved_as_tensors_are(blocks):
    """So that recomputation, which frees what is saved for the gradient, frees them too."""
    saved = []
    layout = CPULayout.of(random_batch(LENGTHS))
    inputs = [states(HEADS).requires_grad_() for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.dtype), lambda _: None):
        attended, _ = packed_attention(torch.nn.Identity(), *inputs, None, layout=layout, dropout=0.1)
        assert saved.count(torch.int16) == len(layout.blocks)
        del saved[:]
        result = dropped(attended, 0.1)
    assert saved == [torch.int16]
    for node in (attended.grad_fn.next_functions[0][0], result.grad_fn):
        assert not [value for value in vars(node).values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_autocast_computes_attention_in_its_type(blocks, dropout):
    """Also where a rotation has made fp32 of queries and keys, and not of values."""
    layout = CPULayout.of(random_batch(LENGTHS))
    inputs = [states(HEADS).float().requires_grad_() for _ in range(3)]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            query, key, value = (
                tensor.to(kind) for tensor, kind in zip(inputs, (dtype, dtype, torch.bfloat16), strict=True)
            )
            got, _ = packed_attention(torch.nn.Identity(), query, key, value, None, layout=layout, dropout=dropout)
        assert got.dtype == torch.bfloat16
        results.append((got, *torch.autograd.grad(got.float().square().sum(), inputs)))
    for mixed, half in zip(*results, strict=True):
        assert torch.equal(mixed, half)


@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("kind", [BlockLayout, CPULayout])
def test_dropped_weights_are_scaled_so_that_the_mean_stays(kind, key_heads):
    """Over many draws, attention with dropout is attention without it, and so is its gradient."""
    draws, lengths = 3000, [3, 5]
    batch = random_batch(lengths * draws)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 8, SIZE, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, key_heads, key_heads)
    )
    expected, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, layout=kind.of(random_batch(lengths)), scaling=0.3
    )
    many = (tensor.repeat(1, 1, draws, 1) for tensor in (query, key, value))
    got, _ = packed_attention(torch.nn.Identity(), *many, None, layout=kind.of(batch), scaling=0.3, dropout=0.25)
    mean = got.view(draws, 8, HEADS, SIZE).mean(0)
    torch.testing.assert_close(mean, expected[0], rtol=0, atol=0.08)
    for of_mean, exact in zip(
        torch.autograd.grad(mean.square().sum(), (query, key, value)),
        torch.autograd.grad(expected.square().sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(of_mean, exact, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("multiple", [8, 128])
@pytest.mark.parametrize("kind", [BlockLayout, CPULayout, FlashLayout])
def test_filler_attends_to_itself_only(flash, kind, multiple):
    batch = random_batch(LENGTHS)
    filled = batch.filled(multiple)
    query = torch.randn(1, HEADS, len(filled.input_ids), SIZE, generator=torch.Generator().manual_seed(0))

    def attended(batch):
        layout = layout_of(batch, query.dtype, SIZE) if kind is FlashLayout else kind.of(batch)
        rows = query[:, :, : len(batch.input_ids)]
        return packed_attention(torch.nn.Identity(), rows, rows, rows, None, layout=layout)[0]

    result = attended(filled)
    assert result.isfinite().all()
    torch.testing.assert_close(result[:, : sum(LENGTHS)], attended(batch))


def test_the_cpu_has_no_flash_attention():
    assert not runs_flash(torch.device("cpu"), torch.bfloat16, 64)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 20])
def test_flash_attention_and_its_gradient_are_those_of_the_block(dtype, window):
    """Each is within twice the rounding error that the block has in half precision itself."""
    lengths = [3, 128, 1, 77, 50]
    device = torch.device("cuda")
    batch = random_batch(lengths).filled(128).to(device)
    inputs = [
        torch.randn(1, 12, len(batch.input_ids), 64, device=device, requires_grad=True, dtype=torch.float64)
        for _ in range(3)
    ]
    flash = layout_of(batch, dtype, 64)
    assert isinstance(flash, FlashLayout)

    def result(layout, dtype):
        query, key, value = (tensor.to(dtype) for tensor in inputs)
        out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, layout=layout, sliding_window=window)
        kept = out[:, : sum(lengths)]  # what filler attends to is nobody's business
        return [kept.double(), *torch.autograd.grad(kept.double().square().sum(), inputs)]

    exact = result(BlockLayout.of(batch), torch.float64)
    in_half = result(BlockLayout.of(batch), dtype)
    for got, half, expected in zip(result(flash, dtype), in_half, exact, strict=True):
        assert (got - expected).abs().max() <= 2 * (half - expected).abs().max()


@pytest.mark.cuda
def test_flash_attention_drops_weights_with_the_probability_asked_for():
    """All values are 1 and all weights equal: what remains of a row is the share of weights kept, times 1 / (1 - p)."""
    batch = random_batch([128] * 8).to(torch.device("cuda"))
    query = torch.zeros(1, 12, 1024, 64, device="cuda", dtype=torch.bfloat16)
    value = torch.ones_like(query)
    layout = layout_of(batch, query.dtype, 64)
    out, _ = packed_attention(torch.nn.Identity(), query, query, value, None, layout=layout, dropout=0.25)
    rows = out[0, :, :, 0].float()
    assert rows.mean().item() == pytest.approx(1, abs=0.01)
    assert rows.std().item() == pytest.approx((0.25 / 0.75 / 128) ** 0.5, rel=0.1)
