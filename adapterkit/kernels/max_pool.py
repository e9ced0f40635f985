"""Pooling that keeps for its gradient where the largest were, and not what they were among."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def max_pool(x: Float[Tensor, "b c h w"], *settings: Any) -> Float[Tensor, "b c g v"]:
    """`F.max_pool2d`.

    Args:
        settings: its kernel size, stride, padding, dilation and ceil mode.
    """
    return _MaxPool.apply(x, *settings)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *settings: Any) -> Tensor:
        output, places = F.max_pool2d_with_indices(x, *settings)
        # Half of what PyTorch has places in; there is no map of 2**31 pixels.
        ctx.save_for_backward(places.int())
        ctx.settings, ctx.shape = settings, x.shape
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        (places,) = ctx.saved_tensors
        # The gradient depends on the input's shape alone; its layout is that of the places.
        is_channels_last = places.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_channels_last else torch.contiguous_format
        like = {"dtype": gradient.dtype, "device": gradient.device}
        x = torch.empty(ctx.shape, **like, memory_format=layout)
        to_x = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, x, *ctx.settings, places.long()
        )
        return to_x, *(None for _ in ctx.settings)
