r"""Encode sentences with a trained model of sentence embeddings, and find the nearest of another file.

    python -m bertorch.encode --model_dir checkpoint --input_file in.txt --output_file out.npy --normalize
    python -m bertorch.encode --model_dir checkpoint --input_file in.txt --nearest 5 --corpus_file corpus.txt
    torchrun --nproc_per_node=2 -m bertorch.encode …

The folder is one of run_sentencebert.py, run_simcse.py or run_batchneg.py; a line of input is a sentence. The same
command again goes on with an interrupted one, and leaves a finished one as it is. `--nearest` prints lines
`number of the sentence⇥rank⇥cosine⇥number of the neighbour⇥neighbour`, numbers from 1; the search is exact.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from bertorch import cli, distributed, log
from bertorch.config import option
from bertorch.data.fingerprint import file_digest
from bertorch.data.readers import stream_texts
from bertorch.errors import UserError
from bertorch.files import STANDARD, whole_output
from bertorch.inference.model import Model
from bertorch.inference.neighbours import Neighbours
from bertorch.inference.options import InferenceConfig
from bertorch.inference.vectors import VectorFile
from bertorch.training.weights import SAFE_WEIGHTS, WEIGHTS

DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(InferenceConfig):
    """Options of `bertorch.encode`."""

    input_file: str = option(help="a sentence a line")
    output_file: str | None = option(None, help="a .npy file, a row for each sentence")
    dtype: str = option("float32", choices=DTYPES, help="of the numbers in --output_file")
    normalize: bool = option(False, help="embeddings of length 1, whose product is the cosine")
    nearest: int | None = option(None, minimum=1, help="print this many neighbours of each sentence by cosine")
    corpus_file: str | None = option(None, help="where --nearest looks for them, a sentence a line")

    def __post_init__(self) -> None:
        if (self.nearest is None) != (self.corpus_file is None):
            raise UserError("--nearest and --corpus_file need each other")
        if self.output_file is None and self.nearest is None:
            raise UserError("expected --output_file, or --nearest with --corpus_file, got neither")
        if self.output_file is not None and not self.output_file.endswith(".npy"):
            raise UserError(f"--output_file {self.output_file}: expected a name that ends in .npy")
        if STANDARD in (self.input_file, self.corpus_file, self.output_file):
            raise UserError("-: sentences are counted before they are encoded, which takes files; name a file")


def run(config: EncodeConfig) -> None:
    """Encode, search, or both."""
    model = config.load()
    if not model.size:
        model.encode([])  # raises: it gives no embeddings
    if config.output_file is not None:
        _encode(model, config, config.output_file)
    if config.nearest is not None and config.corpus_file is not None:
        _search(model, config, config.nearest, config.corpus_file)


def _sentences(path: str, start: int = 0) -> "islice[str]":
    return islice((text for (text,) in stream_texts(path, num_texts=1)), start, None)


def _encode(model: Model, config: EncodeConfig, path: str) -> None:
    file = None

    def begin() -> int:
        nonlocal file
        file = VectorFile(path, _made_of(model, config), overwrite=config.overwrite)
        if file.done < file.rows:
            file.open()
        return file.done

    done = distributed.on_main(begin)
    with log.input_bar(done) as progress:
        for _, vectors in model.embeddings(_sentences(config.input_file, done), normalize=config.normalize):
            if file is not None:
                file.append(vectors)
            progress.update(len(vectors))
    if file is not None and done < file.rows:
        file.finish()


def _made_of(model: Model, config: EncodeConfig) -> dict[str, object]:
    """All that the vectors depend on."""
    folder = Path(config.model_dir)
    weights = next(name for name in (SAFE_WEIGHTS, WEIGHTS) if (folder / name).exists())  # as load_weights has it
    return {
        "rows": sum(1 for _ in _sentences(config.input_file)),
        "size": model.size,
        "dtype": config.dtype,
        "--normalize": config.normalize,
        "--max_seq_length": model.description.max_seq_length,
        "--precision": model.precision,
        "content of --input_file": file_digest(config.input_file),
        "weights": file_digest(str(folder / weights)),
        "config.json": file_digest(str(folder / "config.json")),
    }


def _search(model: Model, config: EncodeConfig, count: int, corpus: str) -> None:
    queries = np.concatenate([rows for _, rows in model.embeddings(_sentences(config.input_file), normalize=True)])
    found = Neighbours(torch.from_numpy(queries).to(distributed.device()), count)
    with log.input_bar() as progress:
        for _, vectors in model.embeddings(_sentences(corpus), normalize=True):
            if distributed.is_main():
                found.see(torch.from_numpy(vectors))
            progress.update(len(vectors))
    if not distributed.is_main():
        return
    numbers, cosines = found.numbers.tolist(), found.cosines.tolist()
    wanted = {number for row in numbers for number in row}
    texts = {number: text for number, text in enumerate(_sentences(corpus)) if number in wanted}
    lines = []
    for query, (row, values) in enumerate(zip(numbers, cosines, strict=True), start=1):
        for rank, (number, cosine) in enumerate(zip(row, values, strict=True), start=1):
            lines.append(f"{query}\t{rank}\t{cosine:.6f}\t{number + 1}\t{texts[number]}\n")
    with whole_output(STANDARD, overwrite=False) as file:
        file.writelines(lines)


if __name__ == "__main__":
    cli.command(EncodeConfig, run, __doc__)
