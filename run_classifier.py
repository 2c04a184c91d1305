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
from bertorch.data.batching import Dataset
from bertorch.data.readers import LabelledTexts, read_labelled_texts, read_labels
from bertorch.models.classifier import SequenceClassifier
from bertorch.models.encoder import load_tokenizer
from bertorch.training.tasks import ClassificationTask
from bertorch.training.trainer import fit


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainingConfig):
    """Options of `run_classifier.py`."""

    label_file: str = option(is_input=True, help="one label a line; its line number from 0 is its id")
    is_text_pair: bool = option(False, help="lines are a⇥b⇥label, not text⇥label")


def run(config: ClassifierConfig) -> None:
    """Read, load, train."""
    labels = read_labels(config.label_file)
    texts = 2 if config.is_text_pair else 1
    read = partial(read_labelled_texts, labels=labels, texts=texts, on_bad_line=config.on_bad_line)
    train = read(config.train_data_file)
    dev = read(config.dev_data_file) if config.dev_data_file is not None else None

    tokenizer = load_tokenizer(config.pretrained_model_name_or_path)
    model = SequenceClassifier.from_pretrained(config.pretrained_model_name_or_path, labels)
    model.encoder.require_positions(config.max_seq_length)

    def dataset(examples: LabelledTexts) -> Dataset:
        return Dataset.of_sequences(tokenizer, examples.columns, examples.labels, max_length=config.max_seq_length)

    task = ClassificationTask(model, [model.model.config, tokenizer])
    fit(config, task, dataset(train), dataset(dev) if dev is not None else None)


if __name__ == "__main__":
    cli.main(ClassifierConfig, run, __doc__)
