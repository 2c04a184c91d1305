"""Matryoshka: embeddings that are trained so that their first dimensions alone are good embeddings too.

References:
    Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.errors import UserError
from bertorch.resampling import ExampleTable
from bertorch.tasks.base import LoadedFolder, Losses
from bertorch.tasks.metadata import KEY
from bertorch.tasks.metrics import Metric

SETTING = "matryoshka"  # its name in config.json


def all_widths(widths: Sequence[int], size: int) -> tuple[int, ...]:
    """The widths, largest first, with that of the whole embedding among them; none if there are none.

    Raises:
        UserError: a width is larger than `size`, that of the whole embedding.
    """
    if widths and max(widths) > size:
        raise UserError(f"--matryoshka: expected at most the {size} dimensions of an embedding, got {max(widths)}")
    return tuple(sorted({*widths, size}, reverse=True)) if widths else ()


def saved_widths(loaded: LoadedFolder) -> tuple[int, ...]:
    """The widths that a saved folder was trained at; a `UserError` if they are no whole numbers above 0."""
    widths = loaded.metadata.settings.get(SETTING, [])
    if not isinstance(widths, list) or not all(isinstance(width, int) and width > 0 for width in widths):
        raise UserError(f"{loaded.folder}/config.json: {KEY}: {SETTING}: expected dimensions, got {widths!r}")
    return tuple(widths)


def mean_over_widths(
    losses_at: Callable[[Tensor, PackedBatch], Losses], outputs: Tensor, batch: PackedBatch, widths: Sequence[int]
) -> Losses:
    """The parts of the loss of whole embeddings, with the mean of the loss over the widths in place of `loss`.

    Args:
        losses_at: the parts of the loss of embeddings (…, width).
        outputs: embeddings (…, E).
        batch: of which they are.
        widths: from `all_widths`; without any the loss is that of the whole embeddings.
    """
    losses = losses_at(outputs, batch)
    for width in widths[1:]:
        losses["loss"] = losses["loss"] + losses_at(outputs[..., :width], batch)["loss"]
    return losses | {"loss": losses["loss"] / len(widths)} if widths else losses


class MatryoshkaMetric(Metric[PackedBatch]):
    """A metric of the whole embeddings, whose report and summary also tell that of each width.

    Args:
        by_width: a metric for each of `all_widths`, in this order.
    """

    def __init__(self, by_width: Mapping[int, Metric[PackedBatch]]) -> None:
        self._by_width = dict(by_width)
        self.whole = next(iter(self._by_width.values()))
        self.name = self.whole.name

    @override
    def update(self, outputs: Tensor, batch: PackedBatch, indices: np.ndarray, /) -> None:
        for width, metric in self._by_width.items():
            metric.update(outputs[..., :width], batch, indices)

    @override
    def reduce(self) -> None:
        for metric in self._by_width.values():
            metric.reduce()

    @override
    def merge(self, parts: Sequence[Self], indices: Sequence[np.ndarray]) -> None:
        for width, metric in self._by_width.items():
            metric.merge([part._by_width[width] for part in parts], indices)

    @property
    @override
    def value(self) -> float:
        return self.whole.value

    @override
    def numbers(self) -> Mapping[str, float]:
        return self.whole.numbers()

    @override
    def line(self) -> str:
        return self.whole.line()

    @override
    def summary(self) -> Sequence[str]:
        lines = (f"{width} dimensions: {metric.line()}" for width, metric in self._by_width.items())
        return [*self.whole.summary(), *lines]

    @override
    def warnings(self) -> Sequence[str]:
        return self.whole.warnings()

    @override
    def report(self) -> dict[str, Any]:
        """That of the whole embeddings, and a table of the numbers at each width."""
        return self.whole.report() | {
            "dimensions": {str(width): dict(metric.numbers()) for width, metric in self._by_width.items()}
        }

    @override
    def example_table(self) -> ExampleTable | None:
        return self.whole.example_table()


def of_whole(metric: Any) -> Any:
    """The metric of whole embeddings: that inside a `MatryoshkaMetric`, or any other itself."""
    return metric.whole if isinstance(metric, MatryoshkaMetric) else metric
