"""Forward-backward and Viterbi for the linear-chain CRF of `bertorch.crf`, on packed sequences."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

PAIRS_AT_ONCE = 2**24  # elements of the (T, C, C) tensor of pairs that exist at the same time


@dataclass(frozen=True)
class SequenceLayout:
    """Where the T tokens of N packed sequences go in a time-major block (L, N, …), forwards and reversed."""

    shape: tuple[int, int]  # L, N
    sequence_ids: Tensor  # (T,)
    is_first: Tensor  # (T,) bool
    first: Tensor  # (N,) index of each sequence's first token
    last: Tensor  # (N,)
    slots: Tensor  # (T,) index of each token in a block (L·N, …)
    reversed_slots: Tensor  # (T,) the same where each sequence begins with its last token

    @classmethod
    def of(cls, cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> "SequenceLayout":
        """The layout of `tokens` tokens; `max_seqlen` is a bound on the longest sequence."""
        offsets = cu_seqlens.long()  # (N+1,)
        first, last, size = offsets[:-1], offsets[1:] - 1, len(offsets) - 1  # (N,), (N,)
        sequences, indices = (torch.arange(count, device=offsets.device) for count in (size, tokens))  # (N,), (T,)
        sequence_ids = sequences.repeat_interleave(offsets.diff(), output_size=tokens)  # (T,)
        positions, remaining = indices - first[sequence_ids], last[sequence_ids] - indices  # (T,), (T,)
        slots, reversed_slots = positions * size + sequence_ids, remaining * size + sequence_ids  # (T,), (T,)
        # At least one step, so that no sequences need no special case.
        return cls((max(max_seqlen, 1), size), sequence_ids, positions == 0, first, last, slots, reversed_slots)

    def pad(self, packed: Tensor, slots: Tensor) -> Tensor:
        """(T, …) → (L, N, …), zero where no token is."""
        block = packed.new_zeros(self.shape[0] * self.shape[1], *packed.shape[1:])
        return block.index_copy_(0, slots, packed).unflatten(0, self.shape)

    def sum(self, values: Tensor) -> Tensor:
        """(T,) → (N,) sum over each sequence; atomic additions would take another order in each run."""
        return self.pad(values, self.slots).sum(dim=0)


class Scores(NamedTuple):
    """What scores a path, all of one dtype."""

    emissions: Tensor  # (T, C)
    start: Tensor  # (C,)
    end: Tensor  # (C,)
    transitions: Tensor  # (C, C)


def path_score(scores: Scores, tags: Tensor, layout: SequenceLayout) -> Tensor:
    """(N,) score of the tags (T,)."""
    # start[y_1] for the first token, transitions[y_{t-1}, y_t] for each of the others
    moves = torch.where(layout.is_first, scores.start[tags], scores.transitions[tags.roll(1), tags])  # (T,)
    return layout.sum(moves + _at(scores.emissions, tags)) + scores.end[tags[layout.last]]  # (N,)


def path_log_probs(scores: Scores, tags: Tensor, layout: SequenceLayout) -> tuple[Tensor, Tensor]:
    """(T,) log P(y_t) and (T,) log P(y_{t-1} | y_t), 0 at first tokens, of the tags (T,); not differentiable."""
    _, alpha, beta, messages = _forward_backward(scores, layout)  # (N,), then (T, C) each
    marginals = _at((alpha + beta).log_softmax(dim=1), tags)  # (T,)
    # Messages sum over all tags before: the share of y_{t-1} in the message to y_t.
    moves = scores.transitions[tags.roll(1), tags]  # (T,)
    conditionals = _at(alpha, tags).roll(1) + moves - _at(messages, tags)  # (T,)
    return marginals, conditionals.masked_fill(layout.is_first, 0)


def marginals(scores: Scores, layout: SequenceLayout) -> Tensor:
    """(T, C) P(y_t), of each tag at each token; not differentiable."""
    _, alpha, beta, _ = _forward_backward(scores, layout)
    return (alpha + beta).softmax(dim=1)


def _at(values: Tensor, tags: Tensor) -> Tensor:
    """(T, C) → (T,) value of each token's tag."""
    return values.gather(1, tags[:, None]).squeeze(1)


