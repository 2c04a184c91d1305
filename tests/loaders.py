"""What loaders of other projects make of saved folders; it imports nothing of this project, and runs where it is not.

python loaders.py JOBS.json RESULTS.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run(jobs: Sequence[dict[str, Any]]) -> list[Any]:
    """The results of jobs, as JSON: a loader, its folder, its inputs, and settings that it takes."""
    return [LOADERS[job["loader"]](job["folder"], job["inputs"], **job["settings"]) for job in jobs]


def _pipeline(folder: str, inputs: list[Any], task: str, **settings: Any) -> Any:
    from transformers import pipeline

    return json.loads(json.dumps(pipeline(task, model=folder, device="cpu")(inputs, **settings), default=float))


def _sentence_transformer(folder: str, inputs: list[Any], **settings: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, device="cpu", **settings).encode(inputs, show_progress_bar=False).tolist()


def _cross_encoder(folder: str, inputs: list[Any], **settings: Any) -> Any:
    from sentence_transformers import CrossEncoder

    pairs = [tuple(pair) for pair in inputs]
    return CrossEncoder(folder, device="cpu", **settings).predict(pairs, show_progress_bar=False).tolist()


LOADERS = {"pipeline": _pipeline, "SentenceTransformer": _sentence_transformer, "CrossEncoder": _cross_encoder}

if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(run(json.loads(source.read_text()))))
