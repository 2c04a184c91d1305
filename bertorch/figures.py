"""What all figures need: matplotlib (the extra `plots`), a font with the characters of their names, a PNG."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from loguru import logger

from bertorch.errors import UserError
from bertorch.files import replacing_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_LABEL = 20
CELLS_WITH_COUNTS = 20  # labels up to which the cells of a confusion matrix have their counts in them
_LAST_RESORT = "Last Resort"  # a font of matplotlib that draws every character as a box


def require_matplotlib(user: str) -> None:
    """Raise a UserError if matplotlib, which this option or command needs, is not installed."""
    if find_spec("matplotlib") is None:
        raise UserError(f"{user} needs matplotlib; install it by: pip install matplotlib (the extra 'plots')")


def readable_names(names: Sequence[str], noun: str, *, longest: int) -> tuple[list[str], list[str]]:
    """Names that can be drawn, and the fonts to draw them with.

    The default font has no Chinese characters. Another installed font that has all of them is added; without one the
    names are replaced by numbers, which the log explains, with the `noun` for what they name. Names of more characters
    than `longest` are truncated on the left.
    """
    from matplotlib import font_manager, rcParams  # noqa: PLC0415 - an extra

    fonts = list(rcParams["font.family"])
    printable = ["".join(character if character.isprintable() else "?" for character in name) for name in names]
    shown = [name if len(name) <= longest else "…" + name[-longest:] for name in printable]
    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    missing = {character for character in "".join(shown) if not default.get_char_index(ord(character))}
    if not missing:
        return shown, fonts
    font = _font_with(missing)
    if font is not None:
        return shown, [*fonts, font]
    logger.warning("no installed font has {}; each {} is numbered instead", "".join(sorted(missing)), noun)
    for index, name in enumerate(printable, start=1):
        logger.info("{} {}: {}", noun, index, name)
    return [f"{noun} {index}" for index in range(1, len(shown) + 1)], fonts


def _font_with(characters: set[str]) -> str | None:
    """An installed font that has all of these characters, preferably upright and of normal weight."""
    from matplotlib import font_manager  # noqa: PLC0415 - an extra

    upright_first = sorted(
        font_manager.fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400)
    )
    for font in upright_first:
        if not font.name.startswith(_LAST_RESORT):
            content = font_manager.get_font(font.fname)
            if all(content.get_char_index(ord(character)) for character in characters):
                return font.name
    return None


def write_png(figure: "Figure", path: str) -> None:
    """Write a figure, replacing the file; if that fails, a UserError, and the file is unchanged."""
    with replacing_output(path) as new:
        figure.savefig(new, format="png", dpi=150)


def draw_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], path: str) -> None:
    """Draw a confusion matrix (C, C), a row of counts for each gold label, into a PNG, which is replaced.

    Raises:
        UserError: it cannot be written.
    """
    import numpy as np  # noqa: PLC0415 - commands without a figure start without it
    from matplotlib import rc_context  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    shown, fonts = readable_names(labels, "label", longest=LONGEST_LABEL)
    counts = np.array(matrix)
    side = 2.5 + 0.5 * min(len(labels), 40)
    with rc_context({"font.family": fonts}):
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the gold label")
        # A dollar sign in a label starts no formula.
        axes.set_xticks(range(len(labels)), shown, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(labels)), shown, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("gold")
        if len(labels) <= CELLS_WITH_COUNTS:
            for (row, column), count in np.ndenumerate(counts):
                dark = shares[row, column] > 0.5
                axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
        write_png(figure, path)


def draw_reliability(bins: Sequence[Mapping[str, float]], error: float, path: str) -> None:
    """Draw the accuracy of each bin of probabilities against its mean probability into a PNG, which is replaced.

    A calibrated model is on the diagonal. The size of a point says how many examples it has.

    Args:
        bins: `calibration_bins` of the report: `probability`, `accuracy` and `examples` of each.
        error: the expected calibration error.
        path: of the PNG.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    names = ("probability", "accuracy", "examples")
    probabilities, accuracies, examples = ([row[name] for row in bins] for name in names)  # (bins,) each
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="dashed", linewidth=1)
    axes.plot(probabilities, accuracies, color="C0", linewidth=1)
    axes.scatter(probabilities, accuracies, [10 + 290 * count / sum(examples) for count in examples], color="C0")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("mean probability of the predicted label")
    axes.set_ylabel("accuracy")
    axes.set_title(f"expected calibration error {error:.4f}")
    axes.grid(alpha=0.3)
    write_png(figure, path)
