"""Faster on the CPU: dropout, attention with little padding, and linear layers by oneDNN.

Everything works without this file, only slower. oneDNN's layers:
https://uxlfoundation.github.io/oneDNN/dev_guide_inner_product.html and …/dev_guide_attributes_post_ops.html
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation
from typing_extensions import override

from bertorch.data.batch import PackedBatch
from bertorch.encoder.attention import BlockLayout, Layout
from bertorch.encoder.trials import eval_mode, matches, trial_batch

if TYPE_CHECKING:
    from bertorch.encoder.encoder import Encoder

_DRAWS = 2**16
SMALL_BLOCK = 2**17  # a block of no more attention scores is not split into blocks of similar lengths
_FULLNESS = 0.75  # the least share of tokens in a row of these blocks
_ROWS = 2048  # the weights of a oneDNN layer are laid out for a product with this many rows; others give the same
# Prepared products that oneDNN keeps, a quarter of a megabyte each; every number of rows has its own three. Enough of
# them for single sentences of up to 128 tokens; the second cache is that of a thread. By default both keep 1024. They
# are read at the first product of the process.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "384")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # of oneDNN's results, as a share of the largest


def dropped(tensor: Tensor, probability: float) -> Tensor:
    """Dropout of a tensor on the CPU with a probability rounded to a multiple of 1/65536.

    A random number of 64 bits serves four elements; `nn.functional.dropout` draws one for each, which takes a good part
    of a training step.
    """
    drop = round(probability * _DRAWS)
    words = torch.empty(-(-tensor.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: tensor.numel()].view(tensor.shape)  # uniform from -2**15 to 2**15 - 1
    return tensor * (draws >= drop - _DRAWS // 2) * (_DRAWS / max(_DRAWS - drop, 1))


class Dropout(nn.Dropout):
    """`nn.Dropout` that is fast on the CPU too."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu":
            return super().forward(input)
        return dropped(input, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace the dropout layers of a model by `Dropout`; they have no weights."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


class CPUBlockLayout(BlockLayout):
    """A block with fast attention dropout: PyTorch's fused CPU kernel has none, and its fallback is slow."""

    @override
    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, scaling: float | None, dropout: float
    ) -> Tensor:
        if not dropout:
            return super()._attention(query, key, value, mask=mask, scaling=scaling, dropout=dropout)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))  # (N, A, L, D)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = (query * scale) @ key.transpose(2, 3)  # (N, A, L, L)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return dropped(scores.softmax(-1), dropout) @ value  # (N, A, L, D)


@dataclass(frozen=True)
class GroupedLayout(Layout):
    """Several blocks, of sentences of similar length each, so that little in them is padding."""

    blocks: tuple[CPUBlockLayout, ...]
    order: Tensor  # (T,) int64, the tokens of the batch in the order of the blocks
    inverse: Tensor  # (T,) int64, the index of each token of the batch in that order
    sizes: tuple[int, ...]  # tokens of each block

    @classmethod
    def of(cls, batch: PackedBatch) -> "GroupedLayout":
        """The layout of a batch on the CPU."""
        lengths, sentences = batch.bounds.diff().sort(descending=True)  # (N,), longest first
        longest = lengths.tolist()
        borders = similar_lengths(longest)
        groups = lengths.tensor_split(borders[1:])
        sizes = [int(group.sum()) for group in groups]
        blocks = [
            CPUBlockLayout.of_lengths(group, size, longest[first])
            for group, size, first in zip(groups, sizes, borders, strict=True)
        ]
        shifts = batch.bounds[:-1][sentences] - (lengths.cumsum(0) - lengths)  # (N,), from the new index to the old
        order = torch.arange(sum(sizes)) + shifts.repeat_interleave(lengths)  # (T,)
        return cls(tuple(blocks), order, order.argsort(), tuple(sizes))

    @override
    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        parts = (tensor.index_select(0, self.order).split(self.sizes) for tensor in (query, key, value))
        attended = [block.attend(*rows, **options) for block, *rows in zip(self.blocks, *parts, strict=True)]
        return torch.cat(attended).index_select(0, self.inverse)  # (T, A, D)


def similar_lengths(lengths: Sequence[int]) -> list[int]:
    """Where to cut sentences of falling lengths into blocks of similar ones: the first sentence of each block."""
    borders = [0]
    for index, length in enumerate(lengths):
        if length < _FULLNESS * lengths[borders[-1]]:
            borders.append(index)
    return borders


def cpu_layout(batch: PackedBatch) -> Layout:
    """The layout of a batch for attention on the CPU."""
    is_small = batch.size * batch.max_seqlen**2 <= SMALL_BLOCK
    return CPUBlockLayout.of(batch) if is_small else GroupedLayout.of(batch)


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


def use_onednn(encoder: "Encoder", dtype: torch.dtype) -> bool:
    """Replace the linear layers of an encoder on a CPU if its results stay the same; return whether it was done.

    It is not where PyTorch is built without oneDNN or the processor lacks it. Afterwards the encoder can be neither
    trained nor saved. `dtype` is that of autocast, or fp32.
    """
    batch = trial_batch(encoder.model.config)
    children = [(module, dict(module.named_children())) for module in encoder.model.modules()]

    def with_onednn() -> Tensor:
        for module, named in children:
            _replace_linear(module, named, dtype)
        return encoder(batch).float()  # (T, H)

    with eval_mode(encoder):
        replaced = matches(encoder(batch).float(), with_onednn, tolerance=_TOLERANCE[dtype])
    if not replaced:
        for module, named in children:
            for name, child in named.items():
                setattr(module, name, child)
    return replaced


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
