"""The nearest vectors by cosine."""

import torch
from torch import Tensor

QUERIES_AT_ONCE = 4096


class Neighbours:
    """The `count` (K) nearest of all vectors so far, for each of the queries (Q, E) of length 1; the search is exact.

    It goes in blocks: neither the vectors nor all cosines need to fit in memory.
    """

    def __init__(self, queries: Tensor, count: int) -> None:
        self._queries, self._count = queries, count
        self._seen = 0
        self.cosines = queries.new_empty(len(queries), 0)  # (Q, up to K) in descending order
        # (Q, up to K) int64, counted from 0 over all calls of `update`
        self.indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)

    def update(self, vectors: Tensor) -> None:
        """Compare with more vectors (B, E) of length 1; ties go to the vectors of earlier calls."""
        vectors = vectors.to(self._queries.device)
        blocks = zip(
            *(rows.split(QUERIES_AT_ONCE) for rows in (self._queries, self.cosines, self.indices)), strict=True
        )
        merged = [self._merged(queries, cosines, indices, vectors) for queries, cosines, indices in blocks]
        self.cosines, self.indices = (torch.cat(parts) for parts in zip(*merged, strict=True))  # (Q, up to K) each
        self._seen += len(vectors)

    def _merged(self, queries: Tensor, cosines: Tensor, indices: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        new, columns = (queries @ vectors.T).topk(min(self._count, len(vectors)), dim=1)  # (q, up to K) each
        cosines = torch.cat([cosines, new], dim=1)  # (q, up to 2·K)
        indices = torch.cat([indices, self._seen + columns], dim=1)  # (q, up to 2·K)
        order = cosines.argsort(dim=1, descending=True, stable=True)[:, : self._count]  # (q, up to K)
        return cosines.gather(1, order), indices.gather(1, order)
