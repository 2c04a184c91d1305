r"""Evaluate a trained model, of any of the five scripts, on a labelled file in the form of the script's dev data.

    python -m bertorch.evaluate --model_dir checkpoint --data_file test.txt --output_dir report
    python -m bertorch.evaluate --model_dir checkpoint --data_file test.txt --output_dir report --plot
    torchrun --nproc_per_node=2 -m bertorch.evaluate …

Into `--output_dir` go `report.json`, `errors.tsv`, and with `--plot` `confusion.png`:

    run_classifier.py, run_sentencebert.py   accuracy, macro and micro F1, a table by label, the confusion matrix
    run_sentencebert.py                      the best thresholds of the cosine; with two labels its correlations
    run_simcse.py, run_batchneg.py           Spearman and Pearson correlation; thresholds where the scores are 0 and 1
    run_ner.py                               F1 of entities by type: strict, and lenient: one shared token is enough

`errors.tsv` has the misclassified examples with their number, both labels and the probability of the wrong one (or
the cosine), and the sentences whose entities are not all right.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from bertorch import cli, distributed
from bertorch.config import ON_BAD_LINE, option
from bertorch.data.lines import cell
from bertorch.errors import UserError
from bertorch.figures import require_matplotlib
from bertorch.files import refuse_existing, whole_output
from bertorch.inference.evaluating import (
    Evaluation,
    evaluate_classes,
    evaluate_entities,
    evaluate_similarity,
)
from bertorch.inference.kinds import EntityTagger
from bertorch.inference.model import Model
from bertorch.inference.options import InferenceConfig
from bertorch.inference.plots import draw_confusion

REPORT, ERRORS, PICTURE = "report.json", "errors.tsv", "confusion.png"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InferenceConfig):
    """Options of `bertorch.evaluate`."""

    data_file: str = option(aliases=("--input_file",), help="labelled examples, in the format of the script's dev data")
    output_dir: str = option(help="where the report goes")
    on_bad_line: str = option("stop", choices=ON_BAD_LINE, help="a malformed line ends the command, or is dropped")
    plot: bool = option(False, help="also draw the confusion matrix; needs the extra 'plots'")


def run(config: EvaluateConfig) -> None:
    """Predict, compare, write."""
    names = [REPORT, ERRORS, *([PICTURE] if config.plot else [])]
    refuse_existing([str(Path(config.output_dir) / name) for name in names], overwrite=config.overwrite)
    if config.plot:
        require_matplotlib("--plot")
    model = config.load()
    if config.plot and not (model.labels and not isinstance(model, EntityTagger)):
        raise UserError("--plot draws the confusion matrix of classes, and this model has none; leave it out")
    evaluation = _evaluate(model, config)
    if distributed.is_main():
        _write(evaluation, model, config)
    distributed.barrier()


def _evaluate(model: Model, config: EvaluateConfig) -> Evaluation:
    if isinstance(model, EntityTagger):
        return evaluate_entities(model, config.data_file, config.on_bad_line)
    evaluate = evaluate_classes if model.labels else evaluate_similarity
    return evaluate(model, config.data_file, config.on_bad_line)


def _write(evaluation: Evaluation, model: Model, config: EvaluateConfig) -> None:
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: expected a folder, got: {error.strerror or error}") from error
    report = {"model": config.model_dir, "task": model.description.task, "data": config.data_file, **evaluation.report}
    if (folder / REPORT).exists() and not config.plot:
        (folder / PICTURE).unlink(missing_ok=True)  # of the report that is replaced
    with whole_output(str(folder / ERRORS), overwrite=config.overwrite) as file:
        file.writelines("\t".join(map(cell, row)) + "\n" for row in [evaluation.header, *evaluation.mistakes])
    if config.plot:
        draw_confusion(report["confusion_matrix"], model.labels, str(folder / PICTURE))
    with whole_output(str(folder / REPORT), overwrite=config.overwrite) as file:
        file.write(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    for line in _lines(evaluation.report):
        logger.info("{}", line)
    logger.info("{}, {}: {}", folder / REPORT, ERRORS, len(evaluation.mistakes))


def _lines(report: dict[str, Any], prefix: str = "") -> list[str]:
    """The numbers of a report, one a line, and a row of a table in one."""
    lines = []
    for name, value in report.items():
        if isinstance(value, float):
            lines.append(f"{prefix}{name}: {value:.5f}")
        elif isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
            lines += _lines(value, f"{prefix}{name}, ")
        elif isinstance(value, dict):
            numbers = (
                f"{key} {each:.5f}" if isinstance(each, float) else f"{key} {each}" for key, each in value.items()
            )
            lines.append(f"{prefix}{name}: {', '.join(numbers)}")
    return lines


if __name__ == "__main__":
    cli.command(EvaluateConfig, run, __doc__)
