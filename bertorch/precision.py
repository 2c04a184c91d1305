"""The arithmetic of forward and backward, and what is always computed in fp32."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from bertorch.errors import NotFiniteError, UserError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def at_least_fp32(tensor: Tensor) -> Tensor:
    """bf16 and fp16 become fp32; fp32 and fp64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def require_finite(results: Tensor, what: str) -> None:
    """Raise a `NotFiniteError`, which says of what the results are, if one of them is NaN or infinite."""
    if not results.isfinite().all():
        raise NotFiniteError(
            f"expected finite results for {what}, got NaN or infinity; the weights have diverged or are damaged, or "
            "with --precision fp16 or bf16 take fp32"
        )


@dataclass(frozen=True)
class Precision:
    """The arithmetic of forward and backward; weights and optimiser state are always fp32."""

    name: str  # `fp32`, `bf16` or `fp16`
    device_type: str  # `cpu` or `cuda`

    @classmethod
    def resolve(cls, name: str, device: torch.device) -> "Precision":
        """Resolve a value of `--precision`; `auto` is bf16 where CUDA supports it, else fp32.

        Raises:
            UserError: fp16 without a GPU, or bf16 on a GPU that has none.
        """
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "auto":
            name = "bf16" if device.type == "cuda" and has_bf16 else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise UserError(f"--precision fp16 needs a CUDA GPU, got {device.type}; use auto, fp32 or bf16")
        if name == "bf16" and not has_bf16:
            raise UserError("--precision bf16: this GPU has no bf16 arithmetic; use auto, fp32 or fp16")
        return cls(name, device.type)

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return _DTYPES[self.name]

    def autocast(self, *, keep_cast_weights: bool = True) -> AbstractContextManager[object]:
        """The context of a forward pass.

        In training the cast weights are not kept: the code of a compiled encoder depends on it, and a CUDA graph must
        not find weights that were cast outside of it.
        """
        return torch.autocast(
            self.device_type, dtype=self.dtype, enabled=self.name != "fp32", cache_enabled=keep_cast_weights
        )

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler, which does nothing except in fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")
