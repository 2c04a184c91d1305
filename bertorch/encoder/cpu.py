"""Faster on the CPU: dropout, and linear layers by oneDNN. Attention is in `cpu_attention`.

Everything works without this file, only slower. oneDNN's layers:
https://uxlfoundation.github.io/oneDNN/dev_guide_inner_product.html and …/dev_guide_attributes_post_ops.html
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation
from typing_extensions import override

from bertorch.encoder.trials import eval_mode, matches, trial_batch

if TYPE_CHECKING:
    from bertorch.encoder.encoder import Encoder

_DRAWS = 2**16
_ROWS = 2048  # the weights of a oneDNN layer are laid out for a product with this many rows; others give the same
# Prepared products that oneDNN keeps, a quarter of a megabyte each; every number of rows has its own three. Enough of
# them for single sentences of up to 128 tokens; the second cache is that of a thread. By default both keep 1024. They
# are read at the first product of the process.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "384")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # of oneDNN's results, as a share of the largest


@dataclass(frozen=True)
class DropoutRate:
    """Dropout on the CPU, with a probability rounded to a multiple of 1/65536.

    A random number of 64 bits serves four elements; `nn.functional.dropout` draws one for each, which takes a good part
    of a training step.
    """

    probability: float

    @property
    def factor(self) -> float:
        """On what stays, so that the mean does too."""
        return _DRAWS / max(_DRAWS - self._drop, 1)

    def draws(self, shape: torch.Size) -> Tensor:
        """A random number for each element, int16, uniform from -2**15 to 2**15 - 1."""
        elements = shape.numel()
        words = torch.empty(-(-elements // 4), dtype=torch.int64).random_(-(2**63), None)
        return words.view(torch.int16)[:elements].view(shape)

    def stays(self, draws: Tensor, dtype: torch.dtype) -> Tensor:
        """1 for each element that stays, 0 for the others; compared into `dtype`, products of bools being slow."""
        return torch.ge(draws, self._least, out=torch.empty(draws.shape, dtype=dtype))

    @property
    def _drop(self) -> int:
        return round(self.probability * _DRAWS)

    @property
    def _least(self) -> int:
        return self._drop - _DRAWS // 2


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rate: DropoutRate) -> Tensor:
        ctx.rate, draws = rate, rate.draws(tensor.shape)
        ctx.save_for_backward(draws)
        return (tensor * rate.stays(draws, tensor.dtype)).mul_(rate.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (draws,) = ctx.saved_tensors
        return (gradient * ctx.rate.stays(draws, gradient.dtype)).mul_(ctx.rate.factor), None


def dropped(tensor: Tensor, probability: float) -> Tensor:
    """A tensor on the CPU after dropout; see `DropoutRate`."""
    return _Dropped.apply(tensor, DropoutRate(probability))


class Dropout(nn.Dropout):
    """`nn.Dropout` that is fast on the CPU too; `torch.compile` can trace only its own."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        return dropped(input, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace the dropout layers of a model by `Dropout`; they have no weights."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


class OneDnnLinear(nn.Module):
    """Inference-only linear layer on oneDNN, optional fused GELU.

    PyTorch multiplies matrices of fp32 by MKL, which is slower on processors that are not Intel's, and lays weights of
    bf16 out again for every product. `torch.compile` replaces linear layers likewise, but takes a minute to do so.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, gelu: bool) -> None:
        super().__init__()
        self._dtype = dtype
        self._weight = _reordered(linear.weight.detach().to(dtype))
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self._activation: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
        """(…, in) → (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(input.to(self._dtype), self._weight, self._bias, *self._activation)

    @override
    def __getstate__(self) -> dict[str, Any]:  # a tensor in oneDNN's own layout can be neither pickled nor copied
        return self.__dict__ | {"_weight": self._weight.to_dense()}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_weight": _reordered(state["_weight"])})


def _reordered(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)


def use_onednn(encoder: "Encoder", dtype: torch.dtype) -> Callable[[], None] | None:
    """Replace the linear layers of an encoder if its results stay the same; return what undoes it.

    It is not done, and None returned, on a GPU, where PyTorch is built without oneDNN, where the processor lacks it,
    for weights that are not of fp32, and where it is done already. Until it is undone the encoder can be neither
    trained nor saved. `dtype` is that of autocast, or fp32.
    """
    model = encoder.model
    has_linear = any(type(module) is nn.Linear for module in model.modules())
    if model.device.type != "cpu" or model.dtype != torch.float32 or not has_linear:
        return None
    batch = trial_batch(model.config)
    children = [(module, dict(module.named_children())) for module in model.modules()]

    def replaced() -> Tensor:
        for module, named in children:
            _replace_linear(module, named, dtype)
        return encoder(batch).float()  # (T, H)

    def undo() -> None:
        for module, named in children:
            for name, child in named.items():
                setattr(module, name, child)

    with eval_mode(encoder):
        if matches(encoder(batch).float(), replaced, tolerance=_TOLERANCE[dtype]):
            return undo
    undo()
    return None


@contextmanager
def with_onednn(encoders: Iterable["Encoder"], dtype: torch.dtype) -> Iterator[None]:
    """`use_onednn` meanwhile."""
    with ExitStack() as stack:
        for encoder in encoders:
            if undo := use_onednn(encoder, dtype):
                stack.callback(undo)
        yield


def _replace_linear(module: nn.Module, children: dict[str, nn.Module], dtype: torch.dtype) -> None:
    # BERT and its relatives have a module for the first half of their feed-forward layer.
    activation = children.get("intermediate_act_fn")
    exact = isinstance(activation, GELUActivation) and activation.act is nn.functional.gelu
    gelu = exact and children.keys() == {"dense", "intermediate_act_fn"}
    for name, child in children.items():
        if type(child) is nn.Linear:
            setattr(module, name, OneDnnLinear(child, dtype, gelu=gelu))
    if gelu:
        module.intermediate_act_fn = nn.Identity()
