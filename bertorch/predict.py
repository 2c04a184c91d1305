r"""Predict with a trained model, of any of the five scripts: the folder says which.

    python -m bertorch.predict --model_dir checkpoint --input_file in.txt --output_file out.tsv
    cat in.txt | python -m bertorch.predict --model_dir checkpoint --input_file - --output_file - | head
    torchrun --nproc_per_node=2 -m bertorch.predict …

A line of input gives a line of output, in the order of the input:

    run_classifier.py       text, or a⇥b            label⇥probability of each label
    run_sentencebert.py     a⇥b                     label⇥probability of each label
    run_simcse.py           a⇥b                     cosine
    run_batchneg.py         a⇥b                     cosine
    run_ner.py              text, or {"text": …}    {"text": …, "entities": [{"type", "start", "end", "text"}, …]}

The first line of tab-separated output names the columns. For a tagger `{"text": "我们"}` is a text and
`{"text": ["我", "们"]}` tokens; an entity's start and end (exclusive) are characters of the text, or tokens. A
malformed line ends the command; a file is then not written at all.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from bertorch import cli, distributed, log
from bertorch.config import option
from bertorch.data.readers import stream_texts
from bertorch.data.tagged_sentences import stream_untagged
from bertorch.errors import UserError
from bertorch.files import STANDARD, refuse_existing, whole_output
from bertorch.inference.entities import SPLITS, Sentence, TaggedText
from bertorch.inference.model import Model
from bertorch.inference.options import InferenceConfig
from bertorch.tasks.metadata import TAGGING

_TEXTS = {None: 0, False: 1, True: 2}  # of a classifier's line; 0 takes those of the first


@dataclass(frozen=True, kw_only=True)
class PredictConfig(InferenceConfig):
    """Options of `bertorch.predict`."""

    input_file: str = option(help="an input a line; - is standard input")
    output_file: str = option(help="a result a line; - is standard output")
    no_header: bool = option(False, help="leave out the line that names the columns")
    tags: bool = option(False, help="of a tagger, also the tokens and the tag of each")
    split: str = option(
        "characters",
        choices=tuple(SPLITS),
        help="the tokens of plain text for a tagger: characters, or words and single Chinese characters",
    )


def run(config: PredictConfig) -> None:
    """Read, predict and write, window by window."""
    if distributed.world_size() > 1 and config.input_file == STANDARD:
        raise UserError("--input_file -: several processes need a file that each of them can read, got standard input")
    if config.output_file != STANDARD:
        refuse_existing([config.output_file], overwrite=config.overwrite)  # before the model is loaded
    model = config.load()
    writes = distributed.is_main()
    target = whole_output(config.output_file, overwrite=config.overwrite) if writes else nullcontext()
    with target as file, log.input_bar() as progress:
        for lines, inputs in _output(model, config):
            if file is not None:
                file.writelines(line + "\n" for line in lines)
            progress.update(inputs)


def _output(model: Model, config: PredictConfig) -> Iterator[tuple[list[str], int]]:
    """Lines of output with the number of inputs that they are of."""
    if model.description.task == TAGGING:
        inputs = stream_untagged(config.input_file)
        for sentences, results in model.taggings(inputs, split=config.split):
            yield [_json(*each, config) for each in zip(sentences, results, strict=True)], len(sentences)
        return
    if not config.no_header:
        yield ["\t".join(["label", *model.labels] if model.labels else ["cosine"])], 0
    texts = 2 if model.description.embeds else _TEXTS[model.description.text_pair]
    for pairs, rows in model.scores(_plain(stream_texts(config.input_file, num_texts=texts))):
        yield [_columns(model, row) for row in rows.tolist()], len(pairs)


def _plain(rows: Iterable[tuple[str, ...]]) -> Iterator[Any]:
    """A single text as itself."""
    return (row if len(row) > 1 else row[0] for row in rows)


def _columns(model: Model, row: list[float]) -> str:
    """A row of `Model.scores`."""
    if not model.labels:
        return f"{row[-1]:.6f}"
    probabilities = row[: len(model.labels)]
    label = model.labels[probabilities.index(max(probabilities))]
    return "\t".join([label, *(f"{probability:.6f}" for probability in probabilities)])


def _json(sentence: Sentence, result: TaggedText, config: PredictConfig) -> str:
    values: dict[str, Any] = {
        "text": sentence.source,
        "entities": [entity._asdict() for entity in result.entities],
    }
    if config.tags:
        values |= {"tokens": result.tokens, "tags": result.tags}
    return json.dumps(values, ensure_ascii=False)


if __name__ == "__main__":
    cli.command(PredictConfig, run, __doc__)
