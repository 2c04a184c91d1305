"""Which candidates become the hard negatives of a pair.

References:
    Moreira et al., NV-Retriever: Improving Text Embedding Models with Effective Hard-Negative Mining, 2024, the method
    TopK-PercPos.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bertorch.data.mining_texts import MiningTexts
from bertorch.inference.mining import Candidates


@dataclass(frozen=True)
class Selection:
    """The options of `bertorch.mine` of the same names."""

    num_negatives: int
    relative_margin: float
    sampling: str
    fill: str
    seed: int

    def suited(self, scores: np.ndarray, positive: float) -> np.ndarray:
        """The candidates (K,) far enough below the score of the positive, best first; of equal ones the earlier first.

        A score `s` is too close if `s > positive - relative_margin · |positive|`; scores of a cross-encoder may be
        below 0.
        """
        order = np.argsort(-scores, kind="stable")  # (K,)
        return order[scores[order] <= positive - self.relative_margin * abs(positive)]

    def sampled(self, suited: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Those taken of (S,), at most `num_negatives`, best first."""
        if self.sampling == "top" or len(suited) <= self.num_negatives:
            return suited[: self.num_negatives]
        return suited[np.sort(random.choice(len(suited), self.num_negatives, replace=False))]


@dataclass
class Tally:
    """What came of N pairs."""

    written: int = 0
    padded: int = 0  # of those written
    dropped: int = 0  # for too few candidates
    candidates: int = 0  # of all pairs
    too_close: int = 0  # of these, left out by the margin
    positive_scores: float = 0.0  # the sum of the pairs written
    negatives: int = 0  # of the pairs written, without padding
    negative_scores: float = 0.0  # their sum


def negatives_of_pairs(
    texts: MiningTexts, candidates: Candidates, selection: Selection, tally: Tally
) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each pair that has enough negatives, from 0, and these, (num_negatives,) int64; `tally` counts.

    What is drawn depends on the seed and the number of the pair. Padding is a passage of the corpus that the search did
    not find and that is not known to match: neither the ranks skipped nor what is too close come back.
    """
    for row, query in enumerate(texts.query_of_pairs.tolist()):
        random = np.random.default_rng([selection.seed, row])
        passages, scores = candidates.of_query(query)  # (K,) each
        positive = float(candidates.positives[row])
        suited = selection.suited(scores, positive)  # (S,)
        tally.candidates += len(scores)
        tally.too_close += len(scores) - len(suited)
        chosen = selection.sampled(suited, random)  # (n,)
        negatives = passages[chosen]
        missing = selection.num_negatives - len(chosen)
        if missing:
            excluded = [texts.known_of(query), candidates.skipped_of_query(query), passages]
            forbidden = np.unique(np.concatenate(excluded))  # (F,)
            if selection.fill != "random" or texts.corpus_size - len(forbidden) < missing:
                tally.dropped += 1
                continue
            negatives = np.append(negatives, draw_others(texts.corpus_size, forbidden, missing, random))
            tally.padded += 1
        tally.written += 1
        tally.positive_scores += positive
        tally.negatives += len(chosen)
        tally.negative_scores += float(scores[chosen].sum())
        yield row, negatives


def draw_others(size: int, forbidden: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` different numbers from 0 to `size` that are not among the forbidden ones (F,), which rise."""
    drawn = random.choice(size - len(forbidden), count, replace=False)  # (count,), places among those allowed
    allowed_before = forbidden - np.arange(len(forbidden))  # (F,)
    return drawn + np.searchsorted(allowed_before, drawn, side="right")
