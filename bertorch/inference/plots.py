"""A confusion matrix as a picture; needs matplotlib, the extra `plots`."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bertorch.errors import UserError
from bertorch.files import replacing

# Of those that have Chinese characters, the ones that are installed are asked after matplotlib's own font.
_FONTS = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "SimHei")
_WRITTEN_CELLS = 20  # labels up to which the cells have their numbers in them


def require_matplotlib(option: str) -> None:
    """Make sure that pictures can be drawn.

    Args:
        option: that asks for them.

    Raises:
        UserError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError(f"{option} needs matplotlib; install it by: pip install matplotlib (the extra 'plots')")


def draw_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], path: str) -> None:
    """Draw a confusion matrix into a PNG.

    Args:
        matrix: (C, C) counts, a row for each gold label.
        labels: C of them.
        path: of the PNG.
    """
    from matplotlib import font_manager  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    known = {font.name for font in font_manager.fontManager.ttflist}
    family = ["DejaVu Sans", *(font for font in _FONTS if font in known)]
    counts = np.array(matrix)
    side = 2.5 + 0.5 * min(len(labels), 40)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the gold label")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontfamily=family)
    axes.set_yticks(range(len(labels)), labels, fontfamily=family)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    if len(labels) <= _WRITTEN_CELLS:
        for (row, column), count in np.ndenumerate(counts):
            dark = shares[row, column] > 0.5
            axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    with replacing(Path(path)) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")
