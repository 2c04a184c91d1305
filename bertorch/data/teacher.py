"""What a teacher gives for the lines of a training file: the array of `--teacher`, and a record of its texts beside it.

`rows.npy` has a row for each input, and `rows.npy.json` says of which texts, in order, and of logits also of which
labels. `bertorch.predict --logits` and `bertorch.encode` write both.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from typing_extensions import override

from bertorch import distributed
from bertorch.atomic import replacing
from bertorch.config import TeacherConfig, TrainingConfig
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Decorated, Examples
from bertorch.data.line_forms import parse_input
from bertorch.data.lines import first_few, stream_rows
from bertorch.data.mapped import announce_reading
from bertorch.errors import UserError
from bertorch.files import read_record, replacing_output, require_file, to_json, writing

TEXTS, LABELS = "texts", "labels"  # keys of a record
_AGAIN = "write it with bertorch.predict --logits, for classes, or bertorch.encode, for vectors"


def record_path(path: str) -> Path:
    """Where the record of an array is; a link is followed."""
    return Path(f"{os.path.realpath(path)}.json")


class TextsDigest:
    """A hash of texts in order."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)
        self.count = 0

    def update(self, texts: Iterable[str]) -> None:
        """Add texts."""
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            self._hash.update(len(encoded).to_bytes(8, "little") + encoded)
            self.count += 1

    @property
    def value(self) -> str:
        """Of the texts so far."""
        return self._hash.hexdigest()


def write_logits(path: str, logits: np.ndarray, label_names: Sequence[str], texts: TextsDigest) -> None:
    """Write logits (N, C) and their record; until both are there, there is no record. See `replacing_output`."""
    with writing(path):
        Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)
        record_path(path).unlink(missing_ok=True)
    with replacing_output(path) as new, new.open("wb") as file:
        np.save(file, logits, allow_pickle=False)
    with writing(record_path(path)), replacing(record_path(path)) as new:
        new.write_text(to_json({TEXTS: texts.value, LABELS: list(label_names)}, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class TeacherRows:
    """The content of `--teacher`, mapped into memory."""

    path: str
    rows: np.ndarray  # (M, K), logits of K classes or vectors of K numbers
    texts: str  # the `TextsDigest` of all texts
    label_names: Sequence[str] | None  # None of vectors
    num_texts: int | None = None  # see `TeacherConfig.num_texts`

    @classmethod
    def of(cls, config: TrainingConfig) -> "TeacherRows | None":
        """Those of a run that has a teacher; errors as in `open`."""
        if not isinstance(config, TeacherConfig) or config.teacher is None:
            return None
        return replace(cls.open(config.teacher), num_texts=config.num_texts)

    @classmethod
    def open(cls, path: str) -> "TeacherRows":
        """Map the array.

        Raises:
            UserError: there is no such array, or no record of its texts beside it.
        """
        expected = f"an array (rows, columns) of numbers in a .npy file; {_AGAIN}"
        require_file(path, expected)
        try:
            rows = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"--teacher {path}: expected {expected}; got: {error}") from error
        if rows.ndim != 2 or rows.dtype.kind != "f" or not rows.flags.c_contiguous:
            order = "" if rows.flags.c_contiguous else " column by column"  # a row would lie all over the file
            raise UserError(f"--teacher {path}: expected {expected}; got {rows.dtype} {rows.shape}{order}")
        record = record_path(path)
        found = read_record(
            record,
            lambda read: (str(read[TEXTS]), None if read.get(LABELS) is None else list(map(str, read[LABELS]))),
            expected="the hash of the texts of --teacher beside it",
            remedy=f"{_AGAIN}; with --overwrite, where the array is from an earlier version",
        )
        if found is None:
            raise UserError(f"{record}: expected the hash of the texts of --teacher {path}, got no file; {_AGAIN}")
        return cls(path, rows.view(np.ndarray), *found)

    def require_labels(self, label_names: Sequence[str]) -> None:
        """Raise a `UserError` if the columns are not logits of these classes in their order; of none for vectors."""
        names, columns = self.label_names, self.rows.shape[1]
        if not label_names:
            if names is not None:
                raise UserError(f"--teacher {self.path}: expected vectors of bertorch.encode, got logits of classes")
        elif names is None:
            raise UserError(f"--teacher {self.path}: expected logits of bertorch.predict --logits, got vectors")
        elif names != list(label_names):
            order = ", in another order" if sorted(names) == sorted(label_names) else ""
            raise UserError(
                f"--teacher {self.path}: expected logits of the labels {first_few(label_names)}, in the order of the "
                f"label file, got those of {first_few(names)}{order}; train the teacher with the same label file"
            )
        elif columns != len(names):
            raise UserError(f"--teacher {self.path}: expected {len(names)} columns, a label each, got {columns}")

    def beside(self, examples: Examples, training_file: str) -> "TaughtExamples":
        """The N examples of a training file of N lines, with these rows; a `UserError` if they are of other texts."""
        distributed.on_main(lambda: self._require_texts(training_file))
        return TaughtExamples(examples, self.rows.reshape(len(examples), -1, self.rows.shape[1]))

    def _require_texts(self, training_file: str) -> None:
        require_file(training_file, "with --teacher a training file that can be read twice")
        texts, lines = TextsDigest(), 0
        for row in _texts_of(training_file, self.num_texts):
            texts.update(row)
            lines += 1
        expected = texts.count if self.label_names is None else lines
        each = "text" if expected > lines else "line"
        if len(self.rows) != expected:
            raise UserError(
                f"--teacher {self.path}: expected {expected} rows, one for each {each} of {training_file}, got "
                f"{len(self.rows)}"
            )
        if self.texts != texts.value:
            raise UserError(
                f"--teacher {self.path}: expected rows of the texts of {training_file}, in their order, got those of "
                "others; write it again for this file"
            )


@dataclass(frozen=True)
class TaughtExamples(Decorated):
    """Examples whose batches also have what a teacher gives for them."""

    teacher: np.ndarray  # (N, R, K), see `PackedBatch.teacher`

    @override
    def batch(self, indices: np.ndarray) -> PackedBatch:
        size = int(np.prod(self.teacher.shape[1:]))
        announce_reading(self.teacher.reshape(-1), indices * size, (indices + 1) * size)
        rows = torch.from_numpy(self.teacher[indices].astype(np.float32))  # (examples, R, K)
        return replace(super().batch(indices), teacher=rows)


def _texts_of(path: str, num_texts: int | None) -> Iterator[Sequence[str]]:
    """The texts of the lines of a training file."""

    def parse(line: str) -> Sequence[str]:
        return line.split("\t")[:num_texts]

    def parse_json(line: str) -> Sequence[str]:
        return parse_input(line, num_texts or 0)

    return stream_rows(path, parse, None if num_texts is None else parse_json)
