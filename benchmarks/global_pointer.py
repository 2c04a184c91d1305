r"""Memory and time of the global pointer's loss: bertorch's, and the formula on a tensor of all cells of all types.

    python -m benchmarks.global_pointer
    python -m benchmarks.global_pointer --batch_size 32 --length 128 --types 9 --json result.json

Forward and backward of the head alone, in fp32, for random states of sentences of one length with random entities. The
formula is computed as public implementations do: labels and scores of all cells are tensors (N, C, L, L). Each
contender has a process of its own, and the same weights. Its memory is the largest in the turns, beyond what the
process had before them, weights and states among it. Ratios are of wall times; on a busy machine CPU times with
OMP_NUM_THREADS=1 say more.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measuring import hardware, in_process, memory_mib, positive, timed, versions, write_json
from bertorch.global_pointer import GlobalPointer

OURS, DENSE = "bertorch", "dense formula"
_HIDDEN_SIZE = 768
_ENTITY_WORDS = 8  # the longest entity


class Batch(NamedTuple):
    """Sentences of one length, end to end."""

    states: Tensor  # (K, H)
    spans: Tensor  # (P, 4) int64: sentence, first word, end (exclusive), type
    sentences: int  # N
    length: int  # L


def main() -> None:
    """Measure each contender, print memory, times and ratios, write JSON on demand."""
    options = _options()
    measured = {name: in_process(_measure, name, options) for name in CONTENDERS}
    ours, dense = measured[OURS], measured[DENSE]
    sizes = {name: getattr(options, name) for name in ("batch_size", "length", "types", "head_size", "entities")}
    result = {
        **sizes,
        "turns": options.turns,
        "hardware": hardware(torch.device(options.device)),
        "versions": versions("torch"),
        "contenders": measured,
        "ratio": {key: dense[key] / max(ours[key], 1e-9) for key in ("mib", "seconds", "cpu_seconds")},
        "relative_difference_of_loss": abs(ours["loss"] / dense["loss"] - 1),
        "relative_difference_of_gradient": abs(ours["gradient"] / dense["gradient"] - 1),
    }
    print(f"batch {options.batch_size}, length {options.length}, {options.types} types, forward and backward, fp32")
    print(f"{result['hardware']}, {result['versions']}, medians of {options.turns} turns")
    for name, numbers in measured.items():
        print(f"{name}: {numbers['mib']:.0f} MiB, {numbers['seconds']:.3f} s, of CPU {numbers['cpu_seconds']:.3f} s")
    ratios = ", ".join(f"{key} {ratio:.1f}" for key, ratio in result["ratio"].items())
    print(f"{DENSE} / {OURS}: {ratios}; losses differ by {result['relative_difference_of_loss']:.0e}")
    write_json(result, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=positive, default=8)
    parser.add_argument("--length", type=positive, default=512, help="words of each sentence")
    parser.add_argument("--types", type=positive, default=40)
    parser.add_argument("--head_size", type=positive, default=64)
    parser.add_argument("--entities", type=positive, default=20, help="of each sentence, some of them nested")
    parser.add_argument("--turns", type=positive, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def _measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Memory in MiB, median seconds, and what was computed, in a process that does nothing else."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    head = GlobalPointer(_HIDDEN_SIZE, options.types, options.head_size).to(device)
    batch = _random_batch(options, device)
    loss = CONTENDERS[name]
    _backward(loss, head, _random_batch(argparse.Namespace(**vars(options) | {"length": 2}), device))  # libraries start
    head.zero_grad()
    before = _memory(device)
    seconds, cpu_seconds = [], []
    for _ in range(options.turns):
        began = time.process_time()
        seconds.append(timed(lambda: _backward(loss, head, batch), device))
        cpu_seconds.append(time.process_time() - began)
    mib = _memory(device, peak=True) - before
    return {
        "mib": mib,
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "loss": _backward(loss, head, batch),
        "gradient": head.queries_keys.weight.grad.norm().item() if head.queries_keys.weight.grad is not None else 0.0,
    }


def _memory(device: torch.device, *, peak: bool = False) -> float:
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return used(device) / 2**20
    return memory_mib("VmHWM" if peak else "VmRSS")


def _random_batch(options: argparse.Namespace, device: torch.device) -> Batch:
    sentences, length = options.batch_size, options.length
    rows = torch.arange(sentences).repeat_interleave(options.entities)  # (P,) with repetitions
    first, words = torch.randint(length, (len(rows),)), torch.randint(_ENTITY_WORDS, (len(rows),))
    ends = (first + words).clamp(max=length - 1) + 1
    spans = torch.stack([rows, first, ends, torch.randint(options.types, (len(rows),))], dim=1).unique(dim=0)
    return Batch(torch.randn(sentences * length, _HIDDEN_SIZE).to(device), spans.to(device), sentences, length)


def _backward(loss: Callable[[GlobalPointer, Batch], Tensor], head: GlobalPointer, batch: Batch) -> float:
    head.zero_grad()
    value = loss(head, batch)
    value.backward()
    return value.item()


def _ours(head: GlobalPointer, batch: Batch) -> Tensor:
    cu_words = torch.arange(0, len(batch.states) + 1, batch.length, dtype=torch.int32, device=batch.states.device)
    return head.loss(head(batch.states), batch.spans, cu_words, cu_words, batch.length)


def _dense(head: GlobalPointer, batch: Batch) -> Tensor:
    """By the formula, on (N, C, L, L)."""
    size, types = head.head_size, head.num_types
    outputs = head(batch.states).view(batch.sentences, batch.length, -1)  # (N, L, 2d + 2C)
    queries, keys, starts, ends = outputs.split([size, size, types, types], dim=2)
    products = _turned(queries) @ _turned(keys).mT / size**0.5  # (N, L, L)
    scores = products[:, None] + starts.mT[:, :, :, None] + ends.mT[:, :, None]  # (N, C, L, L)
    scores = scores.masked_fill(torch.ones_like(products[0], dtype=torch.bool).tril(-1), -1e12)
    labels = torch.zeros_like(scores)  # (N, C, L, L)
    sentence, first, end, kind = batch.spans.unbind(1)
    labels[sentence, kind, first, end - 1] = 1
    scores = (1 - 2 * labels) * scores
    zeros = scores.new_zeros(batch.sentences, types, 1)
    others = torch.cat([(scores - labels * 1e12).flatten(2), zeros], dim=2)  # (N, C, L·L + 1)
    entities = torch.cat([(scores - (1 - labels) * 1e12).flatten(2), zeros], dim=2)
    return (others.logsumexp(2) + entities.logsumexp(2)).mean(1).sum()


def _turned(rows: Tensor) -> Tensor:
    """(N, L, d) with rotary positions."""
    _, length, size = rows.shape
    frequencies = 10000 ** (-torch.arange(0, size, 2, device=rows.device) / size)  # (d/2,)
    angles = (torch.arange(length, device=rows.device)[:, None] * frequencies).repeat_interleave(2, dim=1)  # (L, d)
    swapped = torch.stack([-rows[..., 1::2], rows[..., ::2]], dim=3).flatten(2)  # (N, L, d)
    return rows * angles.cos() + swapped * angles.sin()


CONTENDERS: dict[str, Callable[[GlobalPointer, Batch], Tensor]] = {OURS: _ours, DENSE: _dense}


if __name__ == "__main__":
    main()
