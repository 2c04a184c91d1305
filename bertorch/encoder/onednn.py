"""Inference on a CPU: linear layers by oneDNN, their weights in the order that it reads them, GELU in the same pass.

PyTorch multiplies matrices of fp32 by MKL there, which is slower on processors that are not Intel's, and lays weights
of bf16 out anew for every product. `torch.compile` replaces linear layers likewise, but takes a minute to do so.

References:
    https://uxlfoundation.github.io/oneDNN/dev_guide_inner_product.html and …/dev_guide_attributes_post_ops.html
"""

import torch
from loguru import logger
from torch import Tensor, nn
from transformers.activations import GELUActivation

from bertorch.encoder.encoder import Encoder
from bertorch.encoder.trials import evaluating, gives, trial_batch

# The weights may be laid out best for a product with so many rows; any other number gives the same.
_ROWS = 2048
# How near results must be to those of PyTorch's own layers, as a share of the largest: in bf16 each has its rounding.
_AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 0.05}


class OneDnnLinear(nn.Module):
    """What a linear layer gives without gradient, and GELU behind it if wished.

    Args:
        linear: the layer.
        dtype: of the product, fp32 or bf16.
        gelu: whether GELU follows, the exact one.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, gelu: bool) -> None:
        super().__init__()
        self._dtype = dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), _ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self._behind: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
        """(…, in) → (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(input.to(self._dtype), self._weight, self._bias, *self._behind)


def use_onednn(encoder: Encoder, dtype: torch.dtype) -> bool:
    """Replace the linear layers of an encoder on a CPU, for good, if its results stay what they are.

    Args:
        encoder: it cannot be trained or saved afterwards.
        dtype: that autocast has, or fp32.

    Returns:
        Whether they are replaced. They are not where PyTorch is built without oneDNN, or the processor cannot do so.
    """
    batch = trial_batch(encoder.model.config)
    children = [(module, dict(module.named_children())) for module in encoder.model.modules()]
    with evaluating(encoder):
        expected = encoder(batch).float()
        try:
            for module, named in children:
                _replace_linear(module, named, dtype)
            replaced = gives(expected, lambda: encoder(batch).float(), tolerance=_AGREEMENT[dtype])
        except (AttributeError, RuntimeError) as error:  # no such operator, or not on this processor
            logger.debug("oneDNN: {}: {}", type(error).__name__, error)
            replaced = False
    if not replaced:
        for module, named in children:
            for name, child in named.items():
                setattr(module, name, child)
    return replaced


def _replace_linear(module: nn.Module, children: dict[str, nn.Module], dtype: torch.dtype) -> None:
    # BERT and its relatives have a module for the first half of their feed-forward layer.
    gelu = children.keys() == {"dense", "intermediate_act_fn"} and _is_gelu(children["intermediate_act_fn"])
    for name, child in children.items():
        if type(child) is nn.Linear:
            setattr(module, name, OneDnnLinear(child, dtype, gelu=gelu))
    if gelu:
        module.intermediate_act_fn = nn.Identity()


def _is_gelu(module: nn.Module) -> bool:
    return isinstance(module, GELUActivation) and module.act is nn.functional.gelu