def log_partition(scores: Scores, layout: SequenceLayout) -> Tensor:
    """(N,) log Z, of the sum of exp(score) over all paths; the backward recursion runs only if a gradient is needed."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scores):
        return _LogPartition.apply(layout, *scores)
    block = layout.pad(scores.emissions, layout.slots)[:, None]  # (L, 1, N, C)
    _, alphas, peaks = _recursion(block, scores.start[None], scores.transitions[None])
    return _log_z(alphas[:, 0], peaks[:, 0], scores.end, layout)


class _LogPartition(torch.autograd.Function):
    """log Z, whose gradient is the expected number of times that a path uses each emission and transition."""

    @staticmethod
    def forward(ctx: Any, layout: SequenceLayout, *scores: Tensor) -> Tensor:
        log_z, alpha, beta, messages = _forward_backward(Scores(*scores), layout)  # (N,), then (T, C) each
        ctx.save_for_backward((alpha + beta).softmax(dim=1), alpha, messages, scores[-1])
        ctx.layout = layout
        return log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        marginals, alpha, messages, transitions = ctx.saved_tensors
        layout: SequenceLayout = ctx.layout
        weighted = marginals * gradient[layout.sequence_ids, None]  # (T, C)
        pairs = None
        if ctx.needs_input_grad[-1]:
            before = alpha.roll(1, dims=0).masked_fill(layout.is_first[:, None], -torch.inf)  # (T, C)
            pairs = _sum_of_pairs(weighted, before, messages, transitions)  # (C, C)
        return None, weighted, weighted[layout.first].sum(dim=0), weighted[layout.last].sum(dim=0), pairs


def _sum_of_pairs(weighted: Tensor, before: Tensor, messages: Tensor, transitions: Tensor) -> Tensor:
    """(C, C) sum over all tokens of P(y_{t-1} = i, y_t = j), weighted by the gradient of the token's sequence.

    Args:
        weighted: (T, C) P(y_t = j) times the gradient.
        before: (T, C) alpha of the token before, -inf where there is none.
        messages: (T, C) of the forward recursion.
        transitions: (C, C).
    """
    total = torch.zeros_like(transitions)
    parts = (tensor.split(max(1, PAIRS_AT_ONCE // transitions.numel())) for tensor in (weighted, before, messages))
    for weight, alpha, message in zip(*parts, strict=True):  # (t, C) each
        # P(y_{t-1} = i | y_t = j), at most 1: exp cannot overflow.
        conditionals = (alpha[:, :, None] + transitions).sub_(message[:, None]).exp_()  # (t, C, C)
        total += conditionals.mul_(weight[:, None]).sum(dim=0)
    return total


def _forward_backward(scores: Scores, layout: SequenceLayout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both recursions at once: the backward one is the forward one on reversed sequences and transposed transitions.

    Returns:
        log Z (N,); alpha (T, C), the forward scores with the token's own emission; beta (T, C), the backward scores
        without it; messages (T, C), the forward scores without it. Each row is up to a constant: log P(y_t) is the
        log-softmax of alpha + beta. That of messages is the one of alpha at the token before.
    """
    both = [layout.pad(scores.emissions, slots) for slots in (layout.slots, layout.reversed_slots)]  # (L, N, C) each
    block = torch.stack(both, dim=1)  # (L, 2, N, C)
    starts = torch.stack([scores.start, scores.end])  # (2, C)
    transitions = torch.stack([scores.transitions, scores.transitions.T])  # (2, C, C)
    messages, alphas, peaks = _recursion(block, starts, transitions)  # (L, 2, N, C), (L, 2, N, C), (L, 2, N)
    alpha = alphas[:, 0].flatten(0, 1)[layout.slots]  # (T, C)
    beta = messages[:, 1].flatten(0, 1)[layout.reversed_slots]  # (T, C)
    message = messages[:, 0].flatten(0, 1)[layout.slots]  # (T, C)
    return _log_z(alphas[:, 0], peaks[:, 0], scores.end, layout), alpha, beta, message


