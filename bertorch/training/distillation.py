"""Distillation: the loss of the task, mixed with the distance from what a teacher gives, `--teacher`."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.data.teacher import TeacherRows
from bertorch.tasks.base import Losses, Task
from bertorch.tasks.losses import teacher_distance, teacher_divergence
from bertorch.training.hooks import Hook
from bertorch.training.state import State


class Distillation(Hook):
    """(1−α)·L + α·D, with L the mean of the task's loss and D the mean over the examples of a distance.

    A batch has the teacher's rows in its field `teacher`.

    Args:
        task: the student.
        weight: α.
    """

    capturable = True

    def __init__(self, task: Task[Any], weight: float) -> None:
        self._task, self._weight = task, weight

    @abstractmethod
    def _distance(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The distance of the task's outputs from the teacher's rows (examples, R, K), summed over the examples."""

    @override
    def mixed(self, losses: Losses, outputs: Tensor, batch: PackedBatch, weight: float | Tensor) -> Losses:
        assert batch.teacher is not None
        distance = self._distance(outputs, batch.teacher)  # ()
        return losses | {"loss": (1 - self._weight) * losses["loss"] + self._weight * weight * distance}


class ClassDistillation(Distillation):
    """D = T²·KL(p‖q) of what teacher and student say of the classes, see `teacher_divergence`.

    Args:
        temperature: T.
    """

    def __init__(self, task: Task[Any], weight: float, temperature: float) -> None:
        super().__init__(task, weight)
        self._temperature = temperature

    @override
    def _distance(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        return teacher_divergence(self._task.log_probabilities(outputs), teacher.squeeze(1), self._temperature)


class VectorDistillation(Distillation):
    """D = ‖s/‖s‖ − t/‖t‖‖² of the vectors of teacher and student, see `teacher_distance`.

    Where their widths E and K differ, a projection (E → K) of the student's is trained beside the model. It is in
    checkpoints, and not in the weights for use.

    Args:
        width: K.
        seed: of the projection, which begins orthogonal.
    """

    def __init__(self, task: Task[Any], weight: float, width: int, seed: int) -> None:
        super().__init__(task, weight)
        self._projection: nn.Module = nn.Identity()
        if width == task.embedding_size:
            return
        self._projection = nn.Linear(task.embedding_size, width, bias=False)
        nn.init.orthogonal_(self._projection.weight, generator=torch.Generator().manual_seed(seed))
        self._projection.to(next(task.model.parameters()))
        task.model.teacher_projection = self._projection  # a parameter of the model, beside its `weights`

    @override
    def _distance(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        texts = max(1, len(outputs) // max(1, len(teacher)))  # S; this process may have no example
        vectors = self._projection(outputs).view(len(teacher), texts, teacher.shape[-1])  # (examples, S, K)
        return teacher_distance(vectors, teacher)

    @override
    def state(self) -> State:
        return State(self._projection.state_dict())

    @override
    def restore(self, state: State) -> None:
        self._projection.load_state_dict(dict(state.tensors))


def distillation(config: Any, task: Task[Any], teacher: TeacherRows) -> Distillation:
    """The hook of a run with the options of `TeacherConfig`; a `UserError` if the rows do not suit the task."""
    teacher.require_labels(task.label_names)
    if task.label_names:
        return ClassDistillation(task, config.teacher_weight, config.teacher_temperature)
    return VectorDistillation(task, config.teacher_weight, teacher.rows.shape[1], config.seed)
