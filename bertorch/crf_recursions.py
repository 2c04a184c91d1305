"""The recursions of a linear-chain CRF over time, on packed sequences; `bertorch.crf` says what they are for."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

PAIRS_AT_ONCE = 2**24  # elements of the (T, C, C) tensor of pairs that exist at the same time


@dataclass(frozen=True)
class Spans:
    """Where the tokens of N packed sequences stand in a time-major block of L steps."""

    sequences: int
    length: int
    lengths: Tensor  # (N,)
    sequence_ids: Tensor  # (T,)
    positions: Tensor  # (T,)
    first: Tensor  # (N,), index of each sequence's first token
    last: Tensor  # (N,)

    @classmethod
    def of(cls, cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> "Spans":
        """The spans of `tokens` tokens; `max_seqlen` is a bound on the longest sequence."""
        offsets = cu_seqlens.long()
        lengths = offsets.diff()  # (N,)
        sequences = torch.arange(len(lengths), device=offsets.device)
        sequence_ids = sequences.repeat_interleave(lengths, output_size=tokens)  # (T,)
        positions = torch.arange(tokens, device=offsets.device) - offsets[sequence_ids]
        # One step at least, so that no sequences need no special case.
        return cls(len(lengths), max(max_seqlen, 1), lengths, sequence_ids, positions, offsets[:-1], offsets[1:] - 1)

    def slots(self) -> Tensor:
        """(T,) index of each token in a block (L·N, …)."""
        return self.positions * self.sequences + self.sequence_ids

    def mirrored_slots(self) -> Tensor:
        """(T,) index of each token in a block (L·N, …) of reversed sequences."""
        return (self.lengths[self.sequence_ids] - 1 - self.positions) * self.sequences + self.sequence_ids

    def pad(self, packed: Tensor, slots: Tensor) -> Tensor:
        """(T, …) → (L, N, …), zero where no token is."""
        block = packed.new_zeros(self.length * self.sequences, *packed.shape[1:])
        return block.index_copy(0, slots, packed).view(self.length, self.sequences, *packed.shape[1:])

    def total(self, values: Tensor) -> Tensor:
        """(T,) → (N,), the sum over each sequence; atomic additions would be in another order in each run."""
        return self.pad(values, self.slots()).sum(dim=0)


class Scores(NamedTuple):
    """All that scores a path, in one type."""

    emissions: Tensor  # (T, C)
    start: Tensor  # (C,)
    end: Tensor  # (C,)
    transitions: Tensor  # (C, C)

    def peaks(self) -> Tensor:
        """(T, 1) best emission of each token, a constant to autograd."""
        return self.emissions.detach().amax(dim=1, keepdim=True)

    def shifted(self, peaks: Tensor) -> "Scores":
        """Less the peak of each token, which every path has to the same amount."""
        return self._replace(emissions=self.emissions - peaks)


def score_of(scores: Scores, tags: Tensor, spans: Spans) -> Tensor:
    """(N,) score of the tags (T,)."""
    moves = torch.where(  # (T,), how the tag before leads to each tag
        spans.positions == 0, scores.start[tags], scores.transitions[tags.roll(1), tags]
    )
    chosen = scores.emissions.gather(1, tags[:, None]).squeeze(1)  # (T,)
    return spans.total(moves + chosen) + scores.end[tags[spans.last]]


def log_partition_of(scores: Scores, spans: Spans) -> Tensor:
    """(N,) log-partition; only where it will need a gradient are both directions worked out."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scores):
        return _LogPartition.apply(spans, *scores)
    with torch.no_grad():
        block = spans.pad(scores.emissions, spans.slots()).unsqueeze(1)  # (L, 1, N, C)
        _, states, peaks = _sweep(block, scores.start[None], scores.transitions[None])
        last = states[:, 0].flatten(0, 1)[spans.slots()[spans.last]]  # (N, C)
        return _finished(last + scores.end, peaks[:, 0], spans)


