r"""A linear-chain CRF: bertorch's, on packed sequences, against pytorch-crf, on padded ones.

    python -m benchmarks.crf
    python -m benchmarks.crf --batch_size 64 --length 64 --labels 9 --json result.json

Both have the same parameters and see the same random scores in fp32, turn by turn in one process: once with sequences
of random lengths, once with all of the same length. `loss` is the negative log-likelihood, forward and backward;
`decode` is Viterbi, until the tags are Python lists. Packing and padding are not counted.
"""

import argparse
import importlib
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.measuring import WARMUP, hardware, timed, versions, write_json
from bertorch.crf import CRF

OURS, THEIRS = "bertorch", "pytorch-crf"


def main() -> None:
    """Measure, print a table, write JSON on demand."""
    options = _options()
    device = torch.device(options.device)
    torch.manual_seed(0)
    ours = CRF(options.labels).to(device)
    theirs: nn.Module = options.torchcrf.CRF(options.labels, batch_first=True).to(device)
    theirs.load_state_dict(ours.state_dict())
    lengths = torch.randint(1, options.length + 1, (options.batch_size,))
    result = {
        "batch_size": options.batch_size,
        "length": options.length,
        "labels": options.labels,
        "repeats": options.repeats,
        "hardware": hardware(device),
        "versions": versions("torch", "pytorch-crf"),
        "batches": {
            "ragged": _compare(ours, theirs, lengths, options.repeats),
            "full": _compare(ours, theirs, torch.full_like(lengths, options.length), options.repeats),
        },
    }
    _print(result)
    write_json(result, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--length", type=int, default=128, help="of the longest sequence that may come")
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20, help=f"turns measured, after {WARMUP} that are not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the result to this file")
    options = parser.parse_args()
    try:
        options.torchcrf = importlib.import_module("torchcrf")
    except ModuleNotFoundError:
        parser.error("pytorch-crf, which is compared with, is missing: pip install pytorch-crf==0.7.2")
    return options


def _compare(ours: CRF, theirs: nn.Module, lengths: Tensor, repeats: int) -> dict[str, Any]:
    """Median seconds of both on one batch of sequences of these lengths (N,), and how far their results differ."""
    device = ours.transitions.device
    sizes = lengths.tolist()
    tokens, longest = sum(sizes), max(sizes)
    emissions = torch.randn(tokens, ours.num_labels).to(device).requires_grad_()  # (T, C)
    tags = torch.randint(ours.num_labels, (tokens,)).to(device)  # (T,)
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(device, torch.int32)  # (N+1,)
    block = pad_sequence(emissions.detach().split(sizes), batch_first=True).requires_grad_()  # (N, L, C)
    block_tags = pad_sequence(tags.split(sizes), batch_first=True)  # (N, L)
    mask = torch.arange(longest, device=device) < lengths.to(device)[:, None]  # (N, L)

    jobs: dict[str, dict[str, Callable[[], Any]]] = {
        "loss": {
            THEIRS: lambda: _backward(-theirs(block, block_tags, mask), theirs, block),
            OURS: lambda: _backward(-ours.log_likelihood(emissions, tags, cu_seqlens, longest).sum(), ours, emissions),
        },
        "decode": {
            THEIRS: torch.no_grad()(lambda: theirs.decode(block, mask)),  # type: ignore[operator]
            OURS: torch.no_grad()(lambda: _lists(ours.viterbi(emissions, cu_seqlens, longest), sizes)),
        },
    }
    seconds = {job: _medians(contenders, repeats, device) for job, contenders in jobs.items()}
    loss, decode = jobs["loss"], jobs["decode"]
    return {
        "tokens": tokens,
        "seconds": seconds,
        "ratio": {job: medians[THEIRS] / medians[OURS] for job, medians in seconds.items()},
        "relative_difference_of_loss": abs(loss[OURS]() / loss[THEIRS]() - 1),
        "same_paths": sum(one == other for one, other in zip(decode[OURS](), decode[THEIRS](), strict=True)),
    }


def _backward(loss: Tensor, crf: nn.Module, emissions: Tensor) -> float:
    for tensor in (emissions, *crf.parameters()):
        tensor.grad = None
    loss.backward()
    return loss.item()


def _lists(tags: Tensor, sizes: list[int]) -> list[list[int]]:
    return [path.tolist() for path in tags.cpu().split(sizes)]


def _medians(contenders: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(WARMUP + repeats):
        for contender, job in contenders.items():
            seconds[contender].append(timed(job, device))
    return {contender: statistics.median(times[WARMUP:]) for contender, times in seconds.items()}


def _print(result: dict[str, Any]) -> None:
    print(f"batch {result['batch_size']}, length {result['length']}, {result['labels']} labels, fp32")
    print(f"{result['hardware']}, {result['versions']}, medians of {result['repeats']}")
    for name, batch in result["batches"].items():
        print(
            f"{name}: {batch['tokens']} tokens, {batch['same_paths']} of {result['batch_size']} best paths the same, "
            f"losses differ by {batch['relative_difference_of_loss']:.0e}"
        )
        for job, seconds in batch["seconds"].items():
            times = ", ".join(f"{contender} {1000 * second:.1f} ms" for contender, second in seconds.items())
            print(f"  {job}: {times}, {THEIRS} / {OURS}: {batch['ratio'][job]:.2f}")


if __name__ == "__main__":
    main()
