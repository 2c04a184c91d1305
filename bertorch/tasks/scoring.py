"""What the tasks that score texts or pairs share: predictions, their inputs, the lines of `bertorch.predict`."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, Examples
from bertorch.data.lines import HALF_PAIR, cell
from bertorch.data.readers import LabelledTexts, has_pairs, read_labelled_texts, stream_texts
from bertorch.data.texts import Columns
from bertorch.errors import UserError
from bertorch.tasks.agreement import Agreement, equal_labels
from bertorch.tasks.base import Errors, Inference, Task

Text: TypeAlias = str | tuple[str, str]
# By the number of texts of an input; 0 takes that of the first input.
_FORMS = {1: "a text", 2: "a pair, a tuple of two texts", 0: "a text or a pair of texts"}


class Prediction(NamedTuple):
    """What a model says of a text or a pair."""

    label: str | None = None  # the likeliest; None without classes
    probabilities: Mapping[str, float] = {}  # of each label, in the order of the label file
    cosine: float | None = None  # of the embeddings of a pair; None of a classifier, which has none
    labels: Sequence[str] = ()  # those that hold: the likeliest, or all over their thresholds
    score: float | None = None  # of a model without classes

    @property
    def probability(self) -> float | None:
        """Of the likeliest label."""
        return None if self.label is None else self.probabilities[self.label]


class ScoringTask(Task[PackedBatch]):
    """A task whose inputs are texts or pairs, and whose results are probabilities of labels or a cosine."""

    has_cosine = False  # of a pair

    @property
    @abstractmethod
    def num_texts(self) -> int:
        """Texts of an input, 1 or 2; 0 if both are possible."""

    @abstractmethod
    def _tokenized(self, columns: Columns, labels: np.ndarray) -> Dataset:
        """Examples from the texts, or the first and the second texts of pairs, with labels (N,)."""

    @abstractmethod
    def _scores(self, batch: PackedBatch) -> Tensor:
        """(N, C) probabilities; a cosine is one more column."""

    @override
    def scorer(self) -> Inference[Any]:
        columns = len(self.label_names) + self.has_cosine
        return Inference(_characters, self._examples, self._scores, (columns,))

    @override
    def logit_scorer(self) -> Inference[Any]:
        if not self.label_names:
            return super().logit_scorer()
        return replace(self.scorer(), rows_of=self._logits, shape=(len(self.label_names),))

    def _logits(self, batch: PackedBatch) -> Tensor:
        """(N, C) of a task with classes."""
        return self.outputs(batch).float()

    def _examples(self, texts: Sequence[Text]) -> Dataset:
        columns = zip(*((text,) if isinstance(text, str) else text for text in texts), strict=True)
        return self._tokenized([list(column) for column in columns], np.zeros(len(texts)))

    @override
    def checked_inputs(self, inputs: Iterable[Any]) -> Iterator[Text]:
        return checked_texts(inputs, self.num_texts)

    @override
    def stream_inputs(self, path: str) -> Iterator[Text]:
        for row in stream_texts(path, num_texts=self.num_texts, may_be_json=True):
            yield row[0] if len(row) == 1 else (row[0], row[1])

    @override
    def predictor(self) -> Inference[Any]:
        return self.scorer()

    @override
    def prediction_header(self) -> str | None:
        return "\t".join(["label", *map(cell, self.label_names)]) if self.label_names else "cosine"

    @override
    def prediction_line(self, source: Any, row: Any, *, tags: bool) -> str:
        prediction = self.prediction(row.tolist())
        if prediction.label is None:
            return f"{prediction.cosine:.6f}"
        return "\t".join([cell(prediction.label), *(f"{value:.6f}" for value in prediction.probabilities.values())])

    def prediction(self, row: Sequence[float]) -> Prediction:
        """A row of `scorer` as a prediction."""
        probabilities = dict(zip(self.label_names, row, strict=False))
        cosine = row[-1] if self.has_cosine else None
        label = max(probabilities, key=probabilities.__getitem__, default=None)
        return Prediction(label, probabilities, cosine, labels=() if label is None else (label,))

    @override
    def agreement(self) -> Agreement:
        def labels(rows: Sequence[Any]) -> list[Sequence[str]]:
            return [self.prediction(row.tolist()).labels for row in rows]

        return Agreement(
            self.predictor(),
            self._inputs_of,
            self.stream_inputs,
            lambda rows, others: equal_labels(labels(rows), labels(others)),
        )

    def _inputs_of(self, texts: Sequence[str]) -> Sequence[Text]:
        """Texts, or each text with the next one as a pair."""
        if self.num_texts < 2:
            return texts
        return list(zip(texts, [*texts[1:], texts[0]], strict=True))

    @override
    def read_labelled(self, path: str, on_bad_line: str) -> tuple[Any, Examples]:
        read = self._read(path, on_bad_line)
        return read, self._tokenized(read.columns, read.labels)

    @override
    def label_texts(self, source: LabelledTexts) -> Mapping[str, Sequence[str]]:
        return dict(zip(("text",) if len(source.columns) == 1 else ("a", "b"), source.columns, strict=True))

    def _read(self, path: str, on_bad_line: str) -> LabelledTexts:
        num_texts = self.num_texts or 1 + has_pairs(path)
        return read_labelled_texts(path, self.label_names, num_texts=num_texts, on_bad_line=on_bad_line)


def require_list(inputs: Any, noun: str) -> None:
    """Raise a `UserError` for what gives other things than its texts if one iterates over it, or nothing."""
    if isinstance(inputs, str):
        raise UserError(f"expected a list of {noun}, got the text {inputs!r}; put it into a list")
    if isinstance(inputs, Mapping) or len(getattr(inputs, "shape", ())) > 1:  # a table would give names of columns
        raise UserError(f"expected a list of {noun}, got a {type(inputs).__name__}; take the column with the texts")
    if not isinstance(inputs, Iterable):
        raise UserError(f"expected a list of {noun}, got {inputs!r}")


def checked_texts(inputs: Iterable[Any], num_texts: int) -> Iterator[Any]:
    """Inputs that are all texts (`num_texts` 1), all pairs (2), or all like the first (0).

    Raises:
        UserError: one of them is something else.
    """
    require_list(inputs, "inputs")
    for index, each in enumerate(inputs, start=1):
        parts = tuple(each) if isinstance(each, (tuple, list)) else (each,)
        is_text = all(isinstance(part, str) and not HALF_PAIR.search(part) for part in parts)
        num_texts = num_texts or (len(parts) if is_text and len(parts) in _FORMS else 0)
        if not is_text or len(parts) != num_texts:
            raise UserError(f"expected input {index} to be {_FORMS[num_texts]}, got {each!r}")
        yield each if isinstance(each, str) else parts


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def wrong_texts(
    source: LabelledTexts,
    gold: np.ndarray,
    predicted: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    *,
    label: str = "label",
) -> Errors:
    """The examples whose gold and predicted label (N,) differ: number from 1, both labels, `numbers`, the texts.

    The `numbers`, (N,) each by the name of their column, may have a `loss`: then the largest comes first.
    """
    wrong = np.flatnonzero(gold != predicted)
    if "loss" in numbers:
        wrong = wrong[np.argsort(-numbers["loss"][wrong], kind="stable")]
    rows = [
        [str(index + 1), str(gold[index]), str(predicted[index]), *(f"{each[index]:.6f}" for each in numbers.values())]
        + [column[index] for column in source.columns]
        for index in wrong
    ]
    return Errors(["number", label, "predicted", *numbers, *("a", "b")[: len(source.columns)]], rows)
