"""R-Drop: two dropouts of an example should predict the same."""

from collections.abc import Callable

from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.tasks.base import DIVERGENCE, Losses
from bertorch.training.hooks import Hook


class RDrop(Hook):
    """Each example twice in one batch, under two dropouts: ½(L₁+L₂) + α·½(KL(p‖q)+KL(q‖p)).

    L₁ and L₂ are the task's losses of the two, p and q what it predicts, see `Task.log_probabilities`. KL is summed
    over the classes, and as the loss a mean over the labels. The gradient goes through p and q. The other parts, such
    as the accuracy, are means over the two as well.

    References:
        Liang et al., R-Drop: Regularized Dropout for Neural Networks, NeurIPS 2021. There L₁+L₂ stands in place of our
        mean, so its α is twice ours.

    Args:
        alpha: α.
    """

    capturable = True

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    @override
    def prepared(self, batch: PackedBatch) -> PackedBatch:
        return batch.twice()

    @override
    def around_loss(self, compute: Callable[[], Losses], batch: PackedBatch) -> Losses:
        of_both = compute()
        losses = {name: part / 2 for name, part in of_both.items()}
        losses["loss"] = losses["loss"] + self._alpha * losses[DIVERGENCE]
        return losses
