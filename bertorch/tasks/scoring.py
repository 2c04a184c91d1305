"""What the tasks that score texts or pairs share: predictions, their inputs, the lines of `bertorch.predict`."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.lines import HALF_PAIR
from bertorch.data.readers import stream_texts
from bertorch.errors import UserError
from bertorch.tasks.base import Inference, Task

Text: TypeAlias = str | tuple[str, str]
# The texts of an input; 0 takes those of the first.
_FORMS = {1: "a text", 2: "a pair, a tuple of two texts", 0: "a text or a pair of texts"}


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


class ScoringTask(Task[PackedBatch]):
    """A task whose inputs are texts or pairs, and whose results are probabilities of labels or a cosine."""

    @property
    @abstractmethod
    def num_texts(self) -> int:
        """Texts of an input, 1 or 2; 0 if both are possible."""

    @override
    def checked_inputs(self, inputs: Iterable[Any]) -> Iterator[Text]:
        return checked_texts(inputs, self.num_texts)

    @override
    def stream_inputs(self, path: str, *, split: str) -> Iterator[Text]:
        for row in stream_texts(path, num_texts=self.num_texts):
            yield row[0] if len(row) == 1 else (row[0], row[1])

    @override
    def predictor(self) -> Inference[Any]:
        return self.scorer()

    @override
    def prediction_header(self) -> str | None:
        return "\t".join(["label", *self.label_names]) if self.label_names else "cosine"

    @override
    def prediction_line(self, source: Any, row: Any, *, tags: bool) -> str:
        prediction = self.prediction(row.tolist())
        if prediction.label is None:
            return f"{prediction.cosine:.6f}"
        return "\t".join([prediction.label, *(f"{value:.6f}" for value in prediction.probabilities.values())])

    def prediction(self, row: Sequence[float]) -> Prediction:
        """A row of `scorer` as a prediction."""
        probabilities = dict(zip(self.label_names, row, strict=False))
        cosine = row[-1] if self.embedding_size else None
        return Prediction(max(probabilities, key=probabilities.__getitem__, default=None), probabilities, cosine)


def checked_texts(inputs: Iterable[Any], num_texts: int) -> Iterator[Any]:
    """Inputs that are all texts (`num_texts` 1), all pairs (2), or all like the first (0).

    Raises:
        UserError: one of them is something else.
    """
    if isinstance(inputs, str):
        raise UserError(f"expected a list of inputs, got the text {inputs!r}; put it into a list")
    for index, each in enumerate(inputs, start=1):
        parts = tuple(each) if isinstance(each, (tuple, list)) else (each,)
        is_text = all(isinstance(part, str) and not HALF_PAIR.search(part) for part in parts)
        num_texts = num_texts or (len(parts) if is_text and len(parts) in _FORMS else 0)
        if not is_text or len(parts) != num_texts:
            raise UserError(f"expected input {index} to be {_FORMS[num_texts]}, got {each!r}")
        yield each if isinstance(each, str) else parts


def characters(text: Text) -> int:
    """Characters of a text or pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def text_columns(texts: Sequence[Text]) -> list[list[str]]:
    """A list of texts, or two of the first and second texts of pairs."""
    columns = zip(*((text,) if isinstance(text, str) else text for text in texts), strict=True)
    return [list(column) for column in columns]


def wrong_texts(columns: Sequence[Sequence[str]], *details: Iterable[Any]) -> list[list[str]]:
    """A row for each wrong example: its number from 1, the details, the texts.

    Args:
        columns: the texts of all examples.
        details: of the wrong examples: indices first, then what is told of each.
    """
    return [
        [str(index + 1), *map(str, more), *(column[index] for column in columns)]
        for index, *more in zip(*details, strict=True)
    ]
