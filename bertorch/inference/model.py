"""What `bertorch.load` returns: a trained model with `predict`, `encode` and `tag`, as far as its task has them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from bertorch.errors import UserError
from bertorch.inference.engine import Engine
from bertorch.tasks.base import Task
from bertorch.tasks.scoring import Prediction, ScoringTask, Text, checked_texts
from bertorch.tasks.tagging import TaggingTask
from bertorch.tasks.text_tokens import TaggedText, TextTokens


class Model:
    """A trained model, for use. `bertorch.load` makes one; what its task does not have raises.

    Args:
        task: of the folder.
        engine: runs it.

    Attributes:
        task, engine: as given.
    """

    def __init__(self, task: Task[Any], engine: Engine) -> None:
        self.task = task
        self.engine = engine

    @property
    def labels(self) -> Sequence[str]:
        """Of a classifier or tagger, in the order of their ids; else none."""
        return self.task.label_names

    @property
    def size(self) -> int:
        """Dimensions of an embedding, 0 where the task has none."""
        return self.task.embedding_size

    def predict(self, texts: Iterable[Text]) -> list[Prediction]:
        """Classify texts or pairs of texts; of a model of sentence embeddings, compare the texts of pairs.

        Args:
            texts: texts, or tuples of two, as the model was trained with.

        Raises:
            UserError: the model is a tagger, or takes other inputs.
        """
        return [prediction for _, predictions in self.predictions(texts) for prediction in predictions]

    def encode(self, texts: Iterable[str], *, normalize: bool = False) -> np.ndarray:
        """Embed texts.

        Args:
            texts: N of them.
            normalize: to a length of 1.

        Returns:
            (N, E) float32.

        Raises:
            UserError: the model gives no sentence embeddings.
        """
        vectors = [rows for _, rows in self.embeddings(texts, normalize=normalize)]
        return np.concatenate(vectors) if vectors else np.zeros((0, self.size), dtype=np.float32)

    def tag(self, texts: Iterable[str | Sequence[str]], *, split: str = "characters") -> list[TaggedText]:
        """Find entities.

        Args:
            texts: plain texts, or lists of tokens.
            split: what the tokens of a plain text are: its `characters` without white space, or `words`: runs of
                letters and digits, but each Chinese, Japanese or Korean character and each other sign by itself.

        Raises:
            UserError: the model is no tagger, or there is no such split.
        """
        inference = self.task.span_finder()
        task = cast(TaggingTask, self.task)
        if isinstance(texts, str):
            raise UserError(f"expected a list of texts, got the text {texts!r}; put it into a list")
        inputs = [TextTokens.of(text, split) for text in texts]
        windows = self.engine.run(inference, filter(len, inputs))  # Viterbi takes no empty sentence
        found = (task.tagged(*each) for window in windows for each in zip(*window, strict=True))
        return [next(found) if len(text) else TaggedText([], [], []) for text in inputs]

    def predictions(self, texts: Iterable[Text]) -> Iterator[tuple[list[Text], list[Prediction]]]:
        """As `predict`, window by window, in memory that does not grow with the number of texts."""
        inference = self.task.scorer()
        task = cast(ScoringTask, self.task)
        for inputs, rows in self.engine.run(inference, task.checked_inputs(texts)):
            yield inputs, [task.prediction(row.tolist()) for row in rows]

    def embeddings(self, texts: Iterable[str], *, normalize: bool) -> Iterator[tuple[list[str], np.ndarray]]:
        """As `encode`, window by window, in memory that does not grow with the number of texts."""
        return self.engine.run(self.task.embedder(normalize=normalize), checked_texts(texts, 1))
