r"""The cache of tokenised files: how long it takes to build and to open, and the memory of the processes.

    python -m benchmarks.token_cache
    python -m benchmarks.token_cache --lines 1000000 --file wiki_sents.txt --different --processes 2 --json result.json
    python -m benchmarks.token_cache --lines 20000000 --file wiki_sents.txt --different --without_cache

The lines of the file are repeated until there are enough; with `--different` each has the number of its repetition
appended, so that no two sentences are the same. Without a file, lines of random characters are made up. Each part is
measured in fresh processes: `build` on an empty cache, `open` on the one that is built; then every process gathers an
epoch of batches. Seconds are those of the slowest process, processor time (of user and system) is that of all. Memory
is the largest resident memory of each process above what it had with everything imported, added up over the processes:
all of it, in which pages of files count for each process that maps them, and the anonymous part, sampled.
"""

import argparse
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch.multiprocessing.spawn import start_processes

from benchmarks.measuring import DATA, hardware, memory_mib, versions, write_json
from bertorch import distributed
from bertorch.data.cache import open_dataset
from bertorch.data.schedule import TrainingSchedule
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.tasks.in_batch_negatives import anchors_with_positives, sentences_twice
from bertorch.tasks.sequence_task import labelled_texts


@dataclass(frozen=True)
class Kind:
    """A kind of training data.

    Attributes:
        read: its reading function.
        columns: texts of a line.
        ending: what follows them.
    """

    read: Callable[..., Any]
    columns: int = 1
    ending: str = ""


KINDS = {
    "sentences": Kind(sentences_twice),
    "labelled": Kind(partial(labelled_texts, label_names=["0", "1"], num_texts=1), ending="\t0"),
    "labelled_pairs": Kind(partial(labelled_texts, label_names=["0", "1"], num_texts=2), columns=2, ending="\t0"),
    "pairs": Kind(anchors_with_positives, columns=2),
}


def main() -> None:
    """Measure, print, write JSON on demand."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = Path(folder) / "data.txt"
        _write_lines(data, options)
        jobs = ("build",) if options.without_cache else ("build", "open")
        result = {
            "lines": options.lines,
            "kind": options.kind,
            "different": options.different,
            "megabytes": data.stat().st_size / 1e6,
            "processes": options.processes,
            "hardware": f"{hardware(torch.device('cpu'))}, {os.cpu_count()} cores",
            "versions": versions("transformers", "tokenizers"),
            **{job: _measure(Path(folder), options) for job in jobs},
        }
    print(f"{options.lines} lines ({options.kind}, {result['megabytes']:.0f} MB), {options.processes} process(es)")
    print(f"{result['hardware']}, {result['versions']}")
    for job in jobs:
        measured = result[job]
        print(
            f"{job}: {measured['seconds']:.2f} s, {measured['cpu_seconds']:.1f} s of processor time, "
            f"{measured['mib']:.0f} MiB above the interpreter, {measured['anonymous_mib']:.0f} MiB anonymous; "
            f"{measured['mib_after_epoch']:.0f} MiB after an epoch of batches, "
            f"{measured['anonymous_mib_after_epoch']:.0f} MiB anonymous "
            f"({measured['epoch_seconds']:.1f} s, {measured['tokens']} tokens)"
        )
    write_json(result, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--file", help="sentences, one a line")
    parser.add_argument("--different", action="store_true", help="number the repetitions")
    parser.add_argument("--kind", choices=sorted(KINDS), default="sentences")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--pretrained_model_name_or_path", default=str(DATA / "bert-tiny-zh"))
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--without_cache", action="store_true")
    parser.add_argument("--folder", help="where the data and the cache go meanwhile, by default that of the system")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def _write_lines(path: Path, options: argparse.Namespace) -> None:
    kind = KINDS[options.kind]
    texts = _made_up() if options.file is None else _repeated(Path(options.file), numbered=options.different)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(options.lines):
            file.write("\t".join(islice(texts, kind.columns)) + kind.ending + "\n")


def _repeated(path: Path, *, numbered: bool) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for repetition in count():
        yield from (f"{line}{repetition}" for line in lines) if numbered else lines


def _made_up() -> Iterator[str]:
    generator = np.random.default_rng(0)
    for _ in count():
        yield "".join(map(chr, generator.integers(0x4E00, 0x9000, size=generator.integers(5, 70))))


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Open the dataset in fresh processes; sums and maxima of what each of them measures."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(_process, args=(port, folder, options), nprocs=options.processes, start_method="spawn")
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(options.processes)]
    slowest = {name: max(result[name] for result in results) for name in ("seconds", "epoch_seconds", "tokens")}
    names = ("cpu_seconds", "mib", "anonymous_mib", "mib_after_epoch", "anonymous_mib_after_epoch")
    return slowest | {name: sum(result[name] for result in results) for name in names}


def _process(rank: int, port: int, folder: Path, options: argparse.Namespace) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(options.processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    logger.remove()
    with distributed.session():
        tokenizer = load_tokenizer(options.pretrained_model_name_or_path)
        read = partial(
            KINDS[options.kind].read, tokenizer=tokenizer, max_length=options.max_seq_length, on_bad_line="stop"
        )
        distributed.barrier()
        memory, cpu, began = _Memory(), time.process_time(), time.perf_counter()
        cache = None if options.without_cache else str(folder / "cache")
        dataset = open_dataset(read, str(folder / "data.txt"), cache)
        result = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        result["mib"], result["anonymous_mib"] = memory.added()
        began = time.perf_counter()
        steps = TrainingSchedule(len(dataset), batch_size=128, accumulation=1, seed=0).steps(epoch=1)
        result["tokens"] = sum(len(dataset.batch(numbers).input_ids) for (numbers,) in steps)
        result["epoch_seconds"] = time.perf_counter() - began
        result["mib_after_epoch"], result["anonymous_mib_after_epoch"] = memory.added()
    (folder / f"{rank}.json").write_text(json.dumps(result))


class _Memory:
    """The largest resident memory of this process, all of it and its anonymous part, in MiB above what it has now."""

    def __init__(self) -> None:
        self._all, self._anonymous = memory_mib("VmHWM"), memory_mib("RssAnon")
        self._peak = self._anonymous
        threading.Thread(target=self._sample, daemon=True).start()

    def added(self) -> tuple[float, float]:
        return memory_mib("VmHWM") - self._all, self._peak - self._anonymous

    def _sample(self) -> None:
        while True:
            self._peak = max(self._peak, memory_mib("RssAnon"))
            time.sleep(0.02)


if __name__ == "__main__":
    main()
