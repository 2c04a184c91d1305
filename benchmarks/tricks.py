r"""What each option of "Getting more accuracy" costs: training steps of a classifier with it and without.

    python -m benchmarks.tricks
    python -m benchmarks.tricks --pretrained_model_name_or_path bert-base-chinese \
        --train_data_file ChnSentiCorp/train.tsv --label_file ChnSentiCorp/labels.txt --json result.json

All take the same optimisation steps (forward, backward, clipping, AdamW, schedule) on the same batches, turn by turn in
one process.
"""

from typing import Any

from benchmarks.measuring import DATA, Contender, compare_steps, step_parser
from bertorch import distributed, log
from bertorch.config import ClassifierConfig
from bertorch.data.dataset import Dataset
from bertorch.data.readers import read_label_names, read_labelled_texts
from bertorch.encoder.pretrained import load_tokenizer
from bertorch.precision import Precision
from bertorch.tasks.classification import ClassificationTask
from bertorch.training.loop import build_hooks, prepare_layers

OPTIONS: tuple[dict[str, Any], ...] = (
    {"adversarial_epsilon": 1.0},
    {"ema_decay": 0.999},
    {"r_drop": 1.0},
    {"layer_decay": 0.9},
    {"freeze_layers": 3},
    {},  # the plain step last
)


def main() -> None:
    """Measure, print a table, write JSON on demand."""
    log.setup()
    options = step_parser(__doc__, DATA / "reviews" / "train.txt", DATA / "reviews" / "labels.txt").parse_args()
    labels, tokenizer = read_label_names(options.label_file), load_tokenizer(options.pretrained_model_name_or_path)
    examples = read_labelled_texts(options.train_data_file, labels)
    dataset = Dataset.of_sequences(tokenizer, examples.columns, examples.labels, max_length=options.max_seq_length)
    contenders = {}
    for chosen in OPTIONS:
        config = ClassifierConfig(
            train_data_file=options.train_data_file,
            label_file=options.label_file,
            pretrained_model_name_or_path=options.pretrained_model_name_or_path,
            **chosen,
        )
        task = ClassificationTask.from_config(config, tokenizer, labels, dataset)
        task.model.to(distributed.device())
        name = " ".join(f"--{option} {value}" for option, value in chosen.items()) or "without"
        factors = prepare_layers(config, task)
        contenders[name] = Contender(task.model, task.losses, build_hooks(config, task), factors)
    compare_steps(options, dataset, contenders, Precision.resolve(options.precision, distributed.device()))


if __name__ == "__main__":
    main()
