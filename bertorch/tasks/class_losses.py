"""Losses for unequal classes, and what they do to probabilities: `--class_weights` and the options beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertorch.config import CLASS_WEIGHTS, ClassifierConfig
from bertorch.data.dataset import Examples
from bertorch.data.lines import BadLineError, first_few, read_rows, shorten, split_columns
from bertorch.data.readers import finite_number
from bertorch.errors import UserError
from bertorch.precision import at_least_fp32
from bertorch.tasks.label_counts import class_counts
from bertorch.tasks.metadata import KEY

BETA = 0.999  # of the effective number of examples
_OF_FILE = "file"  # what the record says of weights from a file
_FORM = "label⇥weight"
_NUMBERS = ("label_smoothing", "focal_gamma", "logit_adjustment")


class Constant:
    """An array beside tensors. It is copied to a device once, so that a step waits for no copy, nor a CUDA graph."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self._copies: dict[Any, Tensor] = {}

    def beside(self, like: Tensor) -> Tensor:
        """The array on the device and in the type of another tensor."""
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = torch.from_numpy(self.values).to(like)
        return self._copies[key]


class ClassLoss:
    """Cross-entropy that treats classes unequally, summed over a batch.

    Its mean over a step is the sum divided by `weight_of` all its examples, as in PyTorch's `cross_entropy`, which
    knows no other batches; so the weights may have any scale.

    References:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016 (label smoothing).
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017.
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019.
        Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021.

    Args:
        weights: (C,) fp64, by which the loss of an example of the class is multiplied; None: 1.
        smoothing: ε; the target is 1−ε of the right class and ε/C of each.
        gamma: of the focal loss −(1−p)^γ·log p of the probability p of the right class; 0 is cross-entropy.
        adjustment: (C,) fp64, τ·log π of the shares π of the classes, added to the logits in training alone; None: 0.
    """

    def __init__(
        self,
        weights: np.ndarray | None = None,
        smoothing: float = 0.0,
        gamma: float = 0.0,
        adjustment: np.ndarray | None = None,
    ) -> None:
        self._weights = None if weights is None else Constant(weights)
        self._smoothing, self._gamma = smoothing, gamma
        self._adjustment = None if adjustment is None else Constant(adjustment)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The summed loss, a scalar in fp32 at least, of logits (N, C) and classes (N,)."""
        logits = at_least_fp32(logits)  # (N, C)
        weights = None if self._weights is None else self._weights.beside(logits)  # (C,)
        if self._adjustment is not None:
            logits = logits + self._adjustment.beside(logits)  # (N, C)
        if self._gamma == 0:
            return F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=self._smoothing)
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")  # (N,), −log p
        # The power of 0 has no finite derivative for γ below 1.
        missed = -(-cross_entropy).expm1().clamp(max=-torch.finfo(logits.dtype).tiny)  # (N,), 1−p
        losses = missed**self._gamma * cross_entropy  # (N,)
        return (losses if weights is None else losses * weights[labels]).sum()

    def weights_of(self, labels: Tensor) -> Tensor | None:
        """(N,) fp64, by which the losses of examples of these classes, (N,) int64, are multiplied; None: 1."""
        return None if self._weights is None else self._weights.beside(labels.new_zeros(0, dtype=torch.float64))[labels]

    def weight_of(self, labels: np.ndarray) -> float:
        """What examples of these classes, (N,) int64, weigh in the mean of the loss."""
        return len(labels) if self._weights is None else float(self._weights.values[labels].sum())


def class_loss(config: ClassifierConfig, label_names: Sequence[str], train: Examples) -> ClassLoss | None:
    """The loss that the options describe; None for plain cross-entropy.

    Raises:
        UserError: a class has no training example, or the file of weights is malformed.
    """
    if not loss_record(config):
        return None
    adjustment = None
    if config.logit_adjustment:
        counts = class_counts(train, len(label_names))  # (C,)
        require_examples(counts, label_names, "--logit_adjustment")
        adjustment = config.logit_adjustment * np.log(counts / counts.sum())  # (C,)
    return ClassLoss(
        class_weights(config.class_weights, label_names, train),
        config.label_smoothing,
        config.focal_gamma,
        adjustment,
    )


def class_weights(kind: str, label_names: Sequence[str], train: Examples) -> np.ndarray | None:
    """(C,) fp64, what an example of each class weighs; None if all weigh the same. Errors as in `class_loss`."""
    if kind == "none":
        return None
    if kind not in CLASS_WEIGHTS:
        return read_class_weights(kind, label_names)
    counts = class_counts(train, len(label_names))  # (C,)
    require_examples(counts, label_names, f"--class_weights {kind}")
    return balanced_weights(counts) if kind == "balanced" else effective_weights(counts)


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """N/(C·n_c) of N examples, n_c in each of C classes: all classes together weigh the same."""
    return counts.sum() / (len(counts) * counts)  # (C,)


def effective_weights(counts: np.ndarray, beta: float = BETA) -> np.ndarray:
    """(1−β)/(1−β^n_c), one over the effective number of examples (Cui et al. 2019)."""
    return (1 - beta) / -np.expm1(counts * np.log(beta))  # (C,)


def positive_weights(counts: np.ndarray, total: int, label_names: Sequence[str]) -> np.ndarray:
    """(N−n_c)/n_c, (C,) fp64, of N examples of which n_c have label c: with and without it, they weigh the same.

    Raises:
        UserError: no example has a label, or all have it.
    """
    require_examples(counts, label_names, "--class_weights balanced")
    require_examples(total - counts, label_names, "--class_weights balanced", "without the label, for each label")
    return (total - counts) / counts  # (C,)


def require_examples(
    counts: np.ndarray, label_names: Sequence[str], option: str, of_each: str = "of each label"
) -> None:
    """Raise a `UserError` if one of the counts (C,) is 0."""
    missing = [label_names[index] for index in np.flatnonzero(counts == 0).tolist()]
    if missing:
        raise UserError(
            f"{option}: expected training examples {of_each}, got none for {len(missing)} of {len(counts)}: "
            f"{first_few(missing)}; take them out of --label_file, or leave the option out"
        )


def read_class_weights(path: str, label_names: Sequence[str]) -> np.ndarray:
    """The weights (C,) fp64 in a file of `label⇥weight` lines.

    Raises:
        UserError: it is no readable file, has another label, one twice or not at all, or a weight that is not above 0.
    """
    if not Path(path).exists():
        names = ", ".join(CLASS_WEIGHTS)
        raise UserError(f"--class_weights: expected {names} or a file of {_FORM}, got {shorten(path)}")
    weights: dict[str, float] = {}

    def parse(line: str) -> None:
        label, column = split_columns(line, 2, _FORM)
        name = label.strip()
        if name not in label_names:
            raise BadLineError(f"expected one of the labels ({first_few(label_names)}), got {shorten(name)}")
        if name in weights:
            raise BadLineError(f"expected each label once, got {shorten(name)} again")
        weight = finite_number(column, form=_FORM)
        if weight <= 0:
            raise BadLineError(f"expected a weight above 0 ({_FORM}), got {shorten(column)}")
        weights[name] = weight

    for _ in read_rows(path, parse, remedy="Fix the file of --class_weights.", expected="one label and weight a line"):
        pass
    if missing := [name for name in label_names if name not in weights]:
        raise UserError(f"{path}: expected a weight for each label, got none for: {first_few(missing)}")
    return np.array([weights[name] for name in label_names])


# What a saved folder says of the loss


def loss_record(config: ClassifierConfig) -> dict[str, Any]:
    """The options of the loss that are on, for a folder's settings; a file of weights is only called a file."""
    weights = config.class_weights if config.class_weights in CLASS_WEIGHTS else _OF_FILE
    record = {name: value for name in _NUMBERS if (value := getattr(config, name))}
    return record if weights == "none" else {"class_weights": weights, **record}


def saved_loss_record(settings: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The record in a folder's settings, empty if there is none; a `UserError` if it is no such record."""
    record = settings.get("loss", {})
    kinds: dict[str, Any] = {"class_weights": str} | dict.fromkeys(_NUMBERS, (int, float))
    if not isinstance(record, dict) or not all(isinstance(each, kinds.get(name, ())) for name, each in record.items()):
        raise UserError(f"{folder}/config.json: {KEY}: loss: expected options of the loss, got {record!r}")
    return record


def loss_notes(record: Mapping[str, Any]) -> list[str]:
    """What the loss of a record does to the probabilities of a model, a sentence for each option."""
    notes = {
        "class_weights": "trained with class weights ({}): the probabilities are shifted towards the classes that "
        "weigh more, and are no frequencies of the training data",
        "label_smoothing": "trained with label smoothing {}: the probabilities are less extreme than the frequencies",
        "focal_gamma": "trained with the focal loss, gamma {}: the probabilities are less extreme than the frequencies",
        "logit_adjustment": "trained with logit adjustment, tau {}: the probabilities are not those under the shares "
        "that the classes have in the training data; with tau 1 they are those under equal shares",
    }
    return [notes[name].format(value) for name, value in record.items()]
