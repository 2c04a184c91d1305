"""What is computed in fp32 also where the rest of the model runs in half precision."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """bf16 and fp16 become fp32; fp32 and fp64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
