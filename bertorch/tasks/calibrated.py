"""What the tasks with probabilities of classes share: the temperature that `bertorch.evaluate --calibrate` fits."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.precision import at_least_fp32
from bertorch.tasks.calibration import Temperature, fit_temperature, fitting_report
from bertorch.tasks.fittable import FittableTask
from bertorch.tasks.fitting import TEMPERATURE, FittedFile
from bertorch.tasks.metrics import ClassificationMetric, Metric


class CalibratedTask(FittableTask):
    """A task whose outputs become logits (N, C) of classes, of which one holds.

    The logits are divided by a temperature where probabilities are predicted, never in training. That leaves their
    order, and so every predicted label, as it is.
    """

    fitting = TEMPERATURE
    temperature = Temperature()

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, C) in fp32, of logits (N, C) in any type."""
        return (logits.float() / self.temperature.value).softmax(-1)

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logarithms of the probabilities (N, C), at least in fp32."""
        return (at_least_fp32(logits) / self.temperature.value).log_softmax(-1)

    @override
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings(), **self.temperature.settings()}

    @property
    @override
    def fitted_on(self) -> FittedFile | None:
        return self.temperature.file

    @override
    def _fitted_note(self) -> str:
        return f"the probabilities are calibrated with the temperature {self.temperature.value:.4f}"

    @abstractmethod
    def class_metric(self, device: torch.device, *, keeps_logits: bool = False) -> ClassificationMetric:
        """A fresh metric of the classes; whether it keeps the logits, see there."""

    @override
    def metric_to_fit(self, device: torch.device) -> Metric[PackedBatch]:
        return self.class_metric(device, keeps_logits=True)

    @override
    def fit(self, metric: ClassificationMetric, choice: bool) -> dict[str, Any]:
        """Fit the temperature to the raw logits, so that one in the folder does not count."""
        assert self._file is not None
        value = fit_temperature(metric.logits, metric.gold, str(self._file.name))
        self.temperature = Temperature(value, self._file)
        return {"calibrated": fitting_report(metric.logits, metric.gold, value)}
