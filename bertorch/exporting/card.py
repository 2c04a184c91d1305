"""What the model card of an exported folder says of the export: how it was checked, and what came of it."""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from loguru import logger

import bertorch
from bertorch.atomic import replacing, to_disk
from bertorch.data.lines import cell
from bertorch.encoder.onnx_files import ARM, FOLDER, FULL, SAFE, VNNI, ExportRecord
from bertorch.files import writing
from bertorch.tasks.base import Task
from bertorch.training.hub_metadata import NOTHING_GIVEN, HubOptions, read_metadata, task_metadata, with_metadata
from bertorch.training.model_card import CARD, MARK, is_foreign
from bertorch.weights import SAFE_WEIGHTS

_HEADING = "## Export\n"


def write_card(task: Task[Any], source: Path, output: Path, hub: HubOptions = NOTHING_GIVEN) -> None:
    """Write the card of an exported folder, or what is new in it, atomically; one that is not ours is left alone.

    A card of ours in the `source`, or else in the folder, is kept; `hub` goes into the metadata, or else what an
    earlier export of the folder was given for them.

    Raises:
        UserError: it cannot be written.
    """
    target = output / CARD
    if is_foreign(target):
        logger.info("{}: is not ours, so it does not say how the export was checked", target)
        return
    before = next((path for path in (source / CARD, target) if path.exists() and not is_foreign(path)), None)
    text = _empty(task, source) if before is None else _read(before)
    earlier = NOTHING_GIVEN
    if target.exists() and output.resolve() != source.resolve():
        earlier = HubOptions.of(read_metadata(_read(target), target)[0])
    if (earlier, hub) != (NOTHING_GIVEN, NOTHING_GIVEN):
        metadata, body = read_metadata(text, before or target)
        earlier.update(metadata)
        hub.update(metadata)
        text = with_metadata(metadata, body)
    section = _section(output, has_weights=output.resolve() != source.resolve() and (output / SAFE_WEIGHTS).exists())
    with writing(target), replacing(target) as new:
        new.write_text(_with_section(text, section), encoding="utf-8", errors="backslashreplace")
    to_disk(output, deep=False)


def _read(card: Path) -> str:
    return card.read_text(encoding="utf-8", errors="replace")


def _empty(task: Task[Any], source: Path) -> str:
    return with_metadata(task_metadata(task), f"{MARK}\n\n# {cell(source.resolve().name)}, exported\n")


def _with_section(text: str, section: str) -> str:
    """The text with this section at its end, in the place of an earlier one."""
    without = re.sub(rf"\n{re.escape(_HEADING)}.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    return f"{without.rstrip()}\n\n{section}"


def _section(output: Path, *, has_weights: bool) -> str:
    lines = [_HEADING.rstrip()]
    if has_weights:
        lines += [f"The weights in `{SAFE_WEIGHTS}` are those of the run; outputs are the same.", ""]
    rows = []
    for kind in (FULL, VNNI, SAFE, ARM):
        graph = output / FOLDER / kind.file
        record = ExportRecord.read(graph) if graph.exists() else None
        if record is not None:
            rows.append(_row(f"{FOLDER}/{kind.file}", graph.stat().st_size, record.check))
    if rows:
        lines += ["Each file was compared with the model before it took its place:", ""]
        lines += [
            "| file | MB | measure | model | export | loss | 95 % interval | allowed | examples |",
            "|---" * 9 + "|",
        ]
        lines += [*rows, ""]
    lines += [f"bertorch {bertorch.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"]
    return "\n".join(lines) + "\n"


def _row(name: str, size: int, check: Any) -> str:
    interval = check.get("interval")
    cells = [
        f"`{name}`",
        f"{size / 1e6:.1f}",
        check["measure"],
        f"{check['before']:.5f}" if "before" in check else "",
        f"{check['value']:.5g}",
        f"{check['loss']:.5g}",
        "" if interval is None else f"{interval[0]:.5f} to {interval[1]:.5f}",
        f"{check['limit']:g}",
        f"{check['examples']}: {cell(str(check['data'])).replace('|', ' ')}",
    ]
    return f"| {' | '.join(cells)} |"
