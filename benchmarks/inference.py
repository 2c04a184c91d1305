r"""Inference with trained weights: this project, `transformers.pipeline` with batching, `SentenceTransformer.encode`.

    python -m benchmarks.inference
    python -m benchmarks.inference --pretrained_model_name_or_path bert-base-chinese --texts 20000 --json result.json
    make loaders && python -m benchmarks.inference --loaders_python .venv-loaders/bin/python

Classification against the pipeline, and sentence embeddings against sentence-transformers, from one saved folder each,
on the same texts in one run, turn by turn; texts are tokenised within the measured time. Ratios are medians of the
turns' ratios; results are compared too. `auto` is half precision for all on a GPU, and fp32 on the CPU, where ours is
also run in bf16, and by ONNX Runtime in fp32 and int8; with `--loaders_python` so is sentence-transformers in fp32, in
the environment of that Python, since it needs an older transformers for it. "One text" is the median of calls with a
single one.

"The most" is the ratio of a program that does nothing but the matrix products of the real tokens, in the precision of
the peer, as fast as the device does large ones.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import pipeline

from benchmarks.measuring import DATA, hardware, matmul_flops, timed, versions, write_json
from benchmarks.peers.flops import Work
from bertorch import distributed, load, log
from bertorch.data.dataset import Dataset
from bertorch.data.readers import read_labelled_texts
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.exporting.export import export_graphs
from bertorch.inference.model import Model
from bertorch.precision import Precision
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.training.saving import publish

OURS, OURS_IN_BF16 = "bertorch", "bertorch in bf16"
OURS_BY_RUNTIME = {"onnx": "bertorch by ONNX Runtime", "onnx-int8": "bertorch by ONNX Runtime in int8"}
SINGLE = 30  # calls with one text
LABELS = ["negative", "positive"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    """Measure, print ratios, write JSON on demand."""
    log.setup()
    options = _options()
    device = distributed.device()
    precision = Precision.resolve(options.precision, device).name
    if options.loaders_python is not None and not _exports(precision):
        raise SystemExit("--loaders_python is for a CPU and fp32, where graphs are exported; leave it out")
    found = read_labelled_texts(options.data_file, LABELS).columns[0]
    texts = list(islice(cycle(found), options.texts))
    result: dict[str, Any] = {
        "model": options.pretrained_model_name_or_path,
        "data": options.data_file,
        "texts": len(texts),
        "batch_size": options.batch_size,
        "precision": precision,
        "hardware": hardware(device),
        "versions": versions("torch", "transformers", "sentence-transformers", "onnxruntime"),
    }
    print(f"{result['model']}, {len(texts)} texts, batch {options.batch_size}, {precision}, {result['hardware']}")
    floor = _seconds_of_products(texts, options, device, DTYPES[precision])
    with tempfile.TemporaryDirectory() as folder:
        classifiers = _classification(options, Path(folder) / "classifier", precision)
        embedders = _embeddings(options, Path(folder) / "embedder", precision)
        with _peer_by_runtime(options, Path(folder) / "embedder") as peer:
            for task, contenders in (("classification", classifiers), ("embeddings", {**peer, **embedders})):
                result[task] = _compared(contenders, texts, options.turns, device, floor)
                for name, value in result[task].items():
                    print(f"{task}, {name}: {value:.4g}")
    write_json(result, options.json)


def _seconds_of_products(
    texts: list[str], options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> float:
    """What the matrix products of the texts take at the speed of large ones."""
    name = options.pretrained_model_name_or_path
    tokenizer = load_tokenizer(name)
    examples = Dataset.of_sequences(tokenizer, [texts], np.zeros(len(texts)), max_length=options.max_seq_length)
    forward = Work.of(examples, 1, name).flops / 3  # the backward pass has two thirds
    return forward / matmul_flops(device, dtype)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default=str(DATA / "bert-tiny-zh"))
    parser.add_argument("--data_file", default=str(DATA / "reviews" / "train.txt"), help="text⇥label lines")
    parser.add_argument("--texts", type=int, default=2000, help="the file is repeated, or cut, to so many")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=5, help="turns measured, after one that is not")
    parser.add_argument("--loaders_python", help="that of the environment of `make loaders`, for one more peer")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def _compared(
    contenders: Mapping[str, Callable[[list[str]], np.ndarray]],
    texts: list[str],
    turns: int,
    device: torch.device,
    floor: float,
) -> dict[str, float]:
    """Texts a second, how many times as fast as the last contender the others are, how far their results are apart."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, np.ndarray] = {}

    def job(name: str) -> None:
        results[name] = contenders[name](texts)

    for _ in range(turns + 1):
        for name in contenders:
            seconds[name].append(timed(lambda name=name: job(name), device))  # type: ignore[misc]
    measured = {name: times[1:] for name, times in seconds.items()}
    *others, theirs = contenders
    compared = {f"{name}, texts/s": len(texts) / statistics.median(times) for name, times in measured.items()}
    for name in others:
        ratios = [slow / fast for fast, slow in zip(measured[name], measured[theirs], strict=True)]
        compared[f"{name} over {theirs}"] = statistics.median(ratios)
        compared[f"{name}, largest difference"] = float(np.abs(results[name] - results[theirs]).max())
    for name in contenders:
        single = [timed(lambda name=name, text=text: contenders[name]([text]), device) for text in texts[:SINGLE]]  # type: ignore[misc]
        compared[f"{name}, one text, ms"] = 1000 * statistics.median(single)
    compared[f"the most over {theirs}"] = statistics.median(measured[theirs]) / floor
    return compared


