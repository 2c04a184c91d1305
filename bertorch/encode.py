r"""Encode sentences with a trained model of sentence embeddings, and find the nearest of another file.

    python -m bertorch.encode --model_dir checkpoint --input_file in.txt --output_file out.npy --normalize
    python -m bertorch.encode --model_dir checkpoint --input_file in.txt --output_file out.npy --dimensions 64
    python -m bertorch.encode --model_dir checkpoint --input_file in.txt --nearest 5 --corpus_file corpus.txt
    torchrun --nproc_per_node=2 -m bertorch.encode …

The folder is one of run_sentencebert.py, run_simcse.py or run_batchneg.py. A line of input is a sentence, or with
`--columns` has several, whose vectors follow each other. The same command again resumes an interrupted one, and leaves
a finished one as it is. `--nearest` prints lines
`line of the sentence⇥rank⇥cosine⇥line of the neighbour⇥neighbour`, lines counted from 1; the search is exact.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from bertorch import cli
from bertorch.config import BACKENDS, PROMPT_ROLES, InferenceConfig, option
from bertorch.data.lines import cell
from bertorch.errors import UserError
from bertorch.files import STANDARD, is_stream, refuse_inputs, whole_output

if TYPE_CHECKING:
    import numpy as np

    from bertorch.data.model_digests import ModelDigests
    from bertorch.inference.model import Model


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(InferenceConfig):
    """Options of `bertorch.encode`."""

    input_file: str = option(help="a sentence a line; see --columns")
    output_file: str | None = option(None, help="a .npy file, a row for each sentence")
    columns: int | None = option(
        None,
        minimum=1,
        help="sentences of a line of --input_file, such as 2 of pairs; for a model with prompts the first is a query, "
        "the others are passages",
    )
    dtype: str = option("float32", choices=("float32", "float16"), help="of the numbers in --output_file")
    normalize: bool = option(False, help="embeddings of length 1, whose product is the cosine")
    dimensions: int | None = option(
        None, minimum=1, help="only the first dimensions, of length 1; for models trained with --matryoshka"
    )
    nearest: int | None = option(None, minimum=1, help="print this many neighbours of each sentence by cosine")
    corpus_file: str | None = option(None, help="where --nearest looks for them, a sentence a line")
    prompt: str | None = option(
        None,
        choices=PROMPT_ROLES,
        help="what the sentences of --input_file are, for a model with prompts; those of --corpus_file are passages, "
        "or with none have no prompt either; without it all have the default prompt of a folder of "
        "sentence-transformers, if it has one",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.nearest is None) != (self.corpus_file is None):
            raise UserError("--nearest and --corpus_file need each other")
        if self.output_file is None and self.nearest is None:
            raise UserError("expected --output_file, or --nearest with --corpus_file, got neither")
        if self.output_file is not None and not self.output_file.endswith(".npy"):
            raise UserError(f"--output_file {self.output_file}: expected a name that ends in .npy")
        if self.columns is not None and (self.nearest is not None or self.prompt in ("query", "passage")):
            other = "--nearest" if self.nearest is not None else f"--prompt {self.prompt}"
            raise UserError(f"--columns and {other} do not go together: a column says what its sentences are")
        for name in filter(is_stream, filter(None, (self.input_file, self.corpus_file))):
            raise UserError(f"{name}: expected a file, since sentences are counted before they are encoded; name one")


def run(config: EncodeConfig) -> None:
    """Encode, search, or both."""
    from bertorch.inference.load import load_shared
    from bertorch.inference.vectors import vector_files

    if config.output_file is not None:  # before the model is loaded
        refuse_inputs(map(str, vector_files(config.output_file)), [config.input_file, config.corpus_file])
    model = load_shared(config)
    # Raises, if the model has no embeddings or fewer dimensions, or cannot apply the prompt.
    role = config.prompt if config.columns is None else "none"
    model.task.embedder(normalize=config.normalize, dimensions=config.dimensions, role=role)
    widths = model.task.embedding_widths or (model.size,)
    if config.dimensions is not None and config.dimensions not in widths:
        trained = f"the model was trained at {', '.join(map(str, widths))} dimensions"
        logger.warning("--dimensions {}: {}; see --matryoshka of the scripts", config.dimensions, trained)
    if config.output_file is not None:
        _encode(model, config, config.output_file)
    if config.nearest is not None and config.corpus_file is not None:
        _search(model, config, config.nearest, config.corpus_file)


def _sentences(path: str, columns: int | None = None) -> "Iterator[str]":
    from bertorch.data.readers import stream_texts

    return chain.from_iterable(stream_texts(path, num_texts=columns or 1))


def _encode(model: "Model", config: EncodeConfig, path: str) -> None:
    from bertorch.writer_lock import only_writer

    target = Path(os.path.realpath(path))
    with only_writer(target.with_name(f".{target.name}.lock"), f"--output_file {path}"):
        _encode_into(path, model, config)


def _encode_into(path: str, model: "Model", config: EncodeConfig) -> None:
    from bertorch.data.model_digests import DIGESTS, ModelDigests
    from bertorch.data.teacher import TEXTS, TextsDigest, record_path
    from bertorch.inference.vectors import VectorFile, write_vectors

    def prepare() -> VectorFile:
        digests = ModelDigests(record_path(path))
        texts = TextsDigest()
        texts.update(_sentences(config.input_file, config.columns))
        made_of = _made_of(model, config, digests, rows=texts.count)
        record = {DIGESTS: digests.weights, TEXTS: texts.value}
        return VectorFile(path, made_of, overwrite=config.overwrite, record=record)

    def blocks(done: int) -> "Iterator[np.ndarray]":
        sentences, role = _sentences(config.input_file, config.columns), config.prompt
        if config.columns is not None and role is None:  # the columns have the roles
            prompts = cycle(model.task.prompts_of_columns(config.columns))
            sentences, role = (prompt + text for prompt, text in zip(prompts, sentences, strict=False)), "none"
        encode = partial(model.embeddings, normalize=config.normalize, dimensions=config.dimensions)
        return (vectors for _, vectors in encode(islice(sentences, done, None), prompt=role))

    write_vectors(prepare, blocks)


def _made_of(model: "Model", config: EncodeConfig, digests: "ModelDigests", *, rows: int) -> dict[str, object]:
    """What the vectors depend on."""
    from bertorch.data.fingerprint import file_digest
    from bertorch.distributed import world_size
    from bertorch.inference.load import graph_contents

    return {
        "rows": rows,
        "size": config.dimensions or model.size,
        "dtype": config.dtype,
        "--normalize": config.normalize or config.dimensions is not None,
        **({} if config.prompt is None else {"--prompt": config.prompt}),
        **({} if config.columns is None else {"--columns": config.columns}),
        "--max_seq_length": model.task.max_seq_length,
        "--precision": model.engine.precision.name,
        "content of --input_file": file_digest(config.input_file),
        **{f"content of --model_dir, {file}": digest for file, digest in digests.of_model(config.model_dir).items()},
        **{f"content of --model_dir, {graph}": digest for graph, digest in graph_contents(model).items()},
        # Int8 depends a little on what else is in a batch.
        **({"--batch_size times processes": world_size() * config.batch_size} if config.backend == BACKENDS[2] else {}),
    }


def _search(model: "Model", config: EncodeConfig, count: int, corpus: str) -> None:
    import numpy as np
    import torch

    from bertorch import distributed, log
    from bertorch.tasks.search import Nearest

    encode = partial(model.embeddings, normalize=True, dimensions=config.dimensions)
    role, of_corpus = config.prompt, config.prompt if config.prompt in (None, "none") else "passage"
    queries = np.concatenate([rows for _, rows in encode(_sentences(config.input_file), prompt=role)])
    nearest = Nearest(torch.from_numpy(queries).to(distributed.device()), count)
    with log.input_bar() as progress:
        for _, vectors in encode(_sentences(corpus), prompt=of_corpus):
            if distributed.is_main():
                nearest.update(torch.from_numpy(vectors))
            progress.update(len(vectors))
    if not distributed.is_main():
        return
    indices, cosines = nearest.found.indices.tolist(), nearest.found.scores.tolist()
    wanted = {index for row in indices for index in row}
    texts = {index: text for index, text in enumerate(_sentences(corpus)) if index in wanted}
    with whole_output(STANDARD, overwrite=False) as file:
        for line, neighbours in enumerate(map(zip, indices, cosines), start=1):
            for rank, (index, cosine) in enumerate(neighbours, start=1):
                file.write(f"{line}\t{rank}\t{cosine:.6f}\t{index + 1}\t{cell(texts[index])}\n")


if __name__ == "__main__":
    cli.command(EncodeConfig, run, __doc__)
