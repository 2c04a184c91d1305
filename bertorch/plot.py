r"""Draw loss, learning rate and dev metric of one or several runs into a PNG.

    python -m bertorch.plot checkpoint
    python -m bertorch.plot runs/seed1 runs/seed2 --output seeds.png

A RUN is the `--saved_dir` of a run, finished or not, or a `metrics.jsonl`. Needs matplotlib.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from bertorch import cli
from bertorch.config import option
from bertorch.errors import UserError, exit_on_user_error
from bertorch.figures import readable_names, require_matplotlib, write_png
from bertorch.files import refuse_existing
from bertorch.training.metrics_file import METRICS, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT_OF_PANEL, HEIGHT_OF_NAME = 9.0, 2.6, 0.25  # inches
LONGEST_NAME = 90
DISTINCT_COLOURS = 10
FEW_POINTS = 40


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Options of `bertorch.plot`."""

    runs: tuple[str, ...] = option(positional=True, metavar="RUN", help="--saved_dir of a run, or a metrics.jsonl")
    output: str = option("plot.png", help="the PNG")
    overwrite: bool = option(False, help="replace --output if it exists")


@dataclass(frozen=True)
class Run:
    """The name of a run as the user gave it, and the lines of its `metrics.jsonl`."""

    name: str
    lines: Sequence[dict[str, Any]]

    @classmethod
    def read(cls, name: str) -> "Run":
        """Read the file of a run; a `UserError` if it is missing, damaged or empty."""
        path = Path(name)
        lines = read_metrics(path / METRICS if path.is_dir() else path)
        if not lines:
            raise UserError(f"{name}: expected numbers in {METRICS}, got none yet; the first come with --logging_steps")
        return cls(name, lines)

    def series(self, *keys: str) -> tuple[list[int], list[float]]:
        """Steps, and the values of these keys in the lines that have one."""
        found = [(line["step"], line[key]) for line in self.lines for key in keys if key in line]
        return [step for step, _ in found], [value for _, value in found]


def draw(runs: Sequence[Run]) -> "Figure":
    """Draw the panels one below the other; that of the dev metric only if a run has one."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = [line for run in runs for line in run.lines]
    keys = set().union(*lines)
    metrics = sorted({line["metric"] for line in lines if "metric" in line})
    panels = 3 if metrics else 2
    figure = Figure(figsize=(WIDTH, HEIGHT_OF_PANEL * panels + HEIGHT_OF_NAME * len(runs)), layout="constrained")
    loss, rate, *dev = figure.subplots(panels, 1, sharex=True)
    colours = _colours(len(runs))
    for index, (run, colour) in enumerate(zip(runs, colours, strict=True)):
        _line(loss, run, "loss", color=colour)
        _line(loss, run, "dev_loss", color=colour, linestyle="dashed", marker="o")
        # Runs often have the same rates: the earlier ones are drawn wider, so that each remains visible.
        _line(rate, run, "rate", color=colour, linewidth=1.3 + 3 * (1 - (index + 1) / len(runs)))
        _line(rate, run, "head_rate", color=colour, linestyle="dashed")
        for axes in dev:
            _line(axes, run, *metrics, color=colour, marker="o")
    loss.set_title("loss of a training batch" + (", dashed: of the dev examples" if "dev_loss" in keys else ""))
    rate.set_title("learning rate" + (", dashed: of the head" if "head_rate" in keys else ""))
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
    steps, values = run.series(*keys)
    if len(steps) <= FEW_POINTS:
        style["marker"] = marker or "."
    axes.plot(steps, values, **({"linewidth": 1.3, "markersize": 4} | style))


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    if count <= DISTINCT_COLOURS:
        return [f"C{index}" for index in range(count)]
    return [colormaps["turbo"](index / (count - 1)) for index in range(count)]


def _name_runs(figure: "Figure", names: Sequence[str], colours: Sequence[Any]) -> None:
    """A legend below the panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2) for colour in colours]
    legend = figure.legend(handles, ["run"] * len(names), loc="outside lower center")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)  # a path may have dollar signs
        text.set_text(name)


def plot(config: PlotConfig) -> None:
    """Read runs, draw them, write the PNG."""
    require_matplotlib("bertorch.plot")
    from matplotlib import rc_context

    inputs = [path for run in config.runs for path in (run, os.path.join(run, METRICS))]
    refuse_existing([config.output], overwrite=config.overwrite, inputs=inputs)
    runs = [Run.read(name) for name in config.runs]
    shown, fonts = readable_names(config.runs, "run", longest=LONGEST_NAME)
    with rc_context({"font.family": fonts}):
        write_png(draw([Run(name, run.lines) for name, run in zip(shown, runs, strict=True)]), config.output)
    logger.info("{}", config.output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; a user error exits with code 2."""
    config = cli.parse(PlotConfig, argv, __doc__)
    with exit_on_user_error():
        plot(config)


if __name__ == "__main__":
    main()
