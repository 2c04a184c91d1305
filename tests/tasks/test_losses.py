"""The contrastive loss against plain Python loops over rows and candidates."""

import math

import pytest
import torch

from bertorch.tasks.losses import in_batch_negatives_loss

MARGIN, SCALE = 0.2, 20.0


def cosine(u: list[float], v: list[float]) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True)) / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))


def cross_entropy(positive: float, others: list[float]) -> float:
    return math.log(sum(math.exp(logit - positive) for logit in [positive, *others]))


def expected_losses(embeddings, texts, *, symmetric=False) -> list[float]:
    """The loss of every row; `texts` None lets every other row count."""
    rows = embeddings.tolist()
    total, width = len(rows), len(rows[0])
    losses = []
    for i in range(total):
        anchor, positive = rows[i][0], rows[i][1]
        others = []
        others_of_positive = []
        for j in range(total):
            if j != i and (texts is None or not set(texts[i][:2]) & set(texts[j][:2])):
                others.append(SCALE * cosine(anchor, rows[j][1]))
                others_of_positive.append(SCALE * cosine(positive, rows[j][0]))
        others += [
            SCALE * cosine(anchor, rows[j][k])
            for j in range(total)
            for k in range(2, width)
            if texts is None or texts[j][k] not in texts[i][:2]
        ]
        own = SCALE * (cosine(anchor, positive) - MARGIN)
        loss = cross_entropy(own, others)
        losses.append((loss + cross_entropy(own, others_of_positive)) / 2 if symmetric else loss)
    return losses


def random_embeddings(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


DUPLICATES = {
    "no text twice": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "an anchor twice": [[0, 1], [2, 3], [0, 5], [6, 7]],
    "a positive twice": [[0, 1], [2, 1], [4, 5], [6, 7]],
    "an anchor is another row's positive": [[0, 1], [2, 0], [4, 5], [6, 4]],
    "a row twice": [[0, 1], [2, 3], [0, 1], [0, 1]],
    "a text paired with itself": [[0, 0], [0, 3], [4, 4], [6, 7]],
    "one hard negative": [[0, 1, 8], [2, 3, 9], [4, 5, 10], [6, 7, 11]],
    "two hard negatives": [[0, 1, 8, 9], [2, 3, 9, 8], [4, 5, 10, 12], [6, 7, 11, 13]],
    "a hard negative is another row's text": [[0, 1, 3], [2, 3, 4], [4, 5, 10], [2, 7, 0]],
    "a hard negative is its own row's text": [[0, 1, 0], [2, 3, 3], [4, 5, 10], [6, 7, 11]],
    "all rows the same": [[0, 1], [0, 1], [1, 0], [0, 1]],
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("texts", DUPLICATES.values(), ids=DUPLICATES)
def test_the_loss_is_that_of_plain_loops(texts, symmetric):
    embeddings = random_embeddings(4, len(texts[0]), 3)
    for given, expected_texts in ((torch.tensor(texts), texts), (None, None)):
        loss = in_batch_negatives_loss(embeddings, given, margin=MARGIN, scale=SCALE, symmetric=symmetric)
        expected = sum(expected_losses(embeddings, expected_texts, symmetric=symmetric))
        assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_process_sums_its_own_rows(symmetric):
    texts = DUPLICATES["a hard negative is another row's text"]
    embeddings = random_embeddings(4, 3, 5)
    expected = expected_losses(embeddings, texts, symmetric=symmetric)
    for local_rows in (slice(0, 1), slice(1, 4), slice(2, 2)):
        loss = in_batch_negatives_loss(
            embeddings, torch.tensor(texts), margin=MARGIN, scale=SCALE, symmetric=symmetric, local_rows=local_rows
        )
        assert loss.item() == pytest.approx(sum(expected[local_rows]), rel=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients(symmetric):
    """Against finite differences, with duplicates left out, whose logits are -inf."""
    texts = torch.tensor(DUPLICATES["a hard negative is another row's text"])
    embeddings = random_embeddings(4, 3, 5).requires_grad_()
    settings = {"margin": MARGIN, "scale": SCALE, "symmetric": symmetric, "local_rows": slice(1, 4)}
    assert torch.autograd.gradcheck(lambda rows: in_batch_negatives_loss(rows, texts, **settings), embeddings)


def test_a_row_alone_has_no_loss_and_no_gradient():
    embeddings = random_embeddings(1, 2, 5).requires_grad_()
    loss = in_batch_negatives_loss(embeddings, torch.tensor([[0, 1]]), margin=MARGIN, scale=SCALE, symmetric=True)
    loss.backward()
    assert loss.item() == 0
    assert (embeddings.grad == 0).all()


def test_scale_zero_tells_nothing_apart():
    texts = torch.tensor(DUPLICATES["a row twice"])
    loss = in_batch_negatives_loss(random_embeddings(4, 2, 5), texts, margin=MARGIN, scale=0.0)
    assert loss.item() == pytest.approx(math.log(2) * 3 + math.log(4))


def test_half_precision_embeddings_are_compared_in_fp32():
    """Also under autocast: a bf16 cosine times 20 is off by 0.1."""
    embeddings = random_embeddings(16, 2, 64).bfloat16()
    texts = torch.arange(32).view(16, 2)
    expected = in_batch_negatives_loss(embeddings.double(), texts, margin=MARGIN, scale=SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = in_batch_negatives_loss(embeddings, texts, margin=MARGIN, scale=SCALE)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
