r"""Tell whether models differ by more than chance, from the folders that `bertorch.evaluate --output_dir` wrote.

    python -m bertorch.compare report-base report-new
    python -m bertorch.compare 'runs/base-*/report' 'runs/new-*/report' --measure macro_f1

All folders are of one evaluation file. A quoted pattern is a group of runs, such as one for each seed, and stands for
their mean. Each model or group has its number with a 95 % interval, and, against the first one, the difference with
an interval and a p-value:

    two models            exact McNemar test of what is right or wrong; randomisation test of other numbers
    groups of runs        permutation of the runs between the groups; it alone says whether training differs

The intervals are from a bootstrap over the examples, and over the runs of a group too.
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from bertorch import cli
from bertorch.config import option
from bertorch.errors import UserError, exit_on_user_error
from bertorch.files import PREDICTIONS, REPORT, is_stream, refuse_existing, to_json, whole_output

if TYPE_CHECKING:
    import numpy as np

    from bertorch.data.predictions import Evaluation
    from bertorch.resampling import Measure
    from bertorch.significance import GroupDraws, SignificanceTest

_SHOWN_MEASURES = "such as accuracy, macro_f1, f1, spearman"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Options of `bertorch.compare`."""

    folders: tuple[str, ...] = option(
        positional=True, metavar="FOLDER", help="--output_dir of evaluate, or a quoted pattern of several"
    )
    measure: str | None = option(
        None, help=f"the number to compare, {_SHOWN_MEASURES}; by default the one that --save_best_model goes by"
    )
    draws: int = option(10_000, minimum=100, maximum=10_000_000, help="random draws of the intervals and tests")
    seed: int = option(0, minimum=0, help="of the draws")
    output_file: str | None = option(None, help="also write the result here, as JSON; - is standard output")
    overwrite: bool = option(False, help="replace --output_file if it exists")

    def __post_init__(self) -> None:
        if len(self.folders) < 2:
            raise UserError(
                f"expected two or more folders or quoted patterns to compare, got only {self.folders[0]}; a pattern is "
                "one group"
            )


@dataclass(frozen=True)
class Group:
    """Runs that stand for one model; one run is a group too."""

    name: str  # as the user gave it
    runs: Sequence["Evaluation"]

    def columns(self, measure: "Measure") -> list[list["np.ndarray"]]:
        """Of each run the columns (N,) of a measure."""
        return [run.table.arrays(measure) for run in self.runs]


def expand(name: str) -> list[str]:
    """The folders that an argument stands for: itself, or what matches the pattern, without files.

    Raises:
        UserError: nothing matches.
    """
    if os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    found = sorted(path for path in glob.glob(name) if Path(path).is_dir())
    if not found:
        raise UserError(f"{name}: expected a pattern of folders that bertorch.evaluate --output_dir wrote, got none")
    return found


def read_groups(names: Sequence[str], measure: str | None) -> tuple[list[Group], str]:
    """The groups, and the name of the measure to compare, by default the main one of the first run.

    Raises:
        UserError: a folder is no evaluation or stands twice, or they are of different files or have no such measure.
    """
    from bertorch.data.predictions import read_evaluation

    folders = [expand(name) for name in names]
    seen: dict[str, str] = {}
    for folder in (folder for each in folders for folder in each):
        path = os.path.realpath(folder)
        if path in seen:
            raise UserError(f"{folder}: expected each folder once, got it also as {seen[path]}; leave one out")
        seen[path] = folder
    groups = [Group(name, list(map(read_evaluation, each))) for name, each in zip(names, folders, strict=True)]
    first, *others = [run for group in groups for run in group.runs]
    chosen = next(iter(first.table.measures)) if measure is None else measure
    for run in (first, *others):
        _check_comparable(run, first, chosen)
    return groups, chosen


def _check_comparable(run: "Evaluation", first: "Evaluation", measure: str) -> None:
    if run.digest != first.digest:
        remedy = "evaluate all models on one file"
        raise UserError(
            f"{run.folder}: expected an evaluation of the file that {first.folder} is of ({first.data}), got one of a "
            f"file with another content ({run.data}); {remedy}"
        )
    if measure not in run.table.measures:
        known = ", ".join(run.table.measures)
        raise UserError(f"{run.folder}: expected a report with {measure}, got one of the task {run.task} with {known}")
    if run.table.measures[measure] != first.table.measures[measure]:
        raise UserError(
            f"{run.folder}: expected {measure} over the same labels as in {first.folder}, got another kind; compare "
            "models of the same labels"
        )
    if run.table.columns["gold"] != first.table.columns["gold"]:
        raise UserError(
            f"{run.folder}: expected the examples of {first.folder}, got others; were lines skipped by --on_bad_line?"
        )


