r"""Sentence embeddings from text pairs: with in-batch negatives, and hard ones if the file has them, or with scores.

    python run_batchneg.py --train_data_file data/paraphrases/train.txt --dev_data_file data/sts/dev.txt \
        --pretrained_model_name_or_path data/bert-tiny-zh --pooling_mode mean --mean_loss
    python run_batchneg.py --loss cosent --train_data_file data/sts/train.txt --dev_data_file data/sts/dev.txt …
    torchrun --nproc_per_node=2 run_batchneg.py --gather_negatives …

Training lines are `anchor⇥positive`, or `anchor⇥positive⇥negative…` with the same number of hard negatives on each, and
with `--loss cosent` or `cosine_mse` `a⇥b⇥score`; dev lines are `a⇥b⇥score`, or dev data is `query⇥passage` lines or a
folder in BEIR's form, for retrieval.
"""

from functools import partial

from bertorch import cli
from bertorch.config import BatchNegConfig


def run(config: BatchNegConfig) -> None:
    """Read the data, build the task, train."""
    from bertorch.data.load import load_examples
    from bertorch.data.prompts import prompts_for_training
    from bertorch.encoder.pretrained import load_tokenizer
    from bertorch.tasks.contrastive import LOSSES, ContrastiveTask
    from bertorch.tasks.retrieval import dev_reader
    from bertorch.tasks.scored_pairs import scored_pairs
    from bertorch.training.loop import fit

    tokenizer = load_tokenizer(config.pretrained_model_name_or_path, max_seq_length=config.max_seq_length)
    prompts = prompts_for_training(config.query_prompt, config.passage_prompt, tokenizer, config.max_seq_length)
    loss = LOSSES[config.loss].from_config(config)
    read_dev = dev_reader(config.dev_data_file, partial(scored_pairs, prompts=prompts), prompts)
    train, dev = load_examples(config, tokenizer, loss.reader(prompts), read_dev)
    loss.look_at(config, train)
    fit(config, ContrastiveTask.from_config(config, tokenizer, loss, prompts=prompts), train, dev)


if __name__ == "__main__":
    cli.main(BatchNegConfig, run, __doc__)
