"""What `bertorch.evaluate` can fit to a labelled file after training, and the model's folder then keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from bertorch.data.fingerprint import files_digest
from bertorch.data.retrieval import files_of
from bertorch.data.schedule import epoch_order


class Fitting(NamedTuple):
    """A kind of fitting."""

    option: str  # of `bertorch.evaluate` that asks for it
    fitted: str
    suited: str  # the models that it is for
    flattered: str  # the figure that is too good on the file that it was fitted on


THRESHOLDS = Fitting("tune_thresholds", "thresholds", "models that give a text several labels", "F1")
TEMPERATURE = Fitting(
    "calibrate", "temperature", "models that give a text or a pair one of several labels", "calibration error"
)
# By the option.
FITTINGS: dict[str, Fitting] = {kind.option: kind for kind in (THRESHOLDS, TEMPERATURE)}


@dataclass(frozen=True)
class FittedFile:
    """The file that something was fitted on, or is evaluated on."""

    digest: str
    name: str | None  # as the command had it; None in folders of earlier versions

    @classmethod
    def of(cls, path: str) -> Self:
        """The file, or the folder of retrieval, at a path; an `OSError` if it cannot be read."""
        return cls(files_digest(files_of(path)), path)

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Self:
        """From what `settings` gives; a `KeyError` if it is something else."""
        return cls(str(saved["data"]), None if saved.get("file") is None else str(saved["file"]))

    def settings(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"data": self.digest} | ({} if self.name is None else {"file": self.name})


def random_halves(size: int) -> list[np.ndarray]:
    """The indices below `size` in two random parts, always the same: one is fitted on, the other measured on."""
    return np.array_split(epoch_order(size, seed=0, epoch=0), 2)
