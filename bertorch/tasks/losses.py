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
        embeddings: (M, S, E), anchor, positive and S-2 hard negatives of each of M rows.
        text_ids: (M, S) int64, equal for equal texts; None lets duplicates count as negatives.
        margin: subtracted from the cosine of anchor and own positive.
        scale: the inverse of the temperature, by which cosines are multiplied.
        symmetric: also pick each positive's anchor among all anchors, and take the mean of both losses.
        local_rows: the m rows whose losses are summed; each process sums those of its own, over the candidates of all.

    Returns:
        Scalar, the loss summed over `local_rows`, in fp32 at least.
    """
    rows = torch.arange(len(embeddings), device=embeddings.device)  # (M,)
    targets = rows[local_rows]  # (m,), the index of each local row's own positive
    same_row = targets[:, None] == rows  # (m, M)
    excluded, excluded_hard = (None, None) if text_ids is None else _excluded(text_ids, local_rows, same_row)

    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(at_least_fp32(embeddings), dim=-1)  # (M, S, E)
        anchors, positives, hard = unit[:, 0], unit[:, 1], unit[:, 2:].flatten(0, 1)  # (M, E), (M, E), (M·(S-2), E)
        margins = margin * same_row.to(unit.dtype)  # (m, M)

        def logits(queries: Tensor, keys: Tensor) -> Tensor:
            cosines = queries[local_rows] @ keys.T  # (m, M)
            return _without(excluded, (cosines - margins) * scale)

        candidates = logits(anchors, positives)  # (m, M)
        if len(hard):
            hard_logits = _without(excluded_hard, anchors[local_rows] @ hard.T * scale)  # (m, M·(S-2))
            candidates = torch.cat([candidates, hard_logits], dim=1)  # (m, M·(S-1))
        loss = F.cross_entropy(candidates, targets, reduction="sum")
        if symmetric:
            loss = (loss + F.cross_entropy(logits(positives, anchors), targets, reduction="sum")) / 2
        return loss


def twin_divergence(log_probabilities: Tensor, twins: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ KL(p‖q) + KL(q‖p) over pairs of rows p and q, with gradient to both; the sum over C is part of each KL.

    References:
        Liang et al., R-Drop: Regularized Dropout for Neural Networks, NeurIPS 2021.

    Args:
        log_probabilities: (R, C), of the rows of all pairs; several distributions end to end add up.
        twins: (R,) int64, the index of each row's partner; a row that is its own adds nothing.
        weights: (R,), by which a row's divergence from its partner is multiplied; None: 1.

    Returns:
        Scalar, in fp32 at least.
    """
    log_p = at_least_fp32(log_probabilities)  # (R, C)
    log_q = log_p.index_select(0, twins)  # (R, C)
    divergences = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # (R,), of each pair twice, once from either side
    return (divergences if weights is None else divergences * weights.to(divergences)).sum()


def teacher_divergence(log_probabilities: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·Σ KL(p‖q) of the distributions p = softmax(teacher/T) and q = softmax(log_probabilities/T), over N examples.

    T² keeps the size of the gradient, which falls with 1/T².

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.

    Args:
        log_probabilities: (N, C) of the student, or logits.
        teacher: (N, C) logits, or log-probabilities.
        temperature: T.

    Returns:
        Scalar, in fp32 at least.
    """
    with torch.autocast(log_probabilities.device.type, enabled=False):
        student = at_least_fp32(log_probabilities)  # (N, C)
        log_q = (student / temperature).log_softmax(-1)  # (N, C)
        log_p = (teacher.to(student) / temperature).log_softmax(-1)  # (N, C)
        return temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def teacher_distance(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Σ ‖s/‖s‖ − t/‖t‖‖² over N examples, of their S vectors s and t the mean.

    References:
        Reimers and Gurevych, Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation, EMNLP
        2020; there without normalisation.

    Args:
        vectors: (N, S, K) of the student.
        teacher: (N, S, K), or (N, 1, K) for S times the same.

    Returns:
        Scalar, in fp32 at least.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        student = F.normalize(at_least_fp32(vectors), dim=-1)  # (N, S, K)
        target = F.normalize(teacher.to(student), dim=-1)  # (N, S or 1, K)
        return (student - target).square().sum() / vectors.shape[1]


def _excluded(text_ids: Tensor, local_rows: slice, same_row: Tensor) -> tuple[Tensor, Tensor]:
    """Other rows (m, M) and hard negatives (m, M·(S-2)) that share a text with anchor or positive of a local row."""
    anchors, positives, hard = text_ids[:, 0], text_ids[:, 1], text_ids[:, 2:].flatten()  # (M,), (M,), (M·(S-2),)

    def in_local_pair(others: Tensor) -> Tensor:
        return (anchors[local_rows, None] == others) | (positives[local_rows, None] == others)  # (m, others)

    return (in_local_pair(anchors) | in_local_pair(positives)) & ~same_row, in_local_pair(hard)


def _without(excluded: Tensor | None, logits: Tensor) -> Tensor:
    return logits if excluded is None else logits.masked_fill(excluded, -torch.inf)
