"""The checkpoints in `--saved_dir`: `checkpoint-200` has everything that the run needs to continue after step 200."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loguru import logger
from safetensors import SafetensorError
from safetensors.torch import load_file

from bertorch.atomic import remove, unfinished_name
from bertorch.training.state import State

PROGRESS = "progress"  # the part with the `step` that a run has reached, and its `last_step`
STATE = "training_state.json"
_OURS = (STATE, "optimizer.safetensors")  # the latter, if a kill left it of one that was being removed
_NAME = re.compile(r"checkpoint-(\d+)", re.ASCII)


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"checkpoint-{step}"


def checkpoints(folder: Path, until: float = math.inf) -> list[Path]:
    """The checkpoints in a folder up to a step, the newest first."""
    named = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for step, path in sorted(named, reverse=True) if step <= until and path.is_dir()]


def foreign_checkpoints(folder: Path) -> set[str]:
    """The names of folders that are called like checkpoints, and that no run of ours wrote; a link loses nothing."""
    there = [path for path in checkpoints(folder) if not path.is_symlink()] if folder.is_dir() else []
    return {path.name for path in there if any(path.iterdir()) and not any((path / name).exists() for name in _OURS)}


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, or what has its name; a kill leaves the whole of it, or what `unfinished` removes."""
    if path.is_symlink() or not path.is_dir():
        remove(path)
        return
    remove(path.rename(unfinished_name(path.parent)))


def newest_checkpoint(folder: Path, run: str) -> dict[str, State] | None:
    """The parts in the newest readable checkpoint of a run, None if it has none; others are logged."""
    for path in checkpoints(folder):
        try:
            content = json.loads((path / STATE).read_text(encoding="utf-8"))
            if content["run"] == run:
                return _parts(path, _convert_legacy(content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            logger.warning("{}: skipped, it cannot be read: {}: {}", path, type(error).__name__, error)
    return None


def _parts(path: Path, content: dict[str, Any]) -> dict[str, State]:
    tensors = {name: load_file(path / f"{name}.safetensors") for name in content["with_tensors"]}
    parts = {name: State(tensors.get(name, {}), values) for name, values in content["parts"].items()}
    step, last_step = progress_of(parts)
    if not 0 < step <= last_step or "model" not in tensors:
        raise ValueError(f"expected a model and its step, got step {step} of {last_step}, {', '.join(tensors)}")
    return parts


def progress_of(parts: Mapping[str, State]) -> tuple[int, int]:
    """The step of a checkpoint, and the run's last step."""
    values = parts[PROGRESS].values
    return int(values["step"]), int(values["last_step"])


def _convert_legacy(content: dict[str, Any]) -> dict[str, Any]:
    """The content of `training_state.json` from before a checkpoint was a list of parts."""
    if "parts" in content:
        return content
    optimization, best = content["optimization"], content["best"]
    names = {"last_step": "steps", "evaluations_since_best": "unimproved"}
    names |= {name: name for name in ("step", "processes", "weights_step", "history")}
    progress = {name: content[old] for name, old in names.items()}
    progress["best"] = best and {name: best[name] for name in ("name", "value", "step")} | {"summary": best["report"]}
    parts = {"progress": progress, "model": None, "optimizer": {"rates": optimization["rates"]}}
    parts |= {name: optimization[name] for name in ("scheduler", "scaler")}
    parts["step"] = {"overflows": optimization["overflows"]}
    return {"run": content["run"], "with_tensors": ["model", "optimizer"], "parts": parts}
