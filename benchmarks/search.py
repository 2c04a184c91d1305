r"""Exact search in blocks, faiss and `sentence_transformers.util.semantic_search`: time and memory.

    python -m benchmarks.search
    python -m benchmarks.search --passages 1000000 --queries 10000 --json result.json

Random vectors of length 1; each contender finds the same best passages of all queries in a process of its own, which
tells its time and what its peak memory is beyond the vectors. With `--with_faiss` faiss takes part, if it is installed.
Ratios are of wall times; on a busy machine CPU times with OMP_NUM_THREADS=1 say more. All find the same: scores may
differ by rounding.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers.util import semantic_search
from torch import Tensor

from benchmarks.measuring import hardware, in_process, versions, write_json
from bertorch.tasks.search import search

OURS = "bertorch"


def _blocks(queries: Tensor, corpus: Tensor, count: int) -> Tensor:
    return search(queries, corpus, count, method="blocks").scores


def _faiss(queries: Tensor, corpus: Tensor, count: int) -> Tensor:
    return search(queries, corpus, count, method="faiss").scores


def _theirs(queries: Tensor, corpus: Tensor, count: int) -> Tensor:
    found = semantic_search(queries, corpus, top_k=count)
    return torch.tensor([[each["score"] for each in row] for row in found])


CONTENDERS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    OURS: _blocks,
    "semantic_search": _theirs,
    "faiss": _faiss,
}


def main() -> None:
    """Measure each contender, print times, memory and ratios, write JSON on demand."""
    options = _options()
    names = [name for name in CONTENDERS if name != "faiss" or options.with_faiss]
    measured = {name: in_process(_measure, name, options) for name in names}
    scores = {name: result.pop("scores") for name, result in measured.items()}
    ours = measured[OURS]
    for name, result in measured.items():
        difference = float(abs(scores[name] - scores[OURS]).max())
        result["largest difference of scores"] = difference
        result["ratio of times"] = result["seconds"] / ours["seconds"]
        print(
            f"{name}: {result['seconds']:.1f} s, of the CPU {result['cpu_seconds']:.1f} s, "
            f"{result['megabytes']:.0f} MB beyond the vectors, "
            f"{result['ratio of times']:.2f} times the time of {OURS}, scores differ by {difference:.1e}"
        )
    sizes = {name: getattr(options, name) for name in ("passages", "queries", "width", "count")}
    result = {**sizes, "hardware": hardware(torch.device("cpu")), "versions": versions("sentence-transformers")}
    write_json(result | {"search": measured}, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--count", type=int, default=100, help="passages found for each query")
    parser.add_argument("--with_faiss", action="store_true")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    corpus, queries = (torch.randn(rows, options.width) for rows in (options.passages, options.queries))
    for vectors in (corpus, queries):  # in place: the peak before the search is that of the vectors
        vectors.div_(vectors.norm(dim=1, keepdim=True))
    CONTENDERS[name](queries[:2], corpus[:1000], options.count)  # libraries start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_of_cpu = time.perf_counter(), time.process_time()
    scores = CONTENDERS[name](queries, corpus, options.count)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_of_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megabytes = (peak - before) / 1024
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "megabytes": megabytes, "scores": scores.numpy()}


if __name__ == "__main__":
    main()
