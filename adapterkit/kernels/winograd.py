"""Convolutions of 3 x 3 by Winograd's algorithm, of a quarter of the multiplications.

4 x 4 pixels of the output at once come from 6 x 6 of the input: both these and the kernel are seen
as polynomials, whose product is known from its values at six points. The points are chosen for
their rounding errors in float32, a millionth of the output, as of a plain convolution of hundreds
of channels; the usual ones, 0, 1, -1, 2 and -2, have twice as much.

Source: Lavin and Gray 2015, arXiv 1509.09308, section 4; for what the points do to errors, Barabasz
et al. 2018, arXiv 1803.10986.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_POINTS = (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
"""And infinity."""
_OUT, _IN = 4, 6
"""Sides of a tile of the output, and of the input."""


def _coefficients(roots: Float[Tensor, "n"]) -> Float[Tensor, "n+1"]:
    """Of the polynomial with these roots, the constant one first."""
    found = torch.ones(1, dtype=roots.dtype)
    for root in roots:
        found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
    return found


def _matrices() -> tuple[Float[Tensor, "36 36"], Float[Tensor, "36 9"], Float[Tensor, "16 36"]]:
    """What takes 6 x 6 pixels, and what takes a kernel, to their values; and from the products of
    these to 4 x 4 pixels."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    of_input = torch.zeros(_IN, _IN, dtype=torch.float64)
    of_kernel = torch.zeros(_IN, 3, dtype=torch.float64)
    of_output = torch.zeros(_OUT, _IN, dtype=torch.float64)
    for i, point in enumerate(points):
        others = torch.cat((points[:i], points[i + 1 :]))
        of_input[i, :-1] = _coefficients(others)
        of_kernel[i] = point ** torch.arange(3) / (point - others).prod()
        of_output[:, i] = point ** torch.arange(_OUT)
    of_input[-1], of_kernel[-1, -1], of_output[-1, -1] = _coefficients(points), 1, 1
    # Values of input and kernel of one size, by exact powers of two.
    ratio = of_kernel.norm(dim=1) / of_input.norm(dim=1)
    scale = 2 ** (ratio.log2() / 2).round()[:, None]
    both = of_input * scale, of_kernel / scale, of_output
    by_input, by_kernel, by_output = (torch.kron(each, each).float() for each in both)
    return by_input, by_kernel, by_output


with torch.device("cpu"):  # Whatever the default is.
    _BY_INPUT, _BY_KERNEL, _BY_OUTPUT = _matrices()


def winograd(
    x: Float[Tensor, "b c h w"], kernel: Float[Tensor, "d c 3 3"]
) -> Float[Tensor, "b d h w"]:
    """`conv2d(x, kernel, padding=1)`, in float32 on a CPU; fastest where channels are last."""
    return _Winograd.apply(x, kernel)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, kernel)
        ctx.shape = x.shape
        batch, _, height, width = x.shape
        down, right = _tiles(height), _tiles(width)
        product = torch.bmm(_of_input(x), _of_kernel(kernel).mT)
        tiles = (_BY_OUTPUT @ product.flatten(1)).view(_OUT, _OUT, batch, down, right, -1)
        image = tiles.permute(2, 3, 0, 4, 1, 5).reshape(batch, _OUT * down, _OUT * right, -1)
        return image[:, :height, :width].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        to_product = _of_gradient(grad_outputs[0])
        to_x = to_kernel = None
        if ctx.needs_input_grad[0]:
            to_x = _to_input(torch.bmm(to_product, _of_kernel(kernel)), *ctx.shape)
        if ctx.needs_input_grad[1]:
            to_kernel = _to_kernel(torch.bmm(to_product.mT, _of_input(x)))
        return to_x, to_kernel


def _of_input(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "36 tiles c"]:
    channels, height, width = x.shape[1:]
    below, right = _OUT * _tiles(height) - height, _OUT * _tiles(width) - width
    image = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + right, 1, 1 + below))
    tiles = image.unfold(1, _IN, _OUT).unfold(2, _IN, _OUT).permute(4, 5, 0, 1, 2, 3)
    return (_BY_INPUT @ tiles.reshape(_IN**2, -1)).view(_IN**2, -1, channels)


def _of_kernel(kernel: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "36 d c"]:
    return (_BY_KERNEL @ kernel.reshape(-1, 9).mT).view(_IN**2, *kernel.shape[:2])


def _of_gradient(gradient: Float[Tensor, "b d h w"]) -> Float[Tensor, "36 tiles d"]:
    batch, channels, height, width = gradient.shape
    down, right = _tiles(height), _tiles(width)
    padding = (0, 0, 0, _OUT * right - width, 0, _OUT * down - height)
    image = F.pad(gradient.permute(0, 2, 3, 1), padding)
    tiles = image.view(batch, down, _OUT, right, _OUT, channels).permute(2, 4, 0, 1, 3, 5)
    return (_BY_OUTPUT.mT @ tiles.reshape(_OUT**2, -1)).view(_IN**2, -1, channels)


def _to_input(
    to_values: Float[Tensor, "36 tiles c"], batch: int, channels: int, height: int, width: int
) -> Float[Tensor, "b c h w"]:
    down, right = _tiles(height), _tiles(width)
    tiles = (_BY_INPUT.mT @ to_values.flatten(1)).view(_IN, _IN, batch, down, right, channels)
    tiles = tiles.permute(2, 3, 0, 4, 1, 5)
    # Neighbours overlap: the last pixels of a tile are the first of the next.
    over = _IN - _OUT
    image = to_values.new_zeros(batch, down + 1, _OUT, right + 1, _OUT, channels)
    image[:, :-1, :, :-1] = tiles[:, :, :_OUT, :, :_OUT]
    image[:, 1:, :over, :-1] += tiles[:, :, _OUT:, :, :_OUT]
    image[:, :-1, :, 1:, :over] += tiles[:, :, :_OUT, :, _OUT:]
    image[:, 1:, :over, 1:, :over] += tiles[:, :, _OUT:, :, _OUT:]
    image = image.view(batch, _OUT * (down + 1), _OUT * (right + 1), channels)
    return image[:, 1 : 1 + height, 1 : 1 + width].permute(0, 3, 1, 2)


def _to_kernel(to_values: Float[Tensor, "36 d c"]) -> Float[Tensor, "d c 3 3"]:
    return (_BY_KERNEL.mT @ to_values.flatten(1)).mT.reshape(*to_values.shape[1:], 3, 3)


def _tiles(length: int) -> int:
    """Along a side of the image."""
    return -(-length // _OUT)
