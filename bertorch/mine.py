r"""Find hard negatives for pairs: passages that a model of sentence embeddings takes for answers, and that are none.

    python -m bertorch.mine --model_dir checkpoint --input_file pairs.txt --output_file mined.txt
    python -m bertorch.mine … --corpus_file corpus.txt --rank_from 5 --sampling random --reranker_dir reranker
    torchrun --nproc_per_node=2 -m bertorch.mine …

A line of input is `query⇥positive`; a line of output `query⇥positive⇥negative…`, as run_batchneg.py and
run_classifier.py --problem_type ranking read them, with the same number of negatives on each. The passages of the
corpus are ranked for each query by cosine. Passages that some line pairs with the query, and the query itself, have no
rank. Of the ranks from `--rank_from` to `--rank_to`, those stay whose score is at most
`s − relative_margin · |s|`, where `s` is the score of the line's positive; of these the best are taken, or a sample.
With `--reranker_dir`, a cross-encoder scores the candidates of these ranks and the positive anew, and its scores count.

The same command again resumes an interrupted one: until the end, embeddings, candidates and scores are in the folder
`OUTPUT_FILE.parts`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from bertorch import cli
from bertorch.config import InferenceConfig, option
from bertorch.errors import UserError
from bertorch.files import is_stream, refuse_existing, whole_output, writing

if TYPE_CHECKING:
    from bertorch.data.mining_texts import MiningTexts
    from bertorch.inference.hard_negatives import Tally
    from bertorch.inference.mining import Candidates, Mining
    from bertorch.inference.model import Model

SAMPLING = ("top", "random")
FILL = ("drop", "random")


@dataclass(frozen=True, kw_only=True)
class MineConfig(InferenceConfig):
    """Options of `bertorch.mine`."""

    input_file: str = option(help="query⇥positive a line, of texts that match")
    output_file: str = option(help="query⇥positive⇥negative… a line")
    corpus_file: str | None = option(
        None, help="a passage a line, among which negatives are sought; by default the positives of all lines"
    )
    num_negatives: int = option(5, minimum=1, help="negatives of a line")
    rank_from: int = option(1, minimum=1, help="the first rank that may be a negative; those before it may be answers")
    rank_to: int = option(100, minimum=1, help="the last rank that may be a negative")
    relative_margin: float = option(
        0.05,
        minimum=0.0,
        maximum=1.0,
        help="no negative scores above that of the positive less this share of it: it may be an answer",
    )
    sampling: str = option(SAMPLING[0], choices=SAMPLING, help="take the best of what is left, or draw from it")
    seed: int = option(0, minimum=0, help="of what is drawn")
    reranker_dir: str | None = option(
        None, help="--saved_dir of --problem_type ranking, or another cross-encoder of pairs, whose scores then count"
    )
    fill: str = option(
        FILL[0], choices=FILL, help="a line with too few negatives: drop it, or fill it with random passages"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = self.rank_to - self.rank_from + 1
        if wanted < 1:
            raise UserError(
                f"--rank_from {self.rank_from} --rank_to {self.rank_to}: expected the first rank not to be behind the "
                "last one"
            )
        if wanted < self.num_negatives:
            raise UserError(
                f"--num_negatives {self.num_negatives}: expected at most the {wanted} ranks from {self.rank_from} to "
                f"{self.rank_to}; raise --rank_to"
            )
        if is_stream(self.output_file):
            raise UserError(f"--output_file {self.output_file}: expected a file, beside which parts are kept; name one")


def run(config: MineConfig) -> None:
    """Read, encode, search, rescore, choose, write."""
    from bertorch.data.mining_texts import read_mining_texts
    from bertorch.inference.load import load, load_shared
    from bertorch.writer_lock import only_writer

    inputs = (config.input_file, config.corpus_file)
    refuse_existing([config.output_file], overwrite=config.overwrite, inputs=inputs)
    texts = read_mining_texts(config.input_file, config.corpus_file)
    if config.rank_from > texts.corpus_size:
        raise UserError(
            f"--rank_from {config.rank_from}: expected at most {texts.corpus_size}, the passages that there are"
        )
    model, reranker = load_shared(config), None
    for role in ("query", "passage"):
        model.task.embedder(normalize=True, role=role)  # raises: no embeddings, or a prompt that cannot be applied
    if config.reranker_dir is not None:
        size = config.batch_size
        reranker = load(
            config.reranker_dir, precision=config.precision, batch_size=size, shared=True, backend=config.backend
        )
        reranker.task.ranker()  # raises: the model has no scores of pairs
    target = Path(os.path.realpath(config.output_file))
    with only_writer(target.with_name(f".{target.name}.lock"), f"--output_file {config.output_file}"):
        _mine(config, texts, _mining(config, texts, model, reranker, target.with_name(f"{target.name}.parts")))


def _mining(
    config: MineConfig, texts: "MiningTexts", model: "Model", reranker: "Model | None", folder: Path
) -> "Mining":
    from bertorch.data.fingerprint import file_digest
    from bertorch.inference.mining import Mining

    files = {"--input_file": config.input_file, "--corpus_file": config.corpus_file}
    made_of = {f"content of {name}": None if path is None else file_digest(path) for name, path in files.items()}
    ranks, of_reranker = (config.rank_from, config.rank_to), None
    if reranker is not None and config.reranker_dir is not None:
        of_reranker = _made_of("--reranker_dir", config.reranker_dir, reranker)
    of_model = made_of | _made_of("--model_dir", config.model_dir, model)
    return Mining(folder, texts, model, of_model, ranks, reranker, of_reranker)


def _made_of(name: str, folder: str, model: "Model") -> dict[str, Any]:
    """What comes of a model depends on this."""
    from bertorch.data.model_digests import ModelDigests
    from bertorch.inference.load import graph_contents

    digests = ModelDigests(Path(os.devnull)).of_model(folder)  # no record of an earlier run
    return {
        f"tokens of {name}": model.task.max_seq_length,
        f"precision of {name}": model.engine.precision.name,
        **{f"content of {name}, {file}": digest for file, digest in (digests | graph_contents(model)).items()},
    }


def _mine(config: MineConfig, texts: "MiningTexts", mining: "Mining") -> None:
    from bertorch import distributed

    def begin() -> None:
        with writing(mining.folder):
            mining.folder.mkdir(exist_ok=True)

    distributed.on_main(begin)
    candidates = mining.candidates()
    if candidates is not None:
        _write(config, texts, candidates)
        mining.remove()


def _write(config: MineConfig, texts: "MiningTexts", candidates: "Candidates") -> None:
    from bertorch.inference.hard_negatives import Selection, Tally, negatives_of_pairs

    margin, sampling = config.relative_margin, config.sampling
    selection = Selection(config.num_negatives, margin, sampling, config.fill, config.seed)
    tally = Tally()
    with whole_output(config.output_file, overwrite=config.overwrite) as file:
        for row, negatives in negatives_of_pairs(texts, candidates, selection, tally):
            numbers = [*texts.pairs[row].tolist(), *negatives.tolist()]
            file.write("\t".join(texts.texts[number] for number in numbers) + "\n")
        if not tally.written:
            raise UserError(
                f"{config.input_file}: expected a line with {config.num_negatives} negatives, got none: of "
                f"{tally.candidates} candidates of {tally.dropped} lines, {tally.too_close} score too close to the "
                "positive; lower --num_negatives or --relative_margin, raise --rank_to, or name a larger --corpus_file"
            )
    for line in _summary(config, texts, tally):
        logger.info("{}", line)


def _summary(config: MineConfig, texts: "MiningTexts", tally: "Tally") -> Iterator[str]:
    yield (
        f"{config.output_file}: {tally.written} of {len(texts.pairs)} lines, {config.num_negatives} negatives each; "
        f"with too few candidates {tally.dropped} dropped, {tally.padded} filled at random"
    )
    yield (
        f"{len(texts.queries)} queries, {texts.corpus_size} passages; of {tally.candidates} candidates "
        f"{tally.too_close} score above the positive less {config.relative_margin:g} of it and are left out"
    )
    scores = f"mean score of the positives {tally.positive_scores / tally.written:.5f}"
    if tally.negatives:
        scores += f", of the negatives mined {tally.negative_scores / tally.negatives:.5f}"
    yield scores


if __name__ == "__main__":
    cli.command(MineConfig, run, __doc__)
