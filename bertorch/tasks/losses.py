"""Losses as pure functions of embeddings; whatever encoded, gathered or chunked them is not their concern."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bertorch.precision import at_least_fp32


def in_batch_negatives_loss(
    embeddings: Tensor,
    texts: Tensor | None,
    *,
    margin: float,
    scale: float,
    symmetric: bool = False,
    local_rows: slice = slice(None),
) -> Tensor:
    """Cross-entropy that picks each anchor's positive among the positives and hard negatives of all rows.

    The similarity is the cosine; `margin` is subtracted from that of an anchor and its own positive, the result times
    `scale` is the logit. SimCSE is the case where anchor and positive are one sentence under two dropouts.

    Rows that share a text, on either side, are not negatives of each other: what looks like a negative there is a
    positive. Likewise a hard negative does not count against a row that has its text as anchor or positive.

    References:
        Henderson et al., Efficient Natural Language Response Suggestion for Smart Reply, 2017 (in-batch negatives).
        Gao, Yao and Chen, SimCSE: Simple Contrastive Learning of Sentence Embeddings, EMNLP 2021.

    Args:
        embeddings: (M, S, E): anchor, positive and S-2 hard negatives of each of M rows.
        texts: (M, S) int64, equal numbers for equal texts; None lets duplicates count as negatives.
        margin: subtracted from the cosine of anchor and own positive.
        scale: the inverse of the temperature.
        symmetric: also pick each positive's anchor among all anchors, and take the mean of both losses.
        local_rows: the rows whose losses are summed; on several processes each sums its own over the candidates of all.

    Returns:
        Scalar, the loss summed over the local rows, at least in fp32 whatever the type of `embeddings`.
    """
    rows = torch.arange(len(embeddings), device=embeddings.device)[local_rows]  # (m,)
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(at_least_fp32(embeddings), dim=-1)  # (M, S, E)
        anchors, positives, negatives = unit[:, 0], unit[:, 1], unit[:, 2:].flatten(0, 1)
        same_row = rows[:, None] == torch.arange(len(embeddings), device=rows.device)  # (m, M)
        margins = margin * same_row.to(unit.dtype)  # (m, M)
        excluded_rows, excluded_negatives = (None, None) if texts is None else _excluded(texts, rows, same_row)

        def logits(queries: Tensor, keys: Tensor) -> Tensor:
            return _without(excluded_rows, (queries @ keys.T - margins) * scale)  # (m, M)

        candidates = logits(anchors[local_rows], positives)  # (m, M)
        if len(negatives):
            hard = _without(excluded_negatives, anchors[local_rows] @ negatives.T * scale)  # (m, M·(S-2))
            candidates = torch.cat([candidates, hard], dim=1)
        loss = F.cross_entropy(candidates, rows, reduction="sum")
        if symmetric:
            loss = (loss + F.cross_entropy(logits(positives[local_rows], anchors), rows, reduction="sum")) / 2
        return loss


def _excluded(texts: Tensor, rows: Tensor, same_row: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows (m, M), and which hard negatives (m, M·(S-2)), do not count against each of `rows`."""
    pairs = texts[:, :2]  # (M, 2), anchor and positive
    own_pairs = pairs[rows]  # (m, 2)

    def has(own_text: Tensor, others: Tensor) -> Tensor:
        return own_text[:, None] == others  # (m, others)

    shares_text = torch.stack([has(own, other) for own in own_pairs.T for other in pairs.T]).any(dim=0)  # (m, M)
    negatives = texts[:, 2:].flatten()  # (M·(S-2),)
    is_own_text = has(own_pairs[:, 0], negatives) | has(own_pairs[:, 1], negatives)
    return shares_text & ~same_row, is_own_text


def _without(excluded: Tensor | None, logits: Tensor) -> Tensor:
    return logits if excluded is None else logits.masked_fill(excluded, -torch.inf)
