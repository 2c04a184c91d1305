r"""Sentence-BERT: matching and natural language inference over the embeddings of two sentences.

    python run_sentencebert.py --train_data_file data/matching/train.txt --dev_data_file data/matching/dev.txt \
        --pretrained_model_name_or_path data/bert-tiny-zh --pooling_mode mean
    python run_sentencebert.py --is_nli --label_file data/nli/labels.txt --train_data_file data/nli/train.txt …
    torchrun --nproc_per_node=2 run_sentencebert.py …

Lines are `a⇥b⇥0` or `a⇥b⇥1`; with `--is_nli` they are `premise⇥hypothesis⇥label` with the labels of the label file.
Dev data may also be `query⇥passage` lines or a folder in BEIR's form, for retrieval.
"""

from dataclasses import dataclass
from functools import partial

from typing_extensions import override

from bertorch import cli
from bertorch.config import EmbeddingConfig, FoldsConfig, option
from bertorch.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SentenceBertConfig(EmbeddingConfig, FoldsConfig):
    """Options of `run_sentencebert.py`."""

    label_file: str | None = option(None, is_input=True, help="one label a line; without it the labels are 0 and 1")
    is_nli: bool = option(False, help="natural language inference, with the labels of --label_file")
    concat_multiply: bool = option(False, help="the classifier also sees the element-wise product of both embeddings")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_nli and self.label_file is None:
            raise UserError("--is_nli needs --label_file with the names of its labels, one a line")

    @property
    @override
    def num_texts(self) -> int:
        return 2


def run(config: SentenceBertConfig) -> None:
    """Read the data, build the task, train."""
    from bertorch.data.load import load_examples
    from bertorch.data.readers import read_label_names
    from bertorch.encoder.pretrained import load_tokenizer
    from bertorch.tasks.retrieval import dev_reader
    from bertorch.tasks.sentence_bert import MATCHING_LABELS, SentenceBertTask, labelled_pairs
    from bertorch.training.folds import fit_folds

    name = config.pretrained_model_name_or_path
    label_names = MATCHING_LABELS if config.label_file is None else read_label_names(config.label_file)
    read = partial(labelled_pairs, label_names=label_names)
    tokenizer = load_tokenizer(name, max_seq_length=config.max_seq_length)
    train, dev = load_examples(config, tokenizer, read, dev_reader(config.dev_data_file, read))
    make_task = partial(
        SentenceBertTask.from_pretrained,
        name,
        tokenizer,
        label_names,
        pooling_mode=config.pooling_mode,
        output_emb_size=config.output_emb_size,
        concat_multiply=config.concat_multiply,
        max_seq_length=config.max_seq_length,
        matryoshka=config.matryoshka_widths,
    )
    fit_folds(config, lambda _: make_task, train, dev, label_names)


if __name__ == "__main__":
    cli.main(SentenceBertConfig, run, __doc__)