def _log_z(alphas: Tensor, peaks: Tensor, end: Tensor, layout: SequenceLayout) -> Tensor:
    """(N,) log Z from alphas (L, N, C), the peaks subtracted from them (L, N), and the end scores (C,)."""
    final = alphas.flatten(0, 1)[layout.slots[layout.last]] + end  # (N, C)
    return final.logsumexp(dim=1) + layout.sum(peaks.flatten()[layout.slots])


def _recursion(block: Tensor, start: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha_t[j] = emissions_t[j] + log sum_i exp(alpha_{t-1}[i] + transitions[i, j]), in D directions at once.

    Steps after a sequence's end are computed and never read, which is cheaper than masking.

    Args:
        block: (L, D, N, C) emissions.
        start: (D, C).
        transitions: (D, C, C).

    Returns:
        Messages (L, D, N, C), alpha without the emissions of its own step. Alphas (L, D, N, C), each step less its
        largest value: sums over the whole sequence would leave fewer digits to the differences between tags, which
        marginals depend on. Peaks (L, D, N), the values subtracted in each step.
    """
    messages, alphas = torch.empty_like(block), torch.empty_like(block)  # (L, D, N, C)
    peaks = block.new_empty(*block.shape[:3], 1)  # (L, D, N, 1)
    messages[0] = start[:, None]  # (D, 1, C)
    # The tag that is summed over comes first: this keeps the rest contiguous, which is twice as fast on a CPU.
    matrix = transitions.transpose(0, 1)[:, :, None].contiguous()  # (C, D, 1, C)
    pairs = block.new_empty(len(matrix), *block.shape[1:])  # (C, D, N, C)
    largest = torch.empty_like(block[0])  # (D, N, C)
    columns = alphas.permute(0, 3, 1, 2).unsqueeze(4)  # (L, C, D, N, 1)
    steps = zip([None, *columns[:-1]], messages, block, alphas, peaks, strict=True)
    for before, message, emissions, alpha, peak in steps:
        if before is not None:
            torch.add(before, matrix, out=pairs)
            torch.amax(pairs, dim=0, out=largest)
            torch.sum(pairs.sub_(largest).exp_(), dim=0, out=message)
            message.log_().add_(largest)
        torch.add(message, emissions, out=alpha)
        torch.amax(alpha, dim=-1, keepdim=True, out=peak)
        alpha.sub_(peak)
    return messages, alphas, peaks.squeeze(-1)


def best_path(scores: Scores, layout: SequenceLayout) -> Tensor:
    """(T,) int64 Viterbi path: delta_t[j] = emissions_t[j] + max_i (delta_{t-1}[i] + transitions[i, j]).

    There are no back-pointers, which would cost an argmax for all C tags of each step: the way back repeats the search
    for the tags on the path only.
    """
    block = layout.pad(scores.emissions, layout.slots)  # (L, N, C)
    delta = torch.empty_like(block)  # (L, N, C) score of the best path to each tag
    torch.add(block[0], scores.start, out=delta[0])
    matrix = scores.transitions[:, None]  # (C, 1, C)
    pairs = block.new_empty(len(matrix), *block.shape[1:])  # (C, N, C)
    columns = delta.transpose(1, 2).unsqueeze(3)  # (L, C, N, 1)
    for before, state, emissions in zip(columns[:-1], delta[1:], block[1:], strict=True):
        torch.add(before, matrix, out=pairs)
        torch.amax(pairs, dim=0, out=state)
        state.add_(emissions)  # (N, C)

    backwards = layout.pad(delta.flatten(0, 1)[layout.slots], layout.reversed_slots)  # (L, N, C), last tokens first
    into = scores.transitions.T.contiguous()  # (C, C), a row for each tag that follows
    tags = [(backwards[0] + scores.end).argmax(dim=1)]  # (N,) each; of equal scores, the first
    for state in backwards[1:]:
        tags.append((state + embedding(tags[-1], into)).argmax(dim=1))
    return torch.cat(tags)[layout.reversed_slots]
