"""A task to whose models `bertorch.evaluate` can fit something after training."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from loguru import logger
from typing_extensions import override

from bertorch.data.dataset import Examples
from bertorch.data.lines import cell
from bertorch.tasks.fitting import FittedFile, Fitting
from bertorch.tasks.scoring import ScoringTask


class FittableTask(ScoringTask):
    """A task whose folder may keep something that was fitted to a labelled file."""

    fitting: Fitting
    _file: FittedFile | None = None  # that `read_labelled` has read

    @property
    @abstractmethod
    def fitted_on(self) -> FittedFile | None:
        """The file that it was fitted on; None if it was not."""

    @abstractmethod
    def _fitted_note(self) -> str:
        """What was fitted, as far as `fitted_notes` does not say it."""

    @property
    def is_fitted_here(self) -> bool:
        """Whether it was fitted on what is in the file that `read_labelled` has read."""
        return self._file is not None and self.fitted_on is not None and self._file.digest == self.fitted_on.digest

    @override
    def fitted_notes(self, quoted: Callable[[str], str] = cell) -> Sequence[str]:
        if self.fitted_on is None:
            return ()
        name = self.fitted_on.name
        return (f"{self._fitted_note()}, fitted on {'a file' if name is None else quoted(name)}",)

    @override
    def read_labelled(self, path: str, on_bad_line: str) -> tuple[Any, Examples]:
        result = super().read_labelled(path, on_bad_line)
        self._file = FittedFile.of(path)
        for note in self.fitted_notes():
            logger.info("{}", note)
        if self.is_fitted_here:
            logger.warning(
                "{}: fitting the {} on it made its {} look too good; do not report it: --{} gives a cross-fitted one",
                *(path, self.fitting.fitted, self.fitting.flattered, self.fitting.option),
            )
        return result
