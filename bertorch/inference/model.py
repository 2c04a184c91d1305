"""What `bertorch.load` returns: a trained model with `predict`, `encode` and `tag`, as far as its task has them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertorch.data.lines import HALF_PAIR
from bertorch.errors import UserError
from bertorch.inference.engine import Engine
from bertorch.inference.entities import Sentence, TaggedText
from bertorch.tasks.metadata import TASKS, Description

Text: TypeAlias = str | tuple[str, str]
_FORMS = {1: "text", 2: "pair"}
_TOLD = {"text": "a text", "pair": "a pair, a tuple of two texts", "either": "a text or a pair of texts"}


class Prediction(NamedTuple):
    """What a model says of a text or a pair.

    Attributes:
        label: the likeliest; None of a model that only embeds.
        probabilities: of each label, in the order of the label file.
        cosine: of the embeddings of a pair; None of a classifier, which has none.
    """

    label: str | None
    probabilities: Mapping[str, float]
    cosine: float | None

    @property
    def probability(self) -> float | None:
        """Of the likeliest label."""
        return None if self.label is None else self.probabilities[self.label]


class Origin(NamedTuple):
    """What all models have beside their weights.

    Attributes:
        folder: where they come from.
        description: the task, and what belongs to that.
        tokenizer: of the folder.
        engine: runs the model.
    """

    folder: str
    description: Description
    tokenizer: PreTrainedTokenizerBase
    engine: Engine


class Model:
    """A trained model, for use. `bertorch.load` makes one; it has the methods of its task, the others raise.

    Args:
        origin: where it comes from, and what runs it.

    Attributes:
        folder, description: as in `origin`.
        labels: of a classifier or tagger, in the order of their ids; else none.
        size: dimensions of an embedding, 0 where the task has none.
    """

    labels: Sequence[str] = ()
    size = 0

    def __init__(self, origin: Origin) -> None:
        self.folder, self.description, self._tokenizer, self._engine = origin

    @property
    def precision(self) -> str:
        """Of the arithmetic: `fp32`, `bf16` or `fp16`."""
        return self._engine.precision.name

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
        if isinstance(texts, str):
            raise UserError(f"expected a list of texts, got the text {texts!r}; put it into a list")
        texts = list(texts)
        filled = [text for text in texts if _has_tokens(text)]  # a CRF takes no empty sentence
        found = (result for _, results in self.taggings(filled, split=split) for result in results)
        return [next(found) if _has_tokens(text) else TaggedText([], [], []) for text in texts]

    def predictions(self, texts: Iterable[Text]) -> Iterator[tuple[list[Text], list[Prediction]]]:
        """As `predict`, window by window, in memory that does not grow with the number of texts."""
        for inputs, rows in self.scores(texts):
            yield inputs, [self.prediction(row) for row in rows.tolist()]

    def scores(self, texts: Iterable[Text]) -> Iterator[tuple[list[Text], np.ndarray]]:
        """As `predictions`, as rows of numbers: the probabilities of the labels, then the cosine, if there is one."""
        raise self._unsuited("predict")

    def embeddings(self, texts: Iterable[str], *, normalize: bool) -> Iterator[tuple[list[str], np.ndarray]]:
        """As `encode`, window by window, in memory that does not grow with the number of texts."""
        raise self._unsuited("encode")

    def taggings(
        self, texts: Iterable[str | Sequence[str]], *, split: str
    ) -> Iterator[tuple[list[Sentence], list[TaggedText]]]:
        """As `tag`, window by window, in memory that does not grow with the number of texts."""
        raise self._unsuited("tag")

    def prediction(self, row: Sequence[float]) -> Prediction:
        """A row of `scores` as a prediction."""
        probabilities = dict(zip(self.labels, row, strict=False))
        cosine = row[-1] if self.description.embeds else None
        return Prediction(max(probabilities, key=probabilities.__getitem__, default=None), probabilities, cosine)

    def _unsuited(self, wish: str) -> UserError:
        suited = {"predict": "a text or embedding", "encode": "an embedding", "tag": "a tagging"}[wish]
        return UserError(
            f"{self.folder}: expected {suited} model to {wish} with, got one of {TASKS[self.description.task]}"
        )

    def _checked(self, texts: Iterable[Any], form: str) -> Iterator[Any]:
        """The inputs, which must all be of one form: `text`, `pair` or `either`, which is that of the first."""
        if isinstance(texts, str):
            raise UserError(f"expected a list of inputs, got the text {texts!r}; put it into a list")
        for number, each in enumerate(texts):
            parts = tuple(each) if isinstance(each, (tuple, list)) else (each,)
            found = _FORMS.get(len(parts)) if all(isinstance(part, str) for part in parts) else None
            form = found if form == "either" and found is not None else form
            if found != form or any(map(HALF_PAIR.search, parts)):
                raise UserError(f"{self.folder}: expected input {number + 1} to be {_TOLD[form]}, got {each!r}")
            yield each if isinstance(each, str) else parts


def _has_tokens(text: str | Sequence[str]) -> bool:
    return bool(text.strip()) if isinstance(text, str) else len(text) > 0
