r"""Sequence labelling, such as named entities, by BERT and a linear layer, or BERT and a CRF.

    python run_ner.py --train_data_file data/ner/train.json --dev_data_file data/ner/dev.json \
        --label_file data/ner/labels.txt --pretrained_model_name_or_path data/bert-tiny-zh --use_crf
    torchrun --nproc_per_node=2 run_ner.py …

Lines are `{"text": ["我", "们"], "label": ["O", "O"]}`, with a tag for each token, or `{"text": "…", "entities":
[{"start": 0, "end": 2, "type": "PER"}]}`, in characters of a text or tokens of a list, `end` exclusive. The label file
has one tag a line, or one type.
"""

from dataclasses import dataclass
from functools import partial

from loguru import logger

from bertorch import cli
from bertorch.config import SPLITS, FoldsConfig, option
from bertorch.errors import UserError


@dataclass(frozen=True, kw_only=True)
class NERConfig(FoldsConfig):
    """Options of `run_ner.py`."""

    label_file: str = option(is_input=True, help="one tag, or one type of entities, a line")
    tag: str = option("bios", choices=("bios", "bio", "bioes"), help="the tag scheme; bioes also reads BMES")
    use_crf: bool = option(False, help="a linear-chain CRF over the emissions")
    crf_learning_rate: float = option(5e-5, minimum=0.0, help="peak rate of the CRF and of the linear layer under it")
    split: str = option(
        SPLITS[0],
        choices=SPLITS,
        group="data",
        is_later=True,
        help="the tokens of a text with entities that is no list: characters, or words and single Chinese characters",
    )
    constrain_crf: bool = option(False, group="optimisation", help="the CRF obeys the tag scheme in training too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.constrain_crf and not self.use_crf:
            raise UserError("--constrain_crf needs --use_crf")
        if self.folds is not None and self.constrain_crf and self.on_bad_line == "skip":
            raise UserError(
                "--folds, --constrain_crf and --on_bad_line skip: sentences whose tags break the scheme would be left "
                "out, and out_of_fold.tsv has all sentences; choose two of them"
            )


def run(config: NERConfig) -> None:
    """Read the data, build the task, train."""
    from bertorch.data.load import load_examples
    from bertorch.data.tagged_sentences import read_tag_set
    from bertorch.encoder.pretrained import load_tokenizer
    from bertorch.tasks.tagging import TaggingTask, tagged_sentences
    from bertorch.training.folds import fit_folds

    name = config.pretrained_model_name_or_path
    if config.crf_learning_rate != NERConfig.crf_learning_rate and not config.use_crf:
        logger.warning("--crf_learning_rate is the rate of the CRF's head: without --use_crf it changes nothing")
    tags = read_tag_set(config.label_file, config.tag)
    read = partial(tagged_sentences, tags=tags, strict=config.constrain_crf, split=config.split, as_spans=False)
    tokenizer = load_tokenizer(name, max_seq_length=config.max_seq_length)
    train, dev = load_examples(config, tokenizer, read, read)
    make_task = partial(
        TaggingTask.from_pretrained,
        name,
        tokenizer,
        tags,
        head="crf" if config.use_crf else "linear",
        constrain_training=config.constrain_crf,
        split=config.split,
        head_learning_rate=config.crf_learning_rate,
        max_seq_length=config.max_seq_length,
    )
    fit_folds(config, lambda _: make_task, train, dev, tags.tags)


if __name__ == "__main__":
    cli.main(NERConfig, run, __doc__)
