r"""Sentence embeddings from text pairs with in-batch negatives, and hard negatives if the file has them.

    python run_batchneg.py --train_data_file data/paraphrases/train.txt --dev_data_file data/sts/dev.txt \
        --pretrained_model_name_or_path data/bert-tiny-zh --pooling_mode mean --mean_loss
    torchrun --nproc_per_node=2 run_batchneg.py --gather_negatives …

Training lines are `anchor⇥positive`, or `anchor⇥positive⇥negative…` with the same number of hard negatives on each; dev
lines are `a⇥b⇥score`.
"""

from dataclasses import dataclass
from functools import partial

from bertorch import cli
from bertorch.config import ContrastiveConfig, option


@dataclass(frozen=True, kw_only=True)
class BatchNegConfig(ContrastiveConfig):
    """Options of `run_batchneg.py`."""

    mean_loss: bool = option(False, help="the mean of the losses of rows (a finds its b) and columns (b finds its a)")
    query_prompt: str | None = option(
        None, group="data", is_later=True, help="stands before each anchor, which is a query, such as 'query: '"
    )
    passage_prompt: str | None = option(
        None, group="data", is_later=True, help="stands before each positive and negative, such as 'passage: '"
    )


def run(config: BatchNegConfig) -> None:
    """Read the data, build the task, train."""
    from bertorch.data.load import load_examples
    from bertorch.data.prompts import prompts_for_training
    from bertorch.encoder.pretrained import load_tokenizer
    from bertorch.tasks.contrastive import ContrastiveTask, reader_of_pairs, scored_pairs, warn_without_negatives
    from bertorch.training.loop import fit

    tokenizer = load_tokenizer(config.pretrained_model_name_or_path, max_seq_length=config.max_seq_length)
    prompts = prompts_for_training(config.query_prompt, config.passage_prompt, tokenizer, config.max_seq_length)
    train, dev = load_examples(config, tokenizer, reader_of_pairs(prompts), partial(scored_pairs, prompts=prompts))
    warn_without_negatives(config, train)
    task = ContrastiveTask.from_config(config, tokenizer, symmetric=config.mean_loss, prompts=prompts)
    fit(config, task, train, dev)


if __name__ == "__main__":
    cli.main(BatchNegConfig, run, __doc__)
