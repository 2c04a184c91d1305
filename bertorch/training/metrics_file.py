"""The numbers of a run: `metrics.jsonl` in `--saved_dir`, a JSON object per line, and TensorBoard.

There is a line for each line of the training log, and one for each evaluation:

    {"step": 20, "epoch": 1, "loss": 0.68, "accuracy": 0.56, "rate": 4.2e-05, "speed": 2.4, "tokens_per_second": 2300.1,
     "memory": 913612800}
    {"step": 100, "epoch": 2, "metric": "dev_accuracy", "dev_accuracy": 0.61, "dev_loss": 0.66}

`loss` and `accuracy` are those of the step's batch. `rate` is the learning rate of the step, `head_rate` that of a head
with its own. `speed` is in steps per second; `tokens_per_second` counts the real tokens of all processes. `memory` is
the first process's peak in bytes: of its GPU's memory, or of the machine's where it has no GPU. `metric` names the
number by which the best weights are chosen.
"""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch.atomic import replacing, to_disk
from bertorch.errors import UserError
from bertorch.files import require_file

METRICS = "metrics.jsonl"
_MOST_STEPS = 2**53
_LARGEST = 1e300  # of numbers of other programs

Line = Mapping[str, Any]


class MetricsFile:
    """Writes `metrics.jsonl` of a run into `folder`. Only the first process uses it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS
        self._held: list[Line] | None = []  # lines until the file is ours, then None

    def start(self) -> None:
        """Begin a new file where there is none."""
        self._held = None

    def resume(self, step: int) -> None:
        """Keep the lines up to a step: a killed run has written lines of steps that are now taken again."""
        lines = read_metrics(self._path) if self._path.exists() else []
        self._replace([line for line in lines if line["step"] <= step])
        self._held = None

    def append(self, line: Line) -> None:
        """Add a line; before `start`, `resume` or `release` it is held back."""
        if self._held is not None:
            self._held.append(line)
            return
        with open(self._path, "a", encoding="utf-8", opener=_open_no_link) as file:
            file.write(_text([line]))

    def release(self) -> None:
        """Replace the file of an earlier run with the lines held back."""
        if self._held is not None:
            self._replace(self._held)
            self._held = None

    def to_disk(self) -> None:
        """Wait until the lines, if any, are on the disk."""
        if self._held is None and self._path.exists():
            to_disk(self._path)

    def _replace(self, lines: list[Line]) -> None:
        with replacing(self._path) as new:
            new.write_text(_text(lines), encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without an unfinished last one.

    Raises:
        UserError: there is no such file, it cannot be read, or a line has another form.
    """
    require_file(path, f"the {METRICS} of a run")
    try:
        *texts, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{path}: expected a readable {METRICS}, got: {error.strerror or error}") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not _is_line(line):
            raise UserError(
                f"{path}:{number}: expected a JSON object with a step, got {text[:60]!r}; remove that line, or the file"
            )
        lines.append(line)
    return lines


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or abs(line["step"]) >= _MOST_STEPS:
        return False
    return all(isinstance(value, str) if name == "metric" else _is_number(value) for name, value in line.items())


def _is_number(value: Any) -> bool:
    """Whether it is a number; one that is finite is small enough for differences."""
    return isinstance(value, int | float) and (not _is_json(value) or abs(value) <= _LARGEST)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _text(lines: list[Line]) -> str:
    """As JSON, which has no NaN and no infinity: such numbers, say of a hook, are left out."""
    finite = ({name: value for name, value in line.items() if _is_json(value)} for line in lines)
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in finite)


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


class TensorBoardFolder:
    """Writes the numbers of `metrics.jsonl` for TensorBoard, an extra. Only the first process uses it.

    The run continues after the step `after`; TensorBoard hides later ones that the folder already has. Its own writer
    is not used: an error of writing ends a thread there, with a traceback.

    Raises:
        UserError: the package is missing, or the folder cannot be written to.
    """

    def __init__(self, folder: str, *, after: int) -> None:
        self._folder, self._is_full = folder, False
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: PLC0415 - an extra
            from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415

            self._writer, self._event, self._summary = RecordWriter, event_pb2.Event, summary_pb2.Summary
            Path(folder).mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            self._path = Path(folder) / name
            self._append(file_version="brain.Event:2")
            self._append(step=after + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        except ImportError as error:
            raise UserError(
                f"--tensorboard_dir {folder}: expected the package tensorboard, got: {error}; install it with "
                "`pip install tensorboard`, or leave the option out: metrics.jsonl has the same numbers"
            ) from error
        except OSError as error:
            raise UserError(
                f"--tensorboard_dir {folder}: expected a folder that can be written to, got: {error.strerror or error}"
            ) from error

    def write(self, line: Line) -> None:
        """Write the numbers of a line, visible at once; where that fails, the log says so, and the run goes on."""
        if self._is_full:
            return
        numbers = {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
        tags = {name: name.replace("dev_", "dev/") for name in numbers}
        values = [self._summary.Value(tag=tags[name], simple_value=value) for name, value in numbers.items()]
        try:
            self._append(step=line["step"], summary=self._summary(value=values))
        except OSError as error:
            self._is_full = True
            logger.warning(
                "--tensorboard_dir {}: gets no more numbers, since it cannot be written to: {}; {} has them all",
                *(self._folder, error.strerror or error, METRICS),
            )

    def _append(self, **content: Any) -> None:
        with self._path.open("ab") as file:
            self._writer(file).write(self._event(wall_time=time.time(), **content).SerializeToString())
