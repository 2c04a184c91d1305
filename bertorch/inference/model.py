"""What `bertorch.load` returns: a trained model with `predict`, `encode` and `tag`, where its task has them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from bertorch.errors import UserError
from bertorch.inference.engine import Engine
from bertorch.tasks.base import Task
from bertorch.tasks.scored import Ranked, ranked
from bertorch.tasks.scoring import Prediction, ScoringTask, Text, checked_texts, require_list
from bertorch.tasks.tagging import TaggingTask
from bertorch.tasks.text_tokens import TaggedText, TextTokens


class Model:
    """A trained model for inference, made by `bertorch.load`; what its task does not have raises a `UserError`.

    It can be copied and pickled.
    """

    def __init__(self, task: Task[Any], engine: Engine) -> None:
        self.task, self.engine = task, engine

    @property
    def labels(self) -> Sequence[str]:
        """Label names of a classifier or tagger in the order of their ids, else none."""
        return self.task.label_names

    @property
    def size(self) -> int:
        """Dimensions of an embedding, 0 where the task has none."""
        return self.task.embedding_size

    def predict(self, texts: Iterable[Text]) -> list[Prediction]:
        """Classify texts or tuples of two texts, as in training; with sentence embeddings, compare two texts.

        Raises:
            UserError: the model is a tagger, or takes other inputs.
        """
        inference = self.task.scorer()
        task = cast(ScoringTask, self.task)
        windows = self.engine.run(inference, task.checked_inputs(texts))
        return [task.prediction(row.tolist()) for _, rows in windows for row in rows]

    def rank(self, query: str, candidates: Iterable[str], top_k: int | None = None) -> list[Ranked]:
        """Order the candidates of a query: index and score of each, best first; of equal ones the earlier first.

        Args:
            query: a text.
            candidates: texts.
            top_k: only so many of the best; None for all.

        Raises:
            UserError: the model gives pairs no score, or an input is no text.
        """
        inference = self.task.ranker()
        require_list(candidates, "candidates")
        if top_k is not None and top_k < 1:
            raise UserError(f"rank: expected a top_k of at least 1, got {top_k}")
        pairs = list(self.task.checked_inputs((query, candidate) for candidate in candidates))
        distinct = dict.fromkeys(pairs)  # in another batch an equal pair may round to another score
        rows = (row for _, rows in self.engine.run(inference, distinct) for row in rows)
        scores = {pair: float(row[0]) for pair, row in zip(distinct, rows, strict=True)}
        return ranked([scores[pair] for pair in pairs])[:top_k]

    def encode(
        self, texts: Iterable[str], *, normalize: bool = False, dimensions: int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        """Sentence embeddings (N, E) float32 of N texts, of length 1 if `normalize` is set.

        Args:
            texts: N of them.
            normalize: whether to.
            dimensions: only the first ones (N, dimensions), always of length 1: for models of `--matryoshka`.
            prompt: which of the model's prompts goes before the texts: that of a `query` or a `passage`, or `none`. A
                model that was trained with prompts must be told. None for the default prompt of a folder of
                sentence-transformers, if it has one.

        Raises:
            UserError: the model has no embeddings, or fewer dimensions, or the prompt is not said or cannot be applied.
        """
        found = self.embeddings(texts, normalize=normalize, dimensions=dimensions, prompt=prompt)
        vectors = [rows for _, rows in found]
        return np.concatenate(vectors) if vectors else np.zeros((0, dimensions or self.size), dtype=np.float32)

    def tag(self, texts: Iterable[str | Sequence[str]], *, split: str | None = None) -> list[TaggedText]:
        """Find entities.

        Args:
            texts: plain texts, or lists of tokens.
            split: what the tokens of a plain text are: its `characters` without white space, or `words`: runs of
                letters and digits, but each Chinese, Japanese or Korean character and each other sign by itself. None
                for what they were in training (`--split`).

        Raises:
            UserError: the model is no tagger, or no such split exists.
        """
        inference = self.task.span_finder()
        task = cast(TaggingTask, self.task)
        require_list(texts, "texts")
        inputs = [TextTokens.of(text, split or task.split) for text in texts]
        windows = self.engine.run(inference, filter(len, inputs))  # Viterbi takes no empty sentence
        found = (task.tagged(*each) for window in windows for each in zip(*window, strict=True))
        return [next(found) if len(text) else TaggedText([], [], []) for text in inputs]

    def embeddings(
        self, texts: Iterable[str], *, normalize: bool, dimensions: int | None = None, prompt: str | None = None
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """As `encode`, window by window with its texts, in memory that does not grow with their number."""
        embedder = self.task.embedder(normalize=normalize, dimensions=dimensions, role=prompt)
        return self.engine.run(embedder, checked_texts(texts, 1))
