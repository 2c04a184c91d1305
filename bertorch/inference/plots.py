"""A confusion matrix as a picture; needs matplotlib, the extra `plots`."""

from collections.abc import Sequence

import numpy as np

from bertorch.figures import readable_names, write_png

_LONGEST_LABEL = 20
_WRITTEN_CELLS = 20  # labels up to which the cells have their numbers in them


def draw_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], path: str) -> None:
    """Draw a confusion matrix into a PNG.

    Args:
        matrix: (C, C) counts, a row for each gold label.
        labels: C of them.
        path: of the PNG, which is replaced.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    shown, fonts = readable_names(labels, "label", longest=_LONGEST_LABEL)
    counts = np.array(matrix)
    side = 2.5 + 0.5 * min(len(labels), 40)
    with rc_context({"font.family": fonts}):
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the gold label")
        # A label may have dollar signs, which are no formula.
        axes.set_xticks(range(len(labels)), shown, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(labels)), shown, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("gold")
        if len(labels) <= _WRITTEN_CELLS:
            for (row, column), count in np.ndenumerate(counts):
                dark = shares[row, column] > 0.5
                axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
        write_png(figure, path)
