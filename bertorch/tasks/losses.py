"""Losses as pure functions of embeddings, apart from encoding, gathering and chunking."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bertorch.precision import at_least_fp32


def in_batch_negatives_loss(
    embeddings: Tensor,
    text_ids: Tensor | None,
    *,
    margin: float,
    scale: float,
    symmetric: bool = False,
    local_rows: slice = slice(None),
) -> Tensor:
    """Cross-entropy that picks each anchor's positive among the positives and hard negatives of all rows.

    SimCSE is the case where anchor and positive are one sentence under two dropouts. Rows that share a text, on either
    side, are not negatives of each other; nor is a hard negative of a row that has its text as anchor or positive.

    References:
        Henderson et al., Efficient Natural Language Response Suggestion for Smart Reply, 2017 (in-batch negatives).
        Gao, Yao and Chen, SimCSE: Simple Contrastive Learning of Sentence Embeddings, EMNLP 2021.

    Args:
        embeddings: (M, S, E): anchor, positive and S-2 hard negatives of each of M rows.
        text_ids: (M, S) int64, equal for equal texts; None lets duplicates count as negatives.
        margin: subtracted from the cosine of anchor and own positive.
        scale: the inverse of the temperature, by which cosines are multiplied.
        symmetric: also pick each positive's anchor among all anchors, and take the mean of both losses.
        local_rows: the m rows whose losses are summed; each process sums those of its own, over the candidates of all.

    Returns:
        Scalar, the loss summed over `local_rows`, in fp32 at least.
    """
    if text_ids is None:  # as if no text came twice
        text_ids = torch.arange(embeddings[..., 0].numel(), device=embeddings.device).view(embeddings.shape[:2])
    rows = torch.arange(len(embeddings), device=embeddings.device)  # (M,)
    targets = rows[local_rows]  # (m,), the index of each local row's own positive
    same_row = targets[:, None] == rows  # (m, M)
    same_text, same_text_as_hard = _shared_texts(text_ids, local_rows)  # (m, M), (m, M·(S-2))

    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(at_least_fp32(embeddings), dim=-1)  # (M, S, E)
        anchors, positives, hard = unit[:, 0], unit[:, 1], unit[:, 2:].flatten(0, 1)  # (M, E), (M, E), (M·(S-2), E)
        margins = margin * same_row.to(unit.dtype)  # (m, M)

        def logits(queries: Tensor, keys: Tensor) -> Tensor:
            cosines = queries[local_rows] @ keys.T  # (m, M)
            return ((cosines - margins) * scale).masked_fill(same_text & ~same_row, -torch.inf)

        hard_logits = (anchors[local_rows] @ hard.T * scale).masked_fill(same_text_as_hard, -torch.inf)  # (m, M·(S-2))
        candidates = torch.cat([logits(anchors, positives), hard_logits], dim=1)  # (m, M·(S-1))
        loss = F.cross_entropy(candidates, targets, reduction="sum")
        if symmetric:
            loss = (loss + F.cross_entropy(logits(positives, anchors), targets, reduction="sum")) / 2
        return loss


def _shared_texts(text_ids: Tensor, local_rows: slice) -> tuple[Tensor, Tensor]:
    """Whose anchor or positive is also that of a local row (m, M), and which hard negatives are one (m, M·(S-2))."""
    pairs, hard = text_ids[:, :2], text_ids[:, 2:].flatten()  # (M, 2) of anchor and positive, (M·(S-2),)
    local = pairs[local_rows]  # (m, 2)
    in_pair = local[:, :, None, None] == pairs  # (m, 2, M, 2)
    return in_pair.any(dim=3).any(dim=1), (local[:, :, None] == hard).any(dim=1)