class _LogPartition(torch.autograd.Function):
    """The log-partition, whose gradient is the expected use of each emission and transition."""

    @staticmethod
    def forward(ctx: Any, spans: Spans, *scores: Tensor) -> Tensor:
        """(N,), from the fields of `Scores`."""
        log_partition, *saved = both_ways(Scores(*scores), spans)
        ctx.save_for_backward(*saved, scores[-1])
        ctx.spans = spans
        return log_partition

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Marginals, weighted by the gradient (N,)."""
        marginals, before, messages, transitions = ctx.saved_tensors
        spans: Spans = ctx.spans
        weighted = marginals * gradient[spans.sequence_ids, None]  # (T, C)
        pairs = None
        if ctx.needs_input_grad[-1]:
            before = before.masked_fill(spans.positions[:, None] == 0, -torch.inf)  # no tag leads to a first tag
            pairs = _sum_of_pairs(weighted, before, messages, transitions)
        return None, weighted, weighted[spans.first].sum(dim=0), weighted[spans.last].sum(dim=0), pairs


def _sum_of_pairs(weighted: Tensor, before: Tensor, messages: Tensor, transitions: Tensor) -> Tensor:
    """(C, C) weighted sum over all tokens of the probability of tag i before and tag j at the token."""
    total = torch.zeros_like(transitions)
    tokens = max(1, PAIRS_AT_ONCE // transitions.numel())
    for weight, state, message in zip(
        weighted.split(tokens), before.split(tokens), messages.split(tokens), strict=True
    ):
        # The probability of the tag before given the tag at the token, which is at most 1, times that of the latter.
        pairs = (state[:, :, None] + transitions).sub_(message[:, None]).exp_()  # (t, C, C)
        total += pairs.mul_(weight[:, None]).sum(dim=0)
    return total


def both_ways(scores: Scores, spans: Spans) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward and backward recursion; the latter is the former on reversed sequences and transposed transitions.

    Returns:
        Log-partition (N,), marginals (T, C), states of the forward recursion at the token before (T, C), its messages
        at each token (T, C).
    """
    ahead, back = spans.slots(), spans.mirrored_slots()  # (T,), (T,)
    block = torch.stack([spans.pad(scores.emissions, slots) for slots in (ahead, back)], dim=1)  # (L, 2, N, C)
    messages, states, peaks = _sweep(
        block, torch.stack([scores.start, scores.end]), torch.stack([scores.transitions, scores.transitions.T])
    )
    until = states[:, 0].flatten(0, 1)[ahead]  # (T, C)
    since = messages[:, 1].flatten(0, 1)[back]  # (T, C)
    log_partition = _finished(until[spans.last] + scores.end, peaks[:, 0], spans)
    return log_partition, (until + since).softmax(dim=1), until.roll(1, dims=0), messages[:, 0].flatten(0, 1)[ahead]


def _finished(final: Tensor, peaks: Tensor, spans: Spans) -> Tensor:
    """(N,) log-partition from the last states plus end (N, C) and what was taken off the states of each step (L, N)."""
    inside = torch.arange(spans.length, device=peaks.device)[:, None] < spans.lengths  # (L, N)
    return final.logsumexp(dim=1) + torch.where(inside, peaks, 0).sum(dim=0)


