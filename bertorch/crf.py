"""Linear-chain conditional random field on packed sequences: likelihoods, marginals and best paths, all exact.

The probability of tags y_1 … y_n is exp(score) / Z, where

    score = start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_{t-1}, y_t] + end[y_n]

and Z is the sum of exp(score) over all tag sequences (Lafferty, McCallum and Pereira, Conditional Random Fields, ICML
2001). The gradient of log Z is the marginals, so forward and backward recursion run in one loop, without autograd.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bertorch.crf_recursions import (
    Scores,
    SequenceLayout,
    best_path,
    log_partition,
    marginals,
    path_log_probs,
    path_score,
)
from bertorch.precision import at_least_fp32

FORBIDDEN = -1e4  # exp of it is zero also in fp64, but sums of it are finite, so that nothing becomes nan


@dataclass(frozen=True)
class Constraints:
    """What a tag scheme allows; None allows everything."""

    start: Tensor | None = None  # (C,) bool: a sequence may begin with the tag
    end: Tensor | None = None  # (C,) bool: a sequence may end with the tag
    transitions: Tensor | None = None  # (C, C) bool: the tag of the row may be followed by that of the column


class CRF(nn.Module):
    """Linear-chain CRF over C tags.

    All methods take N sequences of at least one token, end to end, and never wait for the device. They work in fp32 at
    least, also under autocast, which lowers no operation that they use.
        emissions: (T, C) scores of the tags at each token; -inf rules a tag out, but not all tags of a token.
        tags: (T,) int64.
        cu_seqlens: (N+1,) int32 or int64: sequence i is tokens `cu_seqlens[i] : cu_seqlens[i+1]`.
        max_seqlen: L, the length of the longest sequence, or more.

    Args:
        num_labels: C.
        constraints: what the tag scheme allows. Anything else scores `FORBIDDEN` in decoding, and comes out only where
            no allowed path is within 10000.
        constrain_training: also outside of decoding, so that only allowed paths have a probability. Tags that break
            the constraints then have a log-likelihood of about -10000.
        learned: the scores below are parameters; otherwise they are zero and not saved: tags are independent of each
            other, and decoding gives the allowed path with the largest sum of emissions.

    Raises:
        ValueError: a constraint has the wrong shape or is not bool.
    """

    start_transitions: Tensor  # (C,) scores of the first tag
    end_transitions: Tensor  # (C,) scores of the last tag
    transitions: Tensor  # (C, C) scores, from the tag of the row to the tag of the column

    def __init__(
        self,
        num_labels: int,
        constraints: Constraints | None = None,
        *,
        constrain_training: bool = False,
        learned: bool = True,
    ) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.constrain_training = constrain_training
        self.learned = learned
        allowed = constraints or Constraints()
        self._add_scores("start_transitions", (num_labels,), allowed.start)
        self._add_scores("end_transitions", (num_labels,), allowed.end)
        self._add_scores("transitions", (num_labels, num_labels), allowed.transitions)

    def _add_scores(self, name: str, shape: tuple[int, ...], allowed: Tensor | None) -> None:
        if allowed is None:
            allowed = torch.ones(shape, dtype=torch.bool)
        if allowed.shape != shape or allowed.dtype != torch.bool:
            raise ValueError(f"a constraint is {allowed.dtype} {tuple(allowed.shape)}, expected torch.bool {shape}")
        if self.learned:
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-0.1, 0.1)))
        else:
            self.register_buffer(name, torch.zeros(shape), persistent=False)
        self.register_buffer(f"forbidden_{name}", ~allowed, persistent=False)

    def log_likelihood(self, emissions: Tensor, tags: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(N,) log-probability of each sequence's tags, differentiable once."""
        layout = SequenceLayout.of(cu_seqlens, len(emissions), max_seqlen)
        scores = self._scores(emissions, constrained=self.constrain_training)
        return path_score(scores, tags, layout) - log_partition(scores, layout)

    @torch.no_grad()
    def path_log_probs(
        self, emissions: Tensor, tags: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities that give that of any part of the path `tags`, without a gradient.

        Given the tag of a token, the tags before it do not depend on those after it. So the probability that the tokens
        i … j of a sequence have exactly these tags is `exp(marginals[j] + conditionals[i + 1 : j + 1].sum())`.

        Returns:
            marginals (T,): log P(y_t), of the tag of each token.
            conditionals (T,): log P(y_{t-1} | y_t), of the tag before given that of the token; 0 at first tokens.
        """
        layout = SequenceLayout.of(cu_seqlens, len(emissions), max_seqlen)
        return path_log_probs(self._scores(emissions, constrained=self.constrain_training), tags, layout)

    @torch.no_grad()
    def marginals(self, emissions: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T, C) probability of each tag at each token, whatever the other tags are, without a gradient."""
        layout = SequenceLayout.of(cu_seqlens, len(emissions), max_seqlen)
        return marginals(self._scores(emissions, constrained=self.constrain_training), layout)

    @torch.no_grad()
    def viterbi(self, emissions: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """(T,) int64, the tags of each sequence's best path.

        Among equally good paths, the last tag is the smallest possible, then the last but one, and so on.
        """
        layout = SequenceLayout.of(cu_seqlens, len(emissions), max_seqlen)
        return best_path(self._scores(emissions, constrained=True), layout)

    def _scores(self, emissions: Tensor, *, constrained: bool) -> Scores:
        dtype = torch.promote_types(at_least_fp32(emissions).dtype, self.transitions.dtype)
        emissions = emissions.to(dtype)  # (T, C)
        # Subtracting the best of each token takes the same from every path: smaller sums are rounded less.
        emissions = emissions - emissions.detach().amax(dim=1, keepdim=True)
        names = ("start_transitions", "end_transitions", "transitions")
        moves = {name: getattr(self, name).to(dtype) for name in names}
        if constrained:
            moves = {name: m.masked_fill(getattr(self, f"forbidden_{name}"), FORBIDDEN) for name, m in moves.items()}
        return Scores(emissions, *moves.values())
