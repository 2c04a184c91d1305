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


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainingConfig):
    """Options of `run_classifier.py`."""

    label_file: str = option(is_input=True, help="one label a line; its line number from 0 is its id")
    is_text_pair: bool = option(False, help="lines are a⇥b⇥label, not text⇥label")


def run(config: ClassifierConfig) -> None:
    """Read the data, build the task, train."""
    from bertorch.data.load import load_examples
    from bertorch.data.readers import read_label_names
    from bertorch.encoder.pretrained import load_tokenizer
    from bertorch.tasks.classification import ClassificationTask, labelled_texts
    from bertorch.training.loop import fit

    name = config.pretrained_model_name_or_path
    label_names = read_label_names(config.label_file)
    read = partial(labelled_texts, label_names=label_names, num_texts=2 if config.is_text_pair else 1)
    tokenizer = load_tokenizer(name, max_seq_length=config.max_seq_length)
    train, dev = load_examples(config, tokenizer, read, read)
    task = ClassificationTask.from_pretrained(
        name, tokenizer, label_names, text_pair=config.is_text_pair, max_seq_length=config.max_seq_length
    )
    fit(config, task, train, dev)


if __name__ == "__main__":
    cli.main(ClassifierConfig, run, __doc__)