def _sweep(block: Tensor, start: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The recursion over time in D directions at once, in log space.

    What follows a sequence's end is worked out like the rest and never read, which is cheaper than masking every step.

    Args:
        block: (L, D, N, C) emissions.
        start: (D, C).
        transitions: (D, C, C).

    Returns:
        Messages (L, D, N, C), the logarithm of the sum over all paths that lead to a tag, without its own emission.
        States (L, D, N, C), messages plus emissions, less the largest: sums over the whole sequence would leave fewer
        digits to the differences between tags, which are all that marginals need.
        Peaks (L, D, N), what was taken off the states of the step, in addition to the steps before.
    """
    messages, states = torch.empty_like(block), torch.empty_like(block)
    peaks = block.new_empty(*block.shape[:3], 1)
    messages[0] = start[:, None]
    # The tag that is summed over comes first: this keeps the rest contiguous, which is twice as fast on a CPU.
    matrix = transitions.transpose(0, 1)[:, :, None].contiguous()  # (C, D, 1, C)
    pairs = block.new_empty(len(matrix), *block.shape[1:])  # (C, D, N, C)
    largest = torch.empty_like(block[0])  # (D, N, C)
    columns = states.permute(0, 3, 1, 2).unsqueeze(4)  # (L, C, D, N, 1)
    steps = zip([None, *columns[:-1]], messages, block, states, peaks, strict=True)
    for before, message, emissions, state, peak in steps:
        if before is not None:
            torch.add(before, matrix, out=pairs)
            torch.amax(pairs, dim=0, out=largest)
            torch.sum(pairs.sub_(largest).exp_(), dim=0, out=message)
            message.log_().add_(largest)
        torch.add(message, emissions, out=state)
        torch.amax(state, dim=-1, keepdim=True, out=peak)
        state.sub_(peak)
    return messages, states, peaks.squeeze(-1)


def best_states(scores: Scores, spans: Spans, k: int) -> Tensor:
    """(L, N, k, C) scores of the k best paths that lead to each tag, -inf where there are fewer."""
    block = spans.pad(scores.emissions, spans.slots()).unsqueeze(2)  # (L, N, 1, C)
    states = block.new_full((*block.shape[:2], k, block.shape[3]), -torch.inf)
    states[0, :, 0] = scores.start + block[0, :, 0]
    matrix = scores.transitions[:, None]  # (C, 1, C)
    pairs = block.new_empty(k, len(matrix), block.shape[1], len(matrix))  # (k, C, N, C)
    ways = pairs.flatten(0, 1)  # (k·C, N, C), the same memory
    columns = states.permute(0, 2, 3, 1).unsqueeze(4)  # (L, k, C, N, 1)
    for before, state, emissions in zip(columns[:-1], states[1:], block[1:], strict=True):
        torch.add(before, matrix, out=pairs)
        best = ways.amax(dim=0, keepdim=True) if k == 1 else ways.topk(k, dim=0).values  # (k, N, C)
        torch.add(best.transpose(0, 1), emissions, out=state)
    return states


def trace(states: Tensor, scores: Scores, spans: Spans) -> tuple[Tensor, Tensor]:
    """Back from the last tags: tags (k, T) and scores (k, N) of the best paths, from their states (L, N, k, C).

    The best way into a tag is looked for again, among C and only for the tags on the paths, where back-pointers would
    have to be found for all C tags.
    """
    _, sequences, k, labels = states.shape
    mirrored = spans.mirrored_slots()
    backwards = spans.pad(states.flatten(0, 1)[spans.slots()], mirrored)  # (L, N, k, C), last tokens first
    into = scores.transitions.T.repeat(k, 1)  # (k·C, C), by rank and tag that follow
    ranks = torch.arange(k, device=states.device)[:, None].expand(k, sequences)  # (k, N)
    ways = (backwards[0] + scores.end).flatten(1).expand(k, -1, -1)  # (k, N, k·C)
    choices = [_ranked(ways, ranks)]  # (k, N) each, rank · C + tag
    best = ways.gather(2, choices[0].unsqueeze(2)).squeeze(2)  # (k, N)
    for state in backwards[1:]:
        ways = (state + embedding(choices[-1], into).unsqueeze(2)).flatten(2)  # (k, N, k·C)
        choices.append(_ranked(ways, choices[-1] // labels if k > 1 else ranks))
    tags = torch.stack(choices, dim=1).flatten(1)[:, mirrored] % labels  # (k, T)
    return tags, best


def _ranked(scores: Tensor, ranks: Tensor) -> Tensor:
    """(k, N) index of the score (k, N, M) of each rank (k, N); of equal scores, the first ranks before the others."""
    if len(ranks) == 1:
        return scores.argmax(dim=2)
    order = scores.sort(dim=2, descending=True, stable=True).indices  # (k, N, M)
    return order.gather(2, ranks.unsqueeze(2)).squeeze(2)
