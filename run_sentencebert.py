r"""Sentence-BERT: matching and natural language inference over the embeddings of two sentences.

    python run_sentencebert.py --train_data_file data/matching/train.txt --dev_data_file data/matching/dev.txt \
        --pretrained_model_name_or_path data/bert-tiny-zh --pooling_mode mean
    python run_sentencebert.py --is_nli --label_file data/nli/labels.txt --train_data_file data/nli/train.txt …
    torchrun --nproc_per_node=2 run_sentencebert.py …

Lines are `a⇥b⇥0` or `a⇥b⇥1`; with `--is_nli` they are `premise⇥hypothesis⇥label` with the labels of the label file.
"""

from dataclasses import dataclass
from functools import partial

from bertorch import cli
from bertorch.config import EmbeddingConfig, option
from bertorch.data.load import pairs_with_labels, training_and_dev
from bertorch.data.readers import read_labels
from bertorch.encoder.pretrained import label_settings, load_tokenizer
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.sentence_transformers import SentenceTransformerFiles
from bertorch.errors import UserError
from bertorch.tasks.metadata import SENTENCE_BERT, Description
from bertorch.tasks.siamese import SiameseClassifier
from bertorch.training.loop import fit
from bertorch.training.tasks import ClassificationTask

MATCHING_LABELS = ["0", "1"]


@dataclass(frozen=True, kw_only=True)
class SentenceBertConfig(EmbeddingConfig):
    """Options of `run_sentencebert.py`."""

    label_file: str | None = option(None, is_input=True, help="one label a line; without it the labels are 0 and 1")
    is_nli: bool = option(False, help="natural language inference, with the labels of --label_file")
    concat_multiply: bool = option(False, help="the classifier also sees the element-wise product of both embeddings")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_nli and self.label_file is None:
            raise UserError("--is_nli needs --label_file with the names of its labels, one a line")


def run(config: SentenceBertConfig) -> None:
    """Read, load, train."""
    labels = MATCHING_LABELS if config.label_file is None else read_labels(config.label_file)
    read = partial(pairs_with_labels, labels=labels)
    name = config.pretrained_model_name_or_path
    tokenizer = load_tokenizer(name)
    train, dev = training_and_dev(config, tokenizer, read, read)

    embedder = SentenceEncoder.from_pretrained(
        name, config.pooling_mode, config.output_emb_size, **label_settings(labels)
    )
    embedder.encoder.require_positions(config.max_seq_length)
    model = SiameseClassifier(embedder, len(labels), concat_multiply=config.concat_multiply)
    description = Description(
        task=SENTENCE_BERT,
        max_seq_length=config.max_seq_length,
        pooling_mode=config.pooling_mode,
        output_emb_size=config.output_emb_size,
        concat_multiply=config.concat_multiply,
    )
    description.write(embedder.config)

    files = SentenceTransformerFiles(embedder, config.max_seq_length)
    task = ClassificationTask(model, [embedder.config, tokenizer, files])
    fit(config, task, train, dev)


if __name__ == "__main__":
    cli.main(SentenceBertConfig, run, __doc__)