def compare(config: CompareConfig) -> dict[str, Any]:
    """Read, compare, tell; returns what `--output_file` gets."""
    from bertorch.significance import draw_groups, holm

    if config.output_file is not None and not is_stream(config.output_file):
        folders = [Path(folder) for name in config.folders for folder in expand(name)]
        inputs = [str(folder / name) for folder in folders for name in (REPORT, PREDICTIONS)]
        refuse_existing([config.output_file], overwrite=config.overwrite, inputs=inputs)
    groups, name = read_groups(config.folders, config.measure)
    first = groups[0].runs[0]
    measure = first.table.measures[name]
    columns = [group.columns(measure) for group in groups]
    drawn = draw_groups(measure, columns, draws=config.draws, seed=config.seed)
    tests = [
        _test(measure, (columns[0], each), (drawn[0].values, of_group.values), config)
        for each, of_group in _later(columns, drawn)
    ]
    adjusted = holm([test.p for test in tests])
    result = {
        "measure": name,
        "data": first.data,
        "data_digest": first.digest,
        "examples": len(first.table.columns["gold"]),
        "groups": [_described(*each) for each in zip(groups, drawn, strict=True)],
        "comparisons": [
            _comparison(groups[0], group, drawn[0], of_group, test) | {"p_holm": p}
            for (group, of_group), test, p in zip(_later(groups, drawn), tests, adjusted, strict=True)
        ],
    }
    _tell(result)
    if config.output_file is not None:
        with whole_output(config.output_file, overwrite=config.overwrite) as file:
            file.write(to_json(result, indent=2) + "\n")
    return result


def _later(*sequences: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What stands for the groups that are compared with the first."""
    return list(zip(*(each[1:] for each in sequences), strict=True))


def _test(
    measure: "Measure",
    columns: tuple[list[list["np.ndarray"]], list[list["np.ndarray"]]],  # of the runs of both groups
    values: tuple[list[float], list[float]],
    config: CompareConfig,
) -> "SignificanceTest":
    from bertorch.significance import paired_test, permutation_test

    if max(map(len, columns)) > 1:
        return permutation_test(*values, draws=config.draws, seed=config.seed)
    (ours,), (theirs,) = columns
    return paired_test(measure, ours, theirs, draws=config.draws, seed=config.seed)


def _described(group: Group, drawn: "GroupDraws") -> dict[str, Any]:
    runs = [{"folder": run.folder, "value": value} for run, value in zip(group.runs, drawn.values, strict=True)]
    return {"name": group.name, "value": drawn.value, "interval": list(drawn.interval), "runs": runs}


def _comparison(
    first: Group, group: Group, first_drawn: "GroupDraws", drawn: "GroupDraws", test: "SignificanceTest"
) -> dict[str, Any]:
    from bertorch.resampling import percentile_interval

    return {
        "name": group.name,
        "against": first.name,
        "difference": drawn.value - first_drawn.value,
        "interval": list(percentile_interval(drawn.drawn - first_drawn.drawn)),
        "p": test.p,
        "test": test.description,
    }


def _tell(result: dict[str, Any]) -> None:
    logger.info("{} of {} examples in {}", result["measure"], result["examples"], result["data"])
    for group in result["groups"]:
        runs = "" if len(group["runs"]) == 1 else f", mean of {len(group['runs'])} runs"
        logger.info("{}: {:.5f} [{:.5f}, {:.5f}]{}", group["name"], group["value"], *group["interval"], runs)
    several = len(result["comparisons"]) > 1
    for each in result["comparisons"]:
        p = f"p = {each['p']:.4g}" + (f", {each['p_holm']:.4g} among {len(result['comparisons'])}" if several else "")
        numbers = each["difference"], *each["interval"]
        logger.info("{} - {}: {:+.5f} [{:+.5f}, {:+.5f}], {}", each["name"], each["against"], *numbers, p)
        logger.info("  {}", each["test"])
    if all(len(group["runs"]) == 1 for group in result["groups"]):
        logger.info("this is of these models alone; another seed gives other ones: compare groups of runs")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; a user error exits with code 2."""
    config = cli.parse(CompareConfig, argv, __doc__)
    with exit_on_user_error():
        compare(config)


if __name__ == "__main__":
    main()
