r"""Draw loss, learning rate and dev metric of one or several runs into a PNG.

    python -m bertorch.plot checkpoint
    python -m bertorch.plot runs/seed1 runs/seed2 --output seeds.png

A RUN is the `--saved_dir` of a run, also of one that still goes on, or a `metrics.jsonl`. Needs the package matplotlib.
"""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch.errors import UserError, mistakes_told
from bertorch.figures import readable_names, require_matplotlib, write_png
from bertorch.files import refuse_existing
from bertorch.training.metrics_file import METRICS, read_metrics

with suppress(ImportError):  # an extra; `plot` tells if it is missing
    from matplotlib import colormaps, rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT_OF_PANEL, HEIGHT_OF_NAME = 9.0, 2.6, 0.25  # inches
LONGEST_NAME = 90
DISTINCT_COLOURS = 10
FEW_POINTS = 40


@dataclass(frozen=True)
class Run:
    """The numbers of a run.

    Attributes:
        name: as the user gave it.
        lines: of its `metrics.jsonl`.
    """

    name: str
    lines: Sequence[dict[str, Any]]

    @classmethod
    def read(cls, name: str) -> "Run":
        """Read the file of a run.

        Raises:
            UserError: there is none, it is damaged, or has no number yet.
        """
        path = Path(name)
        lines = read_metrics(path / METRICS if path.is_dir() else path)
        if not lines:
            raise UserError(f"{name}: expected numbers in {METRICS}, got none yet; the first come with --logging_steps")
        return cls(name, lines)

    @property
    def metrics(self) -> set[str]:
        """The names of its dev metrics."""
        return {line["metric"] for line in self.lines if "metric" in line}

    def series(self, *keys: str) -> tuple[list[int], list[float]]:
        """Steps, and the numbers that have one of these names in their lines."""
        found = [(line["step"], line[key]) for line in self.lines for key in keys if key in line]
        return [step for step, _ in found], [number for _, number in found]


def draw(runs: Sequence[Run]) -> "Figure":
    """Draw the panels one below the other; that of the dev metric only if a run has one."""
    metrics = sorted(set().union(*(run.metrics for run in runs)))
    panels = 3 if metrics else 2
    figure = Figure(figsize=(WIDTH, HEIGHT_OF_PANEL * panels + HEIGHT_OF_NAME * len(runs)), layout="constrained")
    loss, rate, *dev = figure.subplots(panels, 1, sharex=True)
    colours = _colours(len(runs))
    for number, (run, colour) in enumerate(zip(runs, colours, strict=True)):
        _line(loss, run, "loss", color=colour)
        _line(loss, run, "dev_loss", color=colour, linestyle="dashed", marker="o")
        # Runs often have the same rates: of those drawn over each other the first is the widest.
        _line(rate, run, "rate", color=colour, linewidth=1.3 + 3 * (1 - (number + 1) / len(runs)))
        _line(rate, run, "head_rate", color=colour, linestyle="dashed")
        for axes in dev:
            _line(axes, run, *metrics, color=colour, marker="o")
    has_dev_loss = any(run.series("dev_loss")[0] for run in runs)
    has_head = any(run.series("head_rate")[0] for run in runs)
    loss.set_title("loss of a training batch" + (", dashed: of the dev examples" if has_dev_loss else ""))
    rate.set_title("learning rate" + (", dashed: of the head" if has_head else ""))
    for axes in dev:
        axes.set_title("dev " + ", ".join(metric.removeprefix("dev_") for metric in metrics))
    for axes in (loss, rate, *dev):
        axes.grid(alpha=0.3)
    last = dev[0] if dev else rate
    last.set_xlabel("step")
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    _name_runs(figure, [run.name for run in runs], colours)
    return figure


def _line(axes: "Axes", run: Run, *keys: str, marker: str | None = None, **style: Any) -> None:
    steps, numbers = run.series(*keys)
    if len(steps) <= FEW_POINTS:
        style["marker"] = marker or "."
    axes.plot(steps, numbers, **({"linewidth": 1.3, "markersize": 4} | style))


def _colours(count: int) -> list[Any]:
    """A colour for each run."""
    if count <= DISTINCT_COLOURS:
        return [f"C{number}" for number in range(count)]
    return [colormaps["turbo"](number / (count - 1)) for number in range(count)]


def _name_runs(figure: "Figure", names: Sequence[str], colours: Sequence[Any]) -> None:
    """A legend below the panels."""
    handles = [Line2D([], [], color=colour, linewidth=2) for colour in colours]
    legend = figure.legend(handles, ["run"] * len(names), loc="outside lower center")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)  # a path may have dollar signs
        text.set_text(name)


def plot(names: Sequence[str], output: str, *, overwrite: bool) -> None:
    """Read runs, draw them, write the PNG.

    Raises:
        UserError: matplotlib is missing, a run has no numbers, or the file is there already or cannot be written.
    """
    require_matplotlib("bertorch.plot")
    refuse_existing([output], overwrite=overwrite)
    runs = [Run.read(name) for name in names]
    shown, fonts = readable_names(names, "run", longest=LONGEST_NAME)
    with rc_context({"font.family": fonts}):
        write_png(draw([Run(name, run.lines) for name, run in zip(shown, runs, strict=True)]), output)
    logger.info("{}", output)


def main(argv: Sequence[str] | None = None) -> None:
    """The command.

    Raises:
        SystemExit: code 2 with the reason for a mistake of the user.
    """
    parser = argparse.ArgumentParser(
        "python -m bertorch.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="--saved_dir of a run, or a metrics.jsonl")
    parser.add_argument("--output", default="plot.png", help="the PNG (default: plot.png)")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it is there")
    options = parser.parse_args(argv)
    with mistakes_told():
        plot(options.runs, options.output, overwrite=options.overwrite)


if __name__ == "__main__":
    main()
