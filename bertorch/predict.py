r"""Predict with a trained model, of any of the five scripts: the folder says which.

    python -m bertorch.predict --model_dir checkpoint --input_file in.txt --output_file out.tsv
    cat in.txt | python -m bertorch.predict --model_dir checkpoint --input_file - --output_file - | head
    torchrun --nproc_per_node=2 -m bertorch.predict …

A line of input gives a line of output, in the order of the input:

    run_classifier.py       text, or a⇥b            label⇥probability of each label
      several labels        text, or a⇥b            labels over their thresholds, or none⇥probability of each label
      --problem_type score  text, or a⇥b            score
      --problem_type ranking  query⇥candidate       score; with --ranked: query⇥candidate⇥score⇥rank, best first
    run_sentencebert.py     a⇥b                     label⇥probability of each label
    run_simcse.py           a⇥b                     cosine
    run_batchneg.py         a⇥b                     cosine
    run_ner.py              text, or {"text": …}    {"text": …, "entities": [{"type", "start", "end", "text"}, …]}

Texts and pairs may also be JSON lines, {"text": …} or {"text_a": …, "text_b": …}: the first line decides.

With `--logits`, models with labels give logits in the place of probabilities, and an `--output_file` that ends in .npy
is an array of them, (lines, labels), with a record beside it: what `--teacher` of a training run takes.

The first line of tab-separated output names the columns. For a tagger `{"text": "我们"}` is a text and
`{"text": ["我", "们"]}` tokens; an entity's start and end (exclusive) are characters of the text, or tokens; other keys
of the line, such as an id, come after them. A malformed line ends the command; a file is then not written at all.
`--flush` answers each line before it reads the next, for a program that asks through a pipe. `/dev/null` and `<(…)` are
fine.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from bertorch import cli
from bertorch.config import SPLITS, InferenceConfig, option
from bertorch.errors import UserError
from bertorch.files import is_stream, refuse_existing, whole_output

if TYPE_CHECKING:
    from bertorch.inference.model import Model
    from bertorch.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class PredictConfig(InferenceConfig):
    """Options of `bertorch.predict`."""

    input_file: str = option(help="an input a line; - is standard input")
    output_file: str = option(
        help="a result a line; - is standard output; with --logits also an .npy file, for --teacher"
    )
    flush: bool = option(False, help="answer each line before the next is read, as through a pipe; slower")
    no_header: bool = option(False, help="leave out the line that names the columns")
    ranked: bool = option(
        False, help="of a reranker: each query's candidates, best first, with score and rank; reads the whole input"
    )
    tags: bool = option(False, help="of a tagger, also the tokens and the tag of each")
    logits: bool = option(False, help="logits in the place of probabilities; also as an array, see --output_file")
    min_score: float | None = option(
        None, minimum=0.0, maximum=1.0, help="of a tagger, only entities with at least this score, each with its score"
    )
    split: str | None = option(
        None,
        choices=SPLITS,
        help="the tokens of plain text for a tagger: characters, or words and single Chinese characters; by default as "
        "in training",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranked and self.flush:
            raise UserError("--ranked needs the whole input, and --flush answers line by line; choose one of them")
        if self.ranked and self.logits:
            raise UserError(
                "--ranked is for models with one score, and --logits for those with labels; choose one of them"
            )
        if self.min_score is not None and self.logits:
            raise UserError("--min_score is for taggers, and --logits for models with labels of texts; choose one")
        if self.is_array and not self.logits:
            raise UserError(
                f"--output_file {self.output_file}: an array is for --logits; add it, or choose another name"
            )
        if self.is_array and (self.flush or self.no_header):
            raise UserError(f"--output_file {self.output_file}: --flush and --no_header are for lines; leave them out")

    @property
    def is_array(self) -> bool:
        """Whether the output is an array."""
        return self.output_file.endswith(".npy")

    @property
    def written(self) -> list[str]:
        """The files of the output."""
        from bertorch.data.teacher import record_path

        return [self.output_file, str(record_path(self.output_file))] if self.is_array else [self.output_file]


def run(config: PredictConfig) -> None:
    """Read, predict and write, window by window."""
    from bertorch import distributed, log
    from bertorch.inference.load import load_shared

    if distributed.world_size() > 1 and is_stream(config.input_file):
        name = config.input_file
        raise UserError(f"--input_file {name}: several processes need a file that each of them can read, got a stream")
    if not is_stream(config.output_file):
        # before the model is loaded
        refuse_existing(config.written, overwrite=config.overwrite, inputs=[config.input_file])
    model = load_shared(config)
    model.task.set_line_options(tags=config.tags, min_score=config.min_score, split=config.split)
    if config.is_array:
        _write_array(config, model)
        return
    task, inputs = model.task, model.task.stream_inputs(config.input_file)
    header = task.ranked_header() if config.ranked else task.prediction_header()
    writes = distributed.is_main()
    ranked: tuple[list[Any], list[Any]] = ([], [])  # all inputs and their results
    target = whole_output(config.output_file, overwrite=config.overwrite) if writes else nullcontext()
    with target as file, log.input_bar() as progress:
        if file is not None and header is not None and not config.no_header:
            _write(file, [header], flush=config.flush)
        for sources, results in _windows(model, inputs, logits=config.logits, one_by_one=config.flush):
            if file is not None and config.ranked:
                for all_of, some in zip(ranked, (sources, results), strict=True):
                    all_of.extend(some)
            elif file is not None:
                lines = (_line(task, *each, config) for each in zip(sources, results, strict=True))
                _write(file, lines, flush=config.flush)
            progress.update(len(sources))
        if file is not None and config.ranked:
            _write(file, task.ranked_lines(*ranked), flush=False)


def _write_array(config: PredictConfig, model: "Model") -> None:
    import numpy as np

    from bertorch import distributed, log
    from bertorch.data.scratch import GrowingArray
    from bertorch.data.teacher import TextsDigest, write_logits

    inputs = model.task.stream_inputs(config.input_file)
    rows, texts = GrowingArray(np.float32, (len(model.labels),)), TextsDigest()
    with log.input_bar() as progress:
        for sources, logits in _windows(model, inputs, logits=True, one_by_one=False):
            if distributed.is_main():
                rows.append(logits)
                for source in sources:
                    texts.update([source] if isinstance(source, str) else source)
            progress.update(len(sources))
    distributed.on_main(lambda: write_logits(config.output_file, rows.finish(), model.labels, texts))


def _line(task: "Task[Any]", source: Any, row: Any, config: PredictConfig) -> str:
    line = task.prediction_line(source, row, tags=config.tags)
    if not config.logits:
        return line
    label, *_ = line.split("\t")  # logits have the order of the probabilities
    return "\t".join([label, *(f"{value:.6f}" for value in row.tolist())])


def _windows(
    model: "Model", inputs: Iterable[Any], *, logits: bool, one_by_one: bool
) -> Iterator[tuple[list[Any], Any]]:
    inference = model.task.logit_scorer() if logits else model.task.predictor()
    for some in ([each] for each in inputs) if one_by_one else (inputs,):
        yield from model.engine.run(inference, some)


def _write(file: TextIO, lines: Iterable[str], *, flush: bool) -> None:
    file.writelines(line + "\n" for line in lines)
    if flush:
        file.flush()


if __name__ == "__main__":
    cli.command(PredictConfig, run, __doc__)
