"""Files of teachers with random rows."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bertorch.data.teacher import TextsDigest, record_path, write_logits


def random_rows(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(width).normal(scale=2, size=(count, width)).astype(np.float32)


def digest(texts: Iterable[str]) -> TextsDigest:
    made = TextsDigest()
    made.update(texts)
    return made


def class_teacher(
    path: Path, rows: np.ndarray, names: Sequence[str] = ("a", "b", "c"), texts: Iterable[str] = ()
) -> str:
    """As `predict --logits` leaves it."""
    write_logits(str(path), rows, names, digest(texts))
    return str(path)


def vector_teacher(path: Path, rows: np.ndarray, texts: Iterable[str] = ()) -> str:
    """As `encode` leaves it."""
    np.save(path, rows)
    record_path(str(path)).write_text(json.dumps({"made_of": {}, "done": len(rows), "texts": digest(texts).value}))
    return str(path)
