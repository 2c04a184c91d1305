"""Exact nearest neighbours by cosine, in blocks, so that neither the corpus nor all cosines are in memory."""

import torch
from torch import Tensor

QUERIES_AT_ONCE = 4096


class Neighbours:
    """The K nearest of all vectors seen so far, of each query.

    Args:
        queries: (Q, E), of length 1.
        count: K.

    Attributes:
        cosines: (Q, up to K) fp32, the largest first.
        numbers: (Q, up to K) int64, which vectors they are, from 0 in the order in which they were seen.
    """

    def __init__(self, queries: Tensor, count: int) -> None:
        self._queries = queries
        self._count = count
        self._seen = 0
        self.cosines = queries.new_empty(len(queries), 0)
        self.numbers = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)

    def see(self, vectors: Tensor) -> None:
        """Compare with more vectors, (B, E), of length 1; of equally near ones, those of earlier calls come first."""
        vectors = vectors.to(self._queries.device)
        numbers = torch.arange(self._seen, self._seen + len(vectors), device=vectors.device)  # (B,)
        self._seen += len(vectors)
        merged = [
            self._nearest(cosines, known, queries @ vectors.T, numbers)
            for queries, cosines, known in zip(
                *(rows.split(QUERIES_AT_ONCE) for rows in (self._queries, self.cosines, self.numbers)), strict=True
            )
        ]
        self.cosines, self.numbers = (torch.cat(parts) for parts in zip(*merged, strict=True))

    def _nearest(self, cosines: Tensor, known: Tensor, new: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        block, places = new.topk(min(self._count, new.shape[1]), dim=1)  # (queries, up to K)
        both = torch.cat([cosines, block], dim=1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, : self._count]
        return both.gather(1, order), torch.cat([known, numbers[places]], dim=1).gather(1, order)
