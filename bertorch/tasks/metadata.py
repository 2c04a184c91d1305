"""What a saved folder says of itself under the key `bertorch` of its config.json: which task, and how to feed it."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import PretrainedConfig

from bertorch.config import POOLING_MODES
from bertorch.errors import UserError

KEY = "bertorch"

CLASSIFICATION = "classification"
SENTENCE_BERT = "sentence_bert"
EMBEDDING = "embedding"
TAGGING = "tagging"
# Each task, and the scripts that save such folders.
TASKS = {
    CLASSIFICATION: "run_classifier.py",
    SENTENCE_BERT: "run_sentencebert.py",
    EMBEDDING: "run_simcse.py or run_batchneg.py",
    TAGGING: "run_ner.py",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the weights of a folder do not tell.

    Attributes:
        task: a name of `TASKS`.
        max_seq_length: tokens of an example in training.
        text_pair: whether a classifier takes pairs; None if that is not known, and both are taken.
        pooling_mode: of sentence embeddings, a name of `POOLING_MODES`; None for the other tasks.
        output_emb_size: of sentence embeddings, the dimensions of the linear layer after pooling; None without one.
        concat_multiply: whether the classifier of Sentence-BERT sees the product of both embeddings.
    """

    task: str
    max_seq_length: int
    text_pair: bool | None = None
    pooling_mode: str | None = None
    output_emb_size: int | None = None
    concat_multiply: bool = False

    def write(self, config: PretrainedConfig) -> None:
        """Put the description into a model's config, with which it is saved."""
        setattr(config, KEY, asdict(self))

    @classmethod
    def read(cls, config: PretrainedConfig, folder: str) -> "Description | None":
        """The description in a model's config, None if there is none.

        Args:
            config: of the folder.
            folder: for errors.

        Raises:
            UserError: it is not as `write` leaves it.
        """
        values = getattr(config, KEY, None)
        if values is None:
            return None
        names = {declared.name for declared in fields(cls)}
        where = f"{folder}/config.json: {KEY}"
        if not isinstance(values, dict) or not {"task", "max_seq_length"} <= values.keys() <= names:
            raise UserError(f"{where}: expected the fields {', '.join(sorted(names))}, got {values!r}")
        description = cls(**values)
        expected: dict[str, tuple[Any, ...]] = {
            "task": tuple(TASKS),
            "text_pair": (None, False, True),
            "pooling_mode": POOLING_MODES if description.embeds else (None,),
            "concat_multiply": (False, True),
        }
        for name, allowed in expected.items():
            if getattr(description, name) not in allowed:
                raise UserError(f"{where}: {name}: expected one of {allowed}, got {getattr(description, name)!r}")
        sizes = [description.max_seq_length, description.output_emb_size or 1]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise UserError(f"{where}: expected max_seq_length and output_emb_size to be whole numbers, got {values!r}")
        return description

    @property
    def embeds(self) -> bool:
        """Whether the model gives sentence embeddings."""
        return self.task in (SENTENCE_BERT, EMBEDDING)
