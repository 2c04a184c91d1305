"""Dropout on the CPU, where drawing a number for each element takes a good part of a training step."""

import torch
from torch import Tensor, nn

DRAWS = 2**16


def dropped(tensor: Tensor, probability: float) -> Tensor:
    """Zero each element with this probability, to the next 1/65536, and scale the others so that the mean stays.

    A number of 64 bits from PyTorch's generator serves four elements; `nn.functional.dropout` draws one for each.

    Args:
        tensor: on the CPU.
        probability: in [0, 1).
    """
    drop = round(probability * DRAWS)
    words = torch.empty(-(-tensor.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: tensor.numel()].view(tensor.shape)  # uniform from -2**15 to 2**15 - 1
    return tensor * (draws >= drop - DRAWS // 2) * (DRAWS / (DRAWS - drop))


class Dropout(nn.Dropout):
    """`nn.Dropout` that is fast on the CPU too."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Dropout's own name
        """Drop elements in training."""
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu":
            return super().forward(input)
        return dropped(input, self.p)


def with_fast_dropout(model: nn.Module) -> None:
    """Replace the dropout layers of a model by `Dropout`; they have no weights."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
