r"""Evaluate a trained model, of any of the five scripts, on a labelled file in the form of the script's dev data.

    python -m bertorch.evaluate --model_dir checkpoint --input_file test.txt --output_dir report
    python -m bertorch.evaluate --model_dir checkpoint --input_file test.txt --output_dir report --plot
    torchrun --nproc_per_node=2 -m bertorch.evaluate …

Into `--output_dir` go `report.json`, `errors.tsv`, `predictions.jsonl`, and with `--plot` `confusion.png` and
`reliability.png`:

    run_classifier.py, run_sentencebert.py   accuracy, macro and micro F1, a table by label, the confusions, the
                                             expected calibration error
      with several labels a text             exact match, macro and micro F1, a table by label
      --problem_type score                   Spearman and Pearson correlation, mean squared and absolute error
      --problem_type ranking                 MRR@10, nDCG@10, MAP, hits@1
    run_sentencebert.py                      the best thresholds of the cosine; with two labels its correlations
    run_simcse.py, run_batchneg.py           Spearman and Pearson correlation; thresholds where the scores are 0 and 1
    run_ner.py                               F1 of entities by type: strict, and lenient: one shared token is enough

`errors.tsv` has the misclassified examples with their number, both labels, the probability of the wrong one (or the
cosine) and the loss, the largest loss first; the sentences whose entities are not all right; of scores all examples,
the largest squared error first; of a ranking the queries whose first candidate is not relevant. `predictions.jsonl` has
what was predicted for each example, from which `bertorch.compare` tells whether two models differ. The main numbers
have a 95 % interval, from a bootstrap over the examples.

With several labels a text, `--tune_thresholds macro` (or `micro`) finds the threshold of each label that gives the best
F1 on the input. With one of several labels a text or pair, `--calibrate` finds the temperature that gives the
probabilities of the least negative log-likelihood; no label changes. Both are stored in the model's folder, where
`predict` uses them, and the report has what they give on examples that they were not fitted on. Nothing else changes
the model's folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from bertorch import cli
from bertorch.config import AVERAGES, ON_BAD_LINE, InferenceConfig, option
from bertorch.data.lines import cell
from bertorch.errors import UserError
from bertorch.figures import draw_confusion, draw_reliability, require_matplotlib
from bertorch.files import PREDICTIONS, REPORT, refuse_existing, to_json, whole_output

if TYPE_CHECKING:
    from bertorch.resampling import ExampleTable
    from bertorch.tasks.base import Errors

MOST_DRAWN = 100  # labels in the picture
MOST_LINES = 20  # of a table in the log; of a longer one the most frequent labels and the worst, half of them each
ERRORS, PICTURE, RELIABILITY = "errors.tsv", "confusion.png", "reliability.png"
NOT_LOGGED = ("confusions", "data_digest", "intervals", "measures")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InferenceConfig):
    """Options of `bertorch.evaluate`."""

    input_file: str = option(aliases=("--data_file",), help="labelled examples, in the form of the script's dev data")
    output_dir: str = option(help="where the report goes")
    on_bad_line: str = option("stop", choices=ON_BAD_LINE, help="a malformed line ends the command, or is skipped")
    plot: bool = option(False, help="also draw the confusion matrix and a reliability diagram; needs the extra 'plots'")
    tune_thresholds: str | None = option(
        None,
        choices=AVERAGES,
        help="with several labels a text: store the thresholds of the best F1, macro or micro, in --model_dir",
    )
    calibrate: bool = option(
        False, help="with one label a text or pair: store the temperature that calibrates probabilities in --model_dir"
    )

    def __post_init__(self) -> None:
        if self.tune_thresholds is not None and self.calibrate:
            raise UserError("--tune_thresholds and --calibrate are for different models; leave one out")

    @property
    def fitting(self) -> str | None:
        """The option that fits something to the evaluation, for the model's folder."""
        if self.calibrate:
            return "calibrate"
        return None if self.tune_thresholds is None else "tune_thresholds"


def run(config: EvaluateConfig) -> None:
    """Predict, compare, write; with a fitting no run writes to the model's folder meanwhile."""
    if config.fitting is None or not Path(config.model_dir).is_dir():  # the latter is an error of loading
        _evaluate(config)
        return
    from bertorch.inference.fitted_folder import writing_to

    with writing_to(config.model_dir):
        _evaluate(config)


