"""Adversarial training of the word embeddings, `--adversarial_epsilon`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.errors import UserError
from bertorch.training.hooks import Hook


class FastGradientMethod(Hook):
    """Adds to a step's gradient the one on word embeddings moved in the direction that raises the loss most (FGM).

    r = ε·g/‖g‖₂ with g (V, H) the step's gradient of the word embedding matrix, summed over its batches and
    processes. All batches of the step run again, with new dropout, on the matrix + r, and the gradient of this pass is
    added. r = 0 where g is zero or not finite. What is reported is the loss of the first pass.

    References:
        Miyato, Dai and Goodfellow, Adversarial Training Methods for Semi-Supervised Text Classification, 2017. They
        move each text's embedding vectors on their own; one move of the whole matrix, which a word makes wherever it
        stands, is what came into use for encoders that are fine-tuned.

    Args:
        model: with the encoder whose word embeddings are moved.
        epsilon: ‖r‖₂.

    Raises:
        UserError: the encoder has no word embeddings, or they are not trained.
    """

    capturable = True

    def __init__(self, model: EncoderModel, epsilon: float) -> None:
        self._matrix = _word_embeddings(model)  # (V, H)
        self._epsilon = epsilon

    @override
    def around_gradients(self, compute: Callable[[], Tensor], batches: Sequence[PackedBatch]) -> Tensor:
        sums = compute()  # (loss_parts,)
        with torch.no_grad():
            before = self._matrix.clone()  # (V, H)
            self._matrix.add_(self._perturbation())
        compute()
        with torch.no_grad():
            # Subtracting would not give the same bits, and a CUDA graph reads no other memory.
            self._matrix.copy_(before)
        return sums

    def _perturbation(self) -> Tensor:
        """r, (V, H), the same on every process. A scale on the gradients, as fp16 has, does not change it."""
        gradient = self._matrix.grad  # (V, H)
        if gradient is None:  # this process has no example in the step
            gradient = torch.zeros_like(self._matrix)
        elif distributed.world_size() > 1:
            gradient = gradient.clone()  # the second pass adds to this process's own gradient
        gradient = distributed.all_reduce_sum(gradient)
        norm = gradient.norm()  # ()
        r = (gradient / norm).mul_(self._epsilon)  # (V, H)
        # The device chooses: asking it would make the host wait, which a CUDA graph cannot.
        return r.masked_fill_(~(norm.isfinite() & (norm > 0)), 0.0)


def _word_embeddings(model: EncoderModel) -> nn.Parameter:
    """The word embedding matrix (V, H) of the encoder."""
    encoder = model.encoders[0].model
    try:
        matrix = encoder.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        matrix = None
    if not isinstance(matrix, nn.Parameter):
        raise UserError(
            f"--adversarial_epsilon moves word embeddings: expected an encoder with a matrix of them, got "
            f"{type(encoder).__name__}; leave the option out, or choose another --pretrained_model_name_or_path"
        )
    if not matrix.requires_grad:
        raise UserError(
            "--adversarial_epsilon moves word embeddings along their gradient: expected them to be trained, got frozen "
            "ones; leave the option out, or train the embeddings"
        )
    return matrix
