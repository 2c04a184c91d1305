r"""Classification of texts and text pairs.

    python run_classifier.py --train_data_file data/reviews/train.txt --dev_data_file data/reviews/dev.txt \
        --label_file data/reviews/labels.txt --pretrained_model_name_or_path data/bert-tiny-zh
    torchrun --nproc_per_node=2 run_classifier.py …

Lines are `text⇥label`, or `a⇥b⇥label` with `--is_text_pair`; the label file has one label a line.
"""

from dataclasses import dataclass
from functools import partial

from bertorch import cli
from bertorch.config import TrainingConfig, option
from bertorch.data.load import texts_with_labels, training_and_dev
from bertorch.data.readers import read_labels
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.tasks.metadata import CLASSIFICATION, Description
from bertorch.training.loop import fit
from bertorch.training.tasks import ClassificationTask


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainingConfig):
    """Options of `run_classifier.py`."""

    label_file: str = option(is_input=True, help="one label a line; its line number from 0 is its id")
    is_text_pair: bool = option(False, help="lines are a⇥b⇥label, not text⇥label")


def run(config: ClassifierConfig) -> None:
    """Read, load, train."""
    labels = read_labels(config.label_file)
    read = partial(texts_with_labels, labels=labels, texts=2 if config.is_text_pair else 1)
    tokenizer = load_tokenizer(config.pretrained_model_name_or_path)
    train, dev = training_and_dev(config, tokenizer, read, read)

    model = SequenceClassifier.from_pretrained(config.pretrained_model_name_or_path, labels)
    model.encoder.require_positions(config.max_seq_length)
    description = Description(task=CLASSIFICATION, max_seq_length=config.max_seq_length, text_pair=config.is_text_pair)
    description.write(model.model.config)

    task = ClassificationTask(model, [model.model.config, tokenizer])
    fit(config, task, train, dev)


if __name__ == "__main__":
    cli.main(ClassifierConfig, run, __doc__)
