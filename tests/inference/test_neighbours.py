"""Against all cosines at once."""

import pytest
import torch
from torch.nn.functional import normalize

from bertorch.inference import neighbours
from bertorch.inference.neighbours import Neighbours


@pytest.mark.parametrize("count", [1, 4, 50])
@pytest.mark.parametrize("block", [3, 100])
def test_the_nearest_of_blocks_are_the_nearest_of_all(count, block, monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES_AT_ONCE", 4)
    torch.manual_seed(1)
    queries, corpus = normalize(torch.randn(11, 6)), normalize(torch.randn(37, 6))
    found = Neighbours(queries, count)
    for vectors in corpus.split(block):
        found.update(vectors)
    cosines, indices = (queries @ corpus.T).sort(dim=1, descending=True)
    torch.testing.assert_close(found.cosines, cosines[:, :count])
    assert torch.equal(found.indices, indices[:, :count])


def test_of_equally_near_ones_the_first_seen_stay():
    found = Neighbours(torch.tensor([[1.0, 0.0]]), 2)
    for _ in range(3):
        found.update(torch.tensor([[1.0, 0.0]]))
    assert found.indices.tolist() == [[0, 1]]
