r"""SimCSE: sentence embeddings from plain sentences, each encoded twice under different dropout.

    python run_simcse.py --train_data_file data/sentences/train.txt --dev_data_file data/sts/dev.txt \
        --pretrained_model_name_or_path data/bert-tiny-zh --pooling_mode mean
    torchrun --nproc_per_node=2 run_simcse.py --gather_negatives …

Training lines are `sentence`; dev lines are `a⇥b⇥score`, or dev data is
`query⇥passage` lines or a folder in BEIR's form, for retrieval.
"""

from dataclasses import dataclass

from bertorch import cli
from bertorch.config import ContrastiveConfig, option


@dataclass(frozen=True, kw_only=True)
class SimCSEConfig(ContrastiveConfig):
    """Options of `run_simcse.py`."""

    epochs: int = option(1, minimum=1, help="passes over the training sentences")
    dropout: float = option(0.1, minimum=0.0, maximum=0.99, help="hidden and attention dropout of the encoder")


def run(config: SimCSEConfig) -> None:
    """Read the data, each sentence as its own positive, build the task, train."""
    from bertorch.data.load import load_examples
    from bertorch.encoder.pretrained import load_tokenizer
    from bertorch.tasks.contrastive import ContrastiveTask
    from bertorch.tasks.in_batch_negatives import InBatchNegatives, sentences_twice
    from bertorch.tasks.retrieval import dev_reader
    from bertorch.tasks.scored_pairs import scored_pairs
    from bertorch.training.loop import fit

    tokenizer = load_tokenizer(config.pretrained_model_name_or_path, max_seq_length=config.max_seq_length)
    train, dev = load_examples(config, tokenizer, sentences_twice, dev_reader(config.dev_data_file, scored_pairs))
    loss = InBatchNegatives.of(config)
    loss.look_at(config, train)
    fit(config, ContrastiveTask.from_config(config, tokenizer, loss, dropout=config.dropout), train, dev)


if __name__ == "__main__":
    cli.main(SimCSEConfig, run, __doc__)
