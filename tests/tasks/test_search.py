"""Against all scores at once, sorted with ties to the lower index."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from bertorch.tasks import search as module
from bertorch.tasks.search import METHODS, Nearest, best_of_rows, search


def expected(queries, corpus, count, excluded=()):
    """Indices and scores of each query, by plain loops."""
    scores = queries @ corpus.T
    rows = []
    for query, row in enumerate(scores.tolist()):
        kept = [index for index in range(len(row)) if (query, index) not in excluded]
        best = sorted(kept, key=lambda index: (-row[index], index))[:count]
        rows.append([(index, row[index]) for index in best])
    return rows


def as_rows(found):
    pairs = zip(found.indices.tolist(), found.scores.tolist(), strict=True)
    return [[(index, score) for index, score in zip(*row, strict=True) if index >= 0] for row in pairs]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 4)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", {"cpu": 20})


@pytest.fixture(params=METHODS)
def method(request):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    return request.param


def whole(rows, columns, seed):
    """Vectors whose products are small whole numbers, with many ties, and exact in any order."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-1, 2, (rows, columns))).float()


@pytest.mark.parametrize("count", [1, 4, 36, 37, 50])
@pytest.mark.parametrize("excluded", [0, 9, 200])
def test_ties_go_to_the_lower_index_whatever_the_blocks(count, excluded, method, small_blocks):
    for seed in range(5):
        queries, corpus = whole(11, 4, seed), whole(37, 4, seed + 100)
        pairs = np.random.default_rng(seed).integers(0, (11, 37), (excluded, 2))
        found = search(queries, corpus, count, excluded=torch.from_numpy(pairs), method=method)
        assert found.indices.shape == found.scores.shape == (11, min(count, 37))
        assert as_rows(found) == expected(queries, corpus, count, set(map(tuple, pairs.tolist())))
        assert ((found.indices < 0) == (found.scores == -torch.inf)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cells", [20, 2**22])
def test_blocks_change_nothing(dtype, cells, monkeypatch):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", {"cpu": cells})
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 20)
    torch.manual_seed(1)
    queries, corpus = (normalize(torch.randn(rows, 6, dtype=dtype)) for rows in (51, 437))
    found = search(queries, corpus, 10)
    scores, indices = (queries @ corpus.T).sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(found.scores, scores[:, :10])
    assert torch.equal(found.indices, indices[:, :10])


@pytest.mark.parametrize("block", [1, 3, 100])
def test_vectors_that_come_little_by_little(block, small_blocks):
    queries, corpus = whole(11, 4, 0), whole(37, 4, 1)
    nearest = Nearest(queries, 5)
    for vectors in corpus.split(block):
        nearest.update(vectors)
    assert as_rows(nearest.found) == expected(queries, corpus, 5)


@pytest.mark.parametrize(("numbers", "most"), [(2**28, 20), (12, 3), (2, 1)])
def test_few_queries_do_not_make_a_block_large(numbers, most, small_blocks, monkeypatch):
    """A block is copied to the device whole: with one query it may have no more numbers than is said."""
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", numbers)
    sizes = []
    compare = Nearest._compare
    monkeypatch.setattr(Nearest, "_compare", lambda self, block: (sizes.append(len(block)), compare(self, block)))
    queries, corpus = whole(1, 4, 0), whole(37, 4, 1)
    found = search(queries, corpus, 5, method="blocks")
    assert as_rows(found) == expected(queries, corpus, 5)
    assert (max(sizes), sum(sizes)) == (most, 37)


def test_vectors_that_are_all_alike(method):
    found = search(torch.ones(3, 2), torch.ones(50, 2), 4, method=method)
    assert found.indices.tolist() == [[0, 1, 2, 3]] * 3


def test_no_vectors_have_no_results():
    assert search(torch.ones(3, 2), torch.ones(0, 2), 4).indices.shape == (3, 0)
    assert search(torch.ones(0, 2), torch.ones(3, 2), 2).indices.shape[0] == 0


def test_a_result_of_each_query_is_the_least():
    with pytest.raises(ValueError, match="expected at least one result of each query, got 0"):
        search(torch.ones(3, 2), torch.ones(5, 2), 0)


def test_the_best_of_a_row_with_a_tie_at_its_end():
    found = best_of_rows(torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]]), 2)
    assert found.indices.tolist() == [[1, 0], [3, 0]]


@pytest.mark.parametrize(("limit", "installed", "expected"), [
    (0, True, "faiss"), (0, False, "blocks"), (10**10, True, "blocks"),
])  # fmt: skip
def test_faiss_is_for_large_searches_where_it_is_installed(limit, installed, expected, monkeypatch):
    monkeypatch.setattr(module, "FAISS_BEYOND", limit)
    monkeypatch.setattr(module, "find_spec", lambda name: installed or None)
    used = []
    for name in METHODS:
        monkeypatch.setitem(METHODS, name, lambda *_, name=name: used.append(name))
    search(torch.ones(3, 2), torch.ones(5, 2), 1)
    search(torch.ones(3, 2).double(), torch.ones(5, 2).double(), 1)  # which faiss has not
    assert used == [expected, "blocks"]
