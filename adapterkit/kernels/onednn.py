"""Linear layers by oneDNN.

On a CPU PyTorch leaves products of matrices in float32 to MKL, and convolutions to oneDNN, which is
faster on some processors (by a tenth on AMD's with AVX-512) and as fast on others. A linear layer
is a convolution of 1 x 1.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear(
    x: Float[Tensor, "*tokens c"], weight: Float[Tensor, "d c"], bias: Float[Tensor, "d"] | None
) -> Float[Tensor, "*tokens d"]:
    """`F.linear`, on a CPU, in float32 or bf16."""
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A convolution would keep its input for the gradient of a frozen weight, too.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        to_x = to_weight = to_bias = None
        if of_x:
            to_x = _product_with_transposed(gradient, weight.to(gradient.dtype))
        rows = gradient.reshape(-1, gradient.shape[-1])
        if of_weight:
            to_weight = rows.mT @ x.reshape(-1, x.shape[-1]).to(rows.dtype)
        if of_bias:
            to_bias = rows.sum(0)
        return to_x, to_weight, to_bias


def _product(
    x: Float[Tensor, "*tokens c"], weight: Float[Tensor, "d c"], bias: Float[Tensor, "d"] | None
) -> Float[Tensor, "*tokens d"]:
    return _as_tokens(F.conv2d(_as_image(x), weight[:, :, None, None], bias), x)


def _product_with_transposed(
    gradient: Float[Tensor, "*tokens d"], weight: Float[Tensor, "d c"]
) -> Float[Tensor, "*tokens c"]:
    image, kernel = _as_image(gradient), weight[:, :, None, None]
    # The gradient depends on the input's shape alone.
    x = image.new_empty(1, 1, image.shape[3], weight.shape[1]).permute(0, 3, 1, 2)
    settings = (None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, False, False))
    to_x, *_ = torch.ops.aten.convolution_backward(image, x, kernel, *settings)
    return _as_tokens(to_x, gradient)


def _as_image(tokens: Float[Tensor, "*tokens c"]) -> Float[Tensor, "1 c 1 n"]:
    return tokens.reshape(1, 1, -1, tokens.shape[-1]).permute(0, 3, 1, 2)


def _as_tokens(image: Float[Tensor, "1 d 1 n"], like: Tensor) -> Float[Tensor, "*tokens d"]:
    return image.permute(0, 2, 3, 1).reshape(*like.shape[:-1], -1)