def _evaluate(config: EvaluateConfig) -> None:
    from bertorch import distributed
    from bertorch.inference.fitted_folder import keep_fitted, require_fitting
    from bertorch.inference.load import load_shared
    from bertorch.training.eval_loop import evaluate
    from bertorch.training.memory import IN_EVALUATION, explain_out_of_memory

    names = [REPORT, ERRORS, PREDICTIONS, *([PICTURE, RELIABILITY] if config.plot else [])]
    refuse_existing([str(Path(config.output_dir) / name) for name in names], overwrite=config.overwrite)
    if config.plot:
        require_matplotlib("--plot")
    model = load_shared(config)
    task = model.task
    if config.plot and not task.has_confusions:
        raise UserError("--plot draws the confusion matrix of classes, and this model has none; leave it out")
    if config.fitting is not None:
        require_fitting(task, config.fitting, config.model_dir)
    source, examples = task.read_labelled(config.input_file, config.on_bad_line)
    metric = None if config.fitting is None else task.metric_to_fit(model.engine.device)
    with explain_out_of_memory(str(model.engine.device), IN_EVALUATION):
        metric = evaluate(task, examples, config.batch_size, model.engine.precision, metric)
    # On all processes, so that none waits for one with an error.
    fitted = {} if config.fitting is None else task.fit(metric, getattr(config, config.fitting))
    if distributed.is_main():
        report: dict[str, Any] = {"model": config.model_dir, "task": task.name, "data": config.input_file}
        if notes := list(task.notes()):
            report["notes"] = notes
        report |= metric.report() | fitted
        _write(report, task.errors(metric, source), config, metric.example_table())
    if config.fitting is not None:
        keep_fitted(task, config.model_dir)
    distributed.barrier()


def _write(
    report: dict[str, Any], errors: "Errors", config: EvaluateConfig, table: "ExampleTable | None" = None
) -> None:
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: expected a folder, got: {error.strerror or error}") from error
    if (folder / REPORT).exists():  # of the report that is replaced
        for name in () if config.plot else (PICTURE, RELIABILITY):
            (folder / name).unlink(missing_ok=True)
        if table is None:
            (folder / PREDICTIONS).unlink(missing_ok=True)
    with whole_output(str(folder / ERRORS), overwrite=config.overwrite) as file:
        file.writelines("\t".join(map(cell, row)) + "\n" for row in [errors.header, *errors.rows])
    if config.plot:
        drawn = list(_frequent(report["labels"], MOST_DRAWN))
        if len(drawn) < len(report["labels"]):
            logger.info("{}: the {} most frequent of {} labels", PICTURE, len(drawn), len(report["labels"]))
        matrix = [[report["confusions"].get(row, {}).get(column, 0) for column in drawn] for row in drawn]
        draw_confusion(matrix, drawn, str(folder / PICTURE))
    if config.plot and "calibration_bins" in report:
        draw_reliability(report["calibration_bins"], report["expected_calibration_error"], str(folder / RELIABILITY))
    if table is not None:
        report = report | _write_predictions(table, config)
    with whole_output(str(folder / REPORT), overwrite=config.overwrite) as file:
        file.write(to_json(report, indent=2) + "\n")
    for note in report.get("notes", ()):
        logger.warning("{}", note)
    for line in _lines({name: value for name, value in report.items() if name not in NOT_LOGGED}):
        logger.info("{}", line)
    for name, (low, high) in report.get("intervals", {}).items():
        logger.info("{}: {:.5f}, 95 % interval {:.5f} to {:.5f}", name, report["measures"][name]["value"], low, high)
    logger.info("{}, {}: {}", folder / REPORT, ERRORS, len(errors.rows))


def _write_predictions(table: "ExampleTable", config: EvaluateConfig) -> dict[str, Any]:
    """Write what was predicted; returns what the report has of it."""
    from bertorch.data.fingerprint import file_digest
    from bertorch.data.predictions import predictions_entry, write_predictions
    from bertorch.resampling import bootstrap_intervals

    write_predictions(str(Path(config.output_dir) / PREDICTIONS), table, overwrite=config.overwrite)
    return predictions_entry(table, file_digest(config.input_file), bootstrap_intervals(table))


def _lines(report: dict[str, Any], prefix: str = "") -> list[str]:
    """The numbers of a report, one per line, and each row of a table in one line; of long tables a part."""
    lines = []
    for name, value in report.items():
        if isinstance(value, float):
            lines.append(f"{prefix}{name}: {value:.5f}")
        elif isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
            for part, rows in _parts(value).items():
                lines += _lines(rows, f"{prefix}{name}{part}, ")
        elif isinstance(value, dict):
            row = (f"{key} {each:.5f}" if isinstance(each, float) else f"{key} {each}" for key, each in value.items())
            lines.append(f"{prefix}{name}: {', '.join(row)}")
    return lines


def _parts(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the log has of a table, by a word that says which part it is."""
    if len(table) <= MOST_LINES:
        return {"": table}
    if not all("f1" in row and "support" in row for row in table.values()):
        return {}
    worst = sorted(
        (name for name in table if table[name]["support"]),
        key=lambda name: (table[name]["f1"], -table[name]["support"]),
    )
    return {
        ", most frequent": _frequent(table, MOST_LINES // 2),
        ", worst": {name: table[name] for name in worst[: MOST_LINES // 2]},
    }


def _frequent(table: dict[str, Any], most: int) -> dict[str, Any]:
    """The labels with the most examples, in the order of the table."""
    names = set(sorted(table, key=lambda name: -table[name]["support"])[:most])
    return {name: row for name, row in table.items() if name in names}


if __name__ == "__main__":
    cli.command(EvaluateConfig, run, __doc__)
