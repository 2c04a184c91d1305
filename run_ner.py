r"""Sequence labelling: named entities and the like, by BERT and a linear layer, or BERT and a CRF.

    python run_ner.py --train_data_file data/ner/train.json --dev_data_file data/ner/dev.json \
        --label_file data/ner/labels.txt --pretrained_model_name_or_path data/bert-tiny-zh --use_crf
    torchrun --nproc_per_node=2 run_ner.py …

Lines are `{"text": ["我", "们"], "label": ["O", "O"]}`, with a tag for each token; the label file has one tag a line.
"""

from dataclasses import dataclass
from functools import partial

from bertorch import cli
from bertorch.config import TrainingConfig, option
from bertorch.data.load import sentences_with_tags, training_and_dev
from bertorch.data.readers import read_labels
from bertorch.data.tags import TagSet
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.encoder.tagger import Tagger
from bertorch.errors import UserError
from bertorch.tasks.metadata import TAGGING, Description
from bertorch.training.loop import fit
from bertorch.training.tagging import TaggingTask


@dataclass(frozen=True, kw_only=True)
class NERConfig(TrainingConfig):
    """Options of `run_ner.py`."""

    label_file: str = option(is_input=True, help="one tag a line; its line number from 0 is its id")
    tag: str = option("bios", choices=("bios", "bio", "bioes"), help="the tag scheme; bioes also reads BMES")
    use_crf: bool = option(False, help="a linear-chain CRF over the emissions")
    crf_learning_rate: float = option(5e-5, minimum=0.0, help="peak rate of the CRF and of the linear layer under it")
    constrain_crf: bool = option(False, help="the CRF keeps to the scheme in training too, not only in decoding")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.constrain_crf and not self.use_crf:
            raise UserError("--constrain_crf needs --use_crf")


def run(config: NERConfig) -> None:
    """Read, load, train."""
    tags = TagSet(read_labels(config.label_file), config.tag, config.label_file)
    read = partial(sentences_with_tags, tags=tags, strict=config.constrain_crf)
    name = config.pretrained_model_name_or_path
    tokenizer = load_tokenizer(name)
    train, dev = training_and_dev(config, tokenizer, read, read)

    model = Tagger.from_pretrained(name, tags, use_crf=config.use_crf, constrain_crf=config.constrain_crf)
    model.encoder.require_positions(config.max_seq_length)
    Description(task=TAGGING, max_seq_length=config.max_seq_length).write(model.model.config)

    task = TaggingTask(model, [model.model.config, tokenizer], tags=tags, crf_learning_rate=config.crf_learning_rate)
    fit(config, task, train, dev)


if __name__ == "__main__":
    cli.main(NERConfig, run, __doc__)
