r"""Evaluate a trained model, of any of the five scripts, on a labelled file in the form of the script's dev data.

    python -m bertorch.evaluate --model_dir checkpoint --input_file test.txt --output_dir report
    python -m bertorch.evaluate --model_dir checkpoint --input_file test.txt --output_dir report --plot
    python -m bertorch.evaluate --model_dir checkpoint --corpus_file corpus.jsonl --queries_file queries.jsonl \
        --qrels_file qrels.tsv --output_dir report
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
      on dev data of retrieval               nDCG@10, MRR@10, MAP@100, recall and accuracy at 1, 5, 10, 100
    run_ner.py                               F1 of entities by type: strict, and lenient: one shared token is enough

`errors.tsv` has the misclassified examples with their number, both labels, the probability of the wrong one (or the
cosine) and the loss, the largest loss first; the sentences whose entities are not all right; of scores all examples,
the largest squared error first; of a ranking or of retrieval the queries whose first candidate or passage is not
relevant. `predictions.jsonl` has what was predicted for each example, from which `bertorch.compare` tells whether two
models differ. The main numbers have a 95 % interval, from a bootstrap over the examples.

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
from bertorch.config import AVERAGES, BACKENDS, ON_BAD_LINE, InferenceConfig, option
from bertorch.errors import UserError
from bertorch.figures import draw_confusion, draw_reliability, require_matplotlib
from bertorch.files import ERRORS, PREDICTIONS, REPORT, refuse_existing

if TYPE_CHECKING:
    from bertorch.resampling import ExampleTable
    from bertorch.tasks.base import Errors

MOST_DRAWN = 100  # labels in the picture
PICTURE, RELIABILITY = "confusion.png", "reliability.png"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InferenceConfig):
    """Options of `bertorch.evaluate`."""

    input_file: str | None = option(
        None,
        aliases=("--data_file",),
        help="labelled examples, in the form of the script's dev data; or see --corpus_file",
    )
    corpus_file: str | None = option(
        None, help="of an embedding model: passages to find, {'_id': …, 'text': …} as JSON a line, maybe with 'title'"
    )
    queries_file: str | None = option(None, help="with --corpus_file: the queries, in the same form")
    qrels_file: str | None = option(
        None, help="with --corpus_file: query-id⇥corpus-id⇥score lines under this header; above 0 is relevant"
    )
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
        super().__post_init__()
        if self.tune_thresholds is not None and self.calibrate:
            raise UserError("--tune_thresholds and --calibrate are for different models; leave one out")
        retrieval = {name: getattr(self, name) for name in ("corpus_file", "queries_file", "qrels_file")}
        missing = [f"--{name}" for name, value in retrieval.items() if value is None]
        if self.input_file is None and len(missing) == len(retrieval):
            raise UserError(
                "expected --input_file, or --corpus_file, --queries_file and --qrels_file; got none of them"
            )
        if self.input_file is not None and len(missing) < len(retrieval):
            raise UserError(
                "--input_file and --corpus_file, --queries_file, --qrels_file both name what to evaluate on; choose one"
            )
        if self.input_file is None and missing:
            raise UserError(f"--corpus_file, --queries_file and --qrels_file belong together; add {', '.join(missing)}")
        if self.input_file is None:
            self.require_no_labels()
        if self.fitting is not None and self.backend == BACKENDS[2]:
            raise UserError(
                f"--{self.fitting} fits what every backend then uses, and --backend {self.backend} gives something "
                "else than the model; leave --backend out"
            )

    def require_no_labels(self) -> None:
        """Raise a `UserError` at an option that dev data of retrieval, which has no labels, does not go with."""
        if self.plot:
            raise UserError("--plot draws the confusion matrix of classes, which retrieval has not; leave it out")
        if self.fitting is not None:
            raise UserError(f"--{self.fitting} is fitted to labels, which retrieval has not; leave it out")

    @property
    def fitting(self) -> str | None:
        """The option that fits something to the evaluation, for the model's folder."""
        if self.calibrate:
            return "calibrate"
        return None if self.tune_thresholds is None else "tune_thresholds"

    @property
    def data_files(self) -> list[str]:
        """The files, or the folder, to evaluate on: one, or corpus, queries and qrels."""
        files = [self.input_file, self.corpus_file, self.queries_file, self.qrels_file]
        return [file for file in files if file is not None]


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
    from bertorch.tasks.label_counts import has_labels
    from bertorch.training.eval_loop import evaluate
    from bertorch.training.memory import IN_EVALUATION, explain_out_of_memory

    names = [REPORT, ERRORS, PREDICTIONS, *([PICTURE, RELIABILITY] if config.plot else [])]
    outputs = [str(Path(config.output_dir) / name) for name in names]
    refuse_existing(outputs, overwrite=config.overwrite, inputs=config.data_files)
    if config.plot:
        require_matplotlib("--plot")
    model = load_shared(config)
    task = model.task
    if config.plot and not task.has_confusions:
        raise UserError("--plot draws the confusion matrix of classes, and this model has none; leave it out")
    if config.fitting is not None:
        require_fitting(task, config.fitting, config.model_dir)
    if config.input_file is None:
        source, examples = task.read_retrieval(config.data_files, config.on_bad_line)
    else:
        source, examples = task.read_labelled(config.input_file, config.on_bad_line)
    if not has_labels(examples):
        config.require_no_labels()
    metric = None if config.fitting is None else task.metric_to_fit(model.engine.device)
    with explain_out_of_memory(str(model.engine.device), IN_EVALUATION):
        metric = evaluate(task, examples, config.batch_size, model.engine.precision, metric=metric)
    # On all processes, so that none waits for one with an error.
    fitted = {} if config.fitting is None else task.fit(metric, getattr(config, config.fitting))
    if distributed.is_main():
        report: dict[str, Any] = {"model": config.model_dir, "task": task.name, "data": ", ".join(config.data_files)}
        if config.backend != BACKENDS[0]:
            report["backend"] = config.backend
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
    from bertorch.training.evaluation_files import most_frequent, write_evaluation

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
    if config.plot:
        drawn = list(most_frequent(report["labels"], MOST_DRAWN))
        if len(drawn) < len(report["labels"]):
            logger.info("{}: the {} most frequent of {} labels", PICTURE, len(drawn), len(report["labels"]))
        matrix = [[report["confusions"].get(row, {}).get(column, 0) for column in drawn] for row in drawn]
        draw_confusion(matrix, drawn, str(folder / PICTURE))
    if config.plot and "calibration_bins" in report:
        draw_reliability(report["calibration_bins"], report["expected_calibration_error"], str(folder / RELIABILITY))
    write_evaluation(folder, report, errors, table, data_files=config.data_files, overwrite=config.overwrite)


if __name__ == "__main__":
    cli.command(EvaluateConfig, run, __doc__)
