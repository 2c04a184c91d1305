r"""Classification of texts and text pairs.

    python run_classifier.py --train_data_file data/reviews/train.txt --dev_data_file data/reviews/dev.txt \
        --label_file data/reviews/labels.txt --pretrained_model_name_or_path data/bert-tiny-zh
    torchrun --nproc_per_node=2 run_classifier.py …

Lines are `text⇥label`, or `a⇥b⇥label` with `--is_text_pair`, or JSON such as `{"text": …, "label": …}`; the label file
has one label a line. With `--problem_type multi_label` they are `text⇥label,label`, with `score` `text⇥score`; with
`ranking` the training lines are `query⇥positive⇥negative…`, the dev lines `query⇥candidate⇥relevance`.
"""

from functools import partial

from bertorch import cli
from bertorch.config import ClassifierConfig


def run(config: ClassifierConfig) -> None:
    """Read the data, build the task, train."""
    from bertorch.data.load import load_examples
    from bertorch.data.readers import read_label_names
    from bertorch.encoder.pretrained import load_tokenizer
    from bertorch.tasks.registry import PROBLEMS
    from bertorch.training.folds import fit_folds

    problem = PROBLEMS[config.problem_type]
    label_names = () if config.label_file is None else read_label_names(config.label_file)
    tokenizer = load_tokenizer(config.pretrained_model_name_or_path, max_seq_length=config.max_seq_length)
    train, dev = load_examples(config, tokenizer, *problem.readers(config, label_names))
    fit_folds(config, partial(problem.planned, config, tokenizer, label_names), train, dev, label_names)


if __name__ == "__main__":
    cli.main(ClassifierConfig, run, __doc__)