def _ours(
    options: argparse.Namespace, folder: Path, precision: str, use: Callable[[Model, list[str]], np.ndarray]
) -> dict[str, Callable[[list[str]], np.ndarray]]:
    size = options.batch_size
    models = {OURS: load(folder, precision=precision, batch_size=size)}
    if _exports(precision):
        models[OURS_IN_BF16] = load(folder, precision="bf16", batch_size=size)
        for backend, name in OURS_BY_RUNTIME.items():
            export_graphs(str(folder), backend, str(folder), max_loss=1.0)  # what is lost is shown as a difference
            models[name] = load(folder, backend=backend, batch_size=size)
    return {name: partial(use, model) for name, model in models.items()}


def _exports(precision: str) -> bool:
    return precision == "fp32" and distributed.device().type == "cpu"


@contextmanager
def _peer_by_runtime(
    options: argparse.Namespace, folder: Path
) -> Iterator[dict[str, Callable[[list[str]], np.ndarray]]]:
    """sentence-transformers with the graph of the folder, in a process of its own environment; {} without that."""
    if options.loaders_python is None:
        yield {}
        return
    command = [options.loaders_python, str(Path(__file__).with_name("onnx_peer.py")), str(folder)]
    with subprocess.Popen(
        [*command, str(options.batch_size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def encode(texts: list[str]) -> np.ndarray:
            print(json.dumps(texts), file=questions, flush=True)
            return np.load(answers.readline().rstrip("\n"))

        yield {"SentenceTransformer.encode by ONNX Runtime": encode}


def _classification(
    options: argparse.Namespace, folder: Path, precision: str
) -> dict[str, Callable[[list[str]], np.ndarray]]:
    name = options.pretrained_model_name_or_path
    tokenizer = load_tokenizer(name)
    task = ClassificationTask.from_pretrained(
        name, tokenizer, LABELS, text_pair=False, max_seq_length=options.max_seq_length
    )
    folder.mkdir()
    publish(str(folder), task.model.weights.state_dict(), task.savables)
    theirs = pipeline(
        "text-classification", model=str(folder), dtype=DTYPES[precision], device=distributed.device(), top_k=None
    )

    def by_pipeline(texts: list[str]) -> np.ndarray:
        found = theirs(texts, batch_size=options.batch_size, truncation=True, max_length=options.max_seq_length)
        return np.array([[{each["label"]: each["score"] for each in row}[label] for label in LABELS] for row in found])

    def by_us(model: Model, texts: list[str]) -> np.ndarray:
        return np.array([list(prediction.probabilities.values()) for prediction in model.predict(texts)])

    return {**_ours(options, folder, precision, by_us), "transformers.pipeline": by_pipeline}


def _embeddings(
    options: argparse.Namespace, folder: Path, precision: str
) -> dict[str, Callable[[list[str]], np.ndarray]]:
    name = options.pretrained_model_name_or_path
    tokenizer = load_tokenizer(name)
    model = SentenceEncoder.from_pretrained(name, "mean")
    task = ContrastiveTask(model, tokenizer=tokenizer, max_seq_length=options.max_seq_length)
    folder.mkdir()
    publish(str(folder), model.weights.state_dict(), task.savables)
    theirs = SentenceTransformer(
        str(folder), device=str(distributed.device()), model_kwargs={"dtype": DTYPES[precision]}
    )

    def by_sentence_transformers(texts: list[str]) -> np.ndarray:
        vectors = theirs.encode(texts, batch_size=options.batch_size, convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().cpu().numpy()

    ours = _ours(options, folder, precision, lambda model, texts: model.encode(texts))
    return {**ours, "SentenceTransformer.encode": by_sentence_transformers}


if __name__ == "__main__":
    main()
