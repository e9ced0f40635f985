"""Linear layers by the faster of PyTorch's two libraries."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.overlay import overlays, raw_parameter
from adapterkit.kernels.onednn import linear
from adapterkit.parts.lora import LowRankUpdate

_MIN_MULTIPLICATIONS = 2**27
"""Of a linear layer; one of fewer PyTorch's own starts and ends sooner."""


class FastLinear(nn.Linear):
    """A linear layer whose large products on a CPU are oneDNN's, where PyTorch would take MKL's.

    In training, what low-rank updates of its weight come to is added to its output: the gradient of
    the whole weight, which is not trained, would take as long as the layer itself.
    """

    def forward(self, input: Float[Tensor, "*tokens c"]) -> Float[Tensor, "*tokens d"]:
        updates = overlays(self).get("weight", ())
        if torch.is_grad_enabled() and updates and _are_low_rank(updates):
            output = _product(input, raw_parameter(self, "weight"), self.bias)
            down = torch.cat([each.a for each in updates])
            up = torch.cat([each.of_all_rows(self.out_features) for each in updates], dim=1)
            return output + F.linear(F.linear(input, down), up)
        return _product(input, self.weight, self.bias)


def _are_low_rank(updates: Sequence[Any]) -> TypeGuard[Sequence[LowRankUpdate]]:
    return all(isinstance(each, LowRankUpdate) for each in updates)


def _product(
    input: Float[Tensor, "*tokens c"], weight: Float[Tensor, "d c"], bias: Float[Tensor, "d"] | None
) -> Float[Tensor, "*tokens d"]:
    is_small = input.numel() * len(weight) < _MIN_MULTIPLICATIONS
    is_one_token = input.ndim == 1
    has_kernels = input.device.type == "cpu" and input.dtype in (torch.float32, torch.bfloat16)
    if is_small or is_one_token or not has_kernels or not _HAS_BOTH_LIBRARIES:
        return F.linear(input, weight, bias)
    return linear(input, weight, bias)


_HAS_BOTH_LIBRARIES = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
