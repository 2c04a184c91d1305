from dataclasses import replace

import pytest
import torch

from bertorch.models.attention import BlockLayout, packed_attention
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


def test_max_seqlen_may_be_a_loose_bound():
    batch = random_batch([2, 1])
    tight, loose = BlockLayout.of(batch), BlockLayout.of(replace(batch, max_seqlen=5))
    query = torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    results = [
        packed_attention(torch.nn.Identity(), query, query, query, None, layout=item)[0] for item in (tight, loose)
    ]
    torch.testing.assert_close(results[0], results[1])
