"""A kernel for the CPU in the place of PyTorch's flash attention, which exists on GPUs only.

It has the signature of the real one, so that our call of it, its gradient and its meta function are the real ones.
"""

from itertools import pairwise

import torch


def _sentences(query, key, value, bounds, options):
    """Of each sentence: its tokens, q, k, v (A, length, D), probabilities and which of them are kept, over 1 - p."""
    dropout, scale, reach, seed = options
    generator = torch.Generator().manual_seed(seed)
    group = query.shape[1] // key.shape[1]
    for start, end in pairwise(bounds.tolist()):
        q, k, v = (
            tensor[start:end].repeat_interleave(times, dim=1).transpose(0, 1)
            for tensor, times in ((query, 1), (key, group), (value, group))
        )
        scores = q @ k.transpose(1, 2) * scale
        places = torch.arange(end - start)
        if reach is not None:
            scores = scores.masked_fill((places[:, None] - places).abs() > reach, -torch.inf)
        kept = (torch.rand(scores.shape, generator=generator) >= dropout) / (1 - dropout)
        yield slice(start, end), (q, k, v), scores.softmax(-1), kept


def _forward(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, *others, **windows):  # noqa: PLR0917
    dropout, is_causal, _ = others
    assert cum_seq_q.dtype == torch.int32
    assert cum_seq_q[-1] == len(query)  # what no sentence covers would stay unwritten memory
    assert cum_seq_q.diff().max() <= max_q == max_k
    assert not is_causal
    assert windows.get("window_size_left") == windows.get("window_size_right")
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    rng_state = torch.randint(2**40, (2,)).to(torch.uint64)
    out = torch.empty_like(query)
    options = _options(query, dropout, rng_state, **windows)
    for tokens, (_, _, v), probabilities, kept in _sentences(query, key, value, cum_seq_q, options):
        out[tokens] = (probabilities * kept @ v).transpose(0, 1)
    return out, query.new_zeros(query.shape[1], len(query)), rng_state, query.new_empty(0), query.new_empty(0)


def _backward(grad_out, query, key, value, out, logsumexp, cum_seq_q, *others, **windows):  # noqa: PLR0917
    dropout, rng_state = others[3], others[5]
    options = _options(query, dropout, rng_state, **windows)
    gradients = [torch.zeros_like(tensor) for tensor in (query, key, value)]
    for tokens, (q, k, v), probabilities, kept in _sentences(query, key, value, cum_seq_q, options):
        of_out = grad_out[tokens].transpose(0, 1)
        of_probabilities = of_out @ v.transpose(1, 2) * kept
        sums = (of_probabilities * probabilities).sum(-1, keepdim=True)
        of_scores = probabilities * (of_probabilities - sums) * options[1]
        of_each = (of_scores @ k, of_scores.transpose(1, 2) @ q, (probabilities * kept).transpose(1, 2) @ of_out)
        for gradient, part in zip(gradients, of_each, strict=True):
            heads = gradient.shape[1]
            gradient[tokens] = part.unflatten(0, (heads, -1)).sum(1).transpose(0, 1)  # of the queries that share a head
    return tuple(gradients)


def _options(query, dropout, rng_state, *, scale=None, window_size_left=None, **_):
    return dropout, query.shape[-1] ** -0.5 if scale is None else scale, window_size_left, int(rng_state[0])


def register() -> torch.library.Library:
    """Put the kernel in place as long as the result lives."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    return library
