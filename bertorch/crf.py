"""Linear-chain conditional random field on packed sequences: exact likelihoods, marginals and best paths.

A sequence of tags scores start + emissions + transitions + end; its probability is exp(score) over the sum of that of
all tag sequences. The sum is worked out by the recursion of Lafferty, McCallum and Pereira, Conditional Random Fields,
ICML 2001. Its gradient is the marginals, so both directions of the recursion run in one loop without an autograd graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bertorch.crf_recursions import Scores, Spans, best_states, both_ways, log_partition_of, score_of, trace
from bertorch.precision import at_least_fp32

FORBIDDEN = -1e4  # exp of it is zero also in fp64, but sums of it are finite, so that nothing becomes nan


@dataclass(frozen=True)
class Constraints:
    """What a tag scheme allows; None allows everything.

    Attributes:
        start: (C,) bool, true where a sequence may begin with the tag.
        end: (C,) bool, true where a sequence may end with the tag.
        transitions: (C, C) bool, true where the tag of the row may be followed by that of the column.
    """

    start: Tensor | None = None
    end: Tensor | None = None
    transitions: Tensor | None = None


class CRF(nn.Module):
    """Linear-chain CRF over C tags.

    All methods take N sequences of at least one token, end to end, and never wait for the device. They work in fp32 at
    least, also under autocast.
        emissions: (T, C) scores of the tags at each token; -inf rules a tag out, but not all tags of a token.
        tags: (T,) int64.
        cu_seqlens: (N+1,) int32 or int64: sequence i is tokens `cu_seqlens[i] : cu_seqlens[i+1]`.
        max_seqlen: L, the length of the longest sequence, or more.

    Args:
        labels: C.
        constraints: what the tag scheme allows. Anything else scores `FORBIDDEN` in decoding, and comes out only where
            no allowed path is within 10000.
        constrain_training: also outside of decoding, so that only allowed paths have a probability. Tags that break
            the constraints then have a log-likelihood of about -10000.
        learned: the scores below are parameters; otherwise they are zero and no weights, so that decoding gives the
            allowed path with the largest sum of emissions.

    Attributes:
        start_transitions, end_transitions: (C,) scores of the first and the last tag.
        transitions: (C, C) scores, from the tag of the row to the tag of the column.

    Raises:
        ValueError: a constraint has the wrong shape or is not bool.
    """

    start_transitions: Tensor
    end_transitions: Tensor
    transitions: Tensor
    forbidden_start: Tensor
    forbidden_end: Tensor
    forbidden_transitions: Tensor

    def __init__(
        self,
        labels: int,
        constraints: Constraints | None = None,
        *,
        constrain_training: bool = False,
        learned: bool = True,
    ) -> None:
        super().__init__()
        self.labels = labels
        self.constrain_training = constrain_training
        self.learned = learned
        shapes = {"start_transitions": [labels], "end_transitions": [labels], "transitions": [labels, labels]}
        for name, shape in shapes.items():
            if learned:
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            else:
                self.register_buffer(name, torch.zeros(shape), persistent=False)
        given = constraints or Constraints()
        self.register_buffer("forbidden_start", _forbidden(given.start, labels), persistent=False)
        self.register_buffer("forbidden_end", _forbidden(given.end, labels), persistent=False)
        self.register_buffer("forbidden_transitions", _forbidden(given.transitions, labels, labels), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all transitions uniformly from [-0.1, 0.1]."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def log_likelihood(self, emissions: Tensor, tags: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(N,) log-probability of each sequence's tags, differentiable once."""
        with torch.autocast(emissions.device.type, enabled=False):
            spans = Spans.of(cu_seqlens, len(emissions), max_seqlen)
            scores = self._scores(emissions, constrained=self.constrain_training)
            # The same shift of both terms changes nothing but their size, and thus what rounding leaves of the rest.
            scores = scores.shifted(scores.peaks())
            return score_of(scores, tags, spans) - log_partition_of(scores, spans)

    def log_partition(self, emissions: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(N,) logarithm of the sum of exp(score) over all tags of each sequence, differentiable once."""
        with torch.autocast(emissions.device.type, enabled=False):
            spans = Spans.of(cu_seqlens, len(emissions), max_seqlen)
            return log_partition_of(self._scores(emissions, constrained=self.constrain_training), spans)

    def score(self, emissions: Tensor, tags: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(N,) score of each sequence's tags, differentiable."""
        with torch.autocast(emissions.device.type, enabled=False):
            spans = Spans.of(cu_seqlens, len(emissions), max_seqlen)
            return score_of(self._scores(emissions, constrained=self.constrain_training), tags, spans)

    @torch.no_grad()
    def marginals(self, emissions: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T, C) probability of each tag at each token, without a gradient."""
        with torch.autocast(emissions.device.type, enabled=False):
            spans = Spans.of(cu_seqlens, len(emissions), max_seqlen)
            return both_ways(self._scores(emissions, constrained=self.constrain_training), spans)[1]

    def path_log_probs(
        self, emissions: Tensor, tags: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def viterbi(self, emissions: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T,) int64, the tags of each sequence's best path.

        Among equally good paths, the last tag is the smallest possible, then the last but one, and so on.
        """
        return self.k_best(emissions, cu_seqlens, max_seqlen, k=1)[0].squeeze(0)

    @torch.no_grad()
    def k_best(self, emissions: Tensor, cu_seqlens: Tensor, max_seqlen: int, k: int) -> tuple[Tensor, Tensor]:
        """The k best paths of each sequence, the best first, which is that of `viterbi`.

        Returns:
            Tags (k, T) int64, and scores (k, N). Where a sequence has fewer than k paths, the scores of the rest are
            -inf, and its tags mean nothing. Paths that break a constraint come last, at about -10000.
        """
        with torch.autocast(emissions.device.type, enabled=False):
            spans = Spans.of(cu_seqlens, len(emissions), max_seqlen)
            scores = self._scores(emissions, constrained=True)
            peaks = scores.peaks()  # (T, 1)
            tags, best = trace(best_states(scores.shifted(peaks), spans, k), scores, spans)
            return tags, best + spans.total(peaks.squeeze(1))

    def _scores(self, emissions: Tensor, *, constrained: bool) -> Scores:
        dtype = torch.promote_types(at_least_fp32(emissions).dtype, self.transitions.dtype)
        start, end, transitions = (
            scores.to(dtype).masked_fill(forbidden, FORBIDDEN) if constrained else scores.to(dtype)
            for scores, forbidden in (
                (self.start_transitions, self.forbidden_start),
                (self.end_transitions, self.forbidden_end),
                (self.transitions, self.forbidden_transitions),
            )
        )
        return Scores(emissions.to(dtype), start, end, transitions)


def _forbidden(allowed: Tensor | None, *shape: int) -> Tensor:
    if allowed is None:
        return torch.zeros(shape, dtype=torch.bool)
    if allowed.shape != shape or allowed.dtype != torch.bool:
        raise ValueError(f"a constraint is {allowed.dtype} {tuple(allowed.shape)}, expected torch.bool {shape}")
    return ~allowed
