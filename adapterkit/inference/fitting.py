"""How an image of any shape becomes the square input of a model, and masks those of the image."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from adapterkit.data.dataset import to_grey_values, to_native, to_square


@dataclass(frozen=True)
class Squash:
    """An image squashed to the square, as training squashes it.

    Attributes:
        size: rows and columns of the image, H and W.
        side: of the model's square input, S, in pixels.
    """

    size: tuple[int, int]
    side: int

    @property
    def shown(self) -> tuple[int, int]:
        """Rows and columns of the input that show the image; its upper left ones."""
        return self.side, self.side

    def image(self, pixels: Real[np.ndarray, "H W *rgb"]) -> Float[Tensor, "3 S S"]:
        """The input, in [0, 255]."""
        return to_square(pixels, self.side).expand(3, -1, -1).float()

    def points(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Points (x, y) of the image in pixels of the input."""
        # A point names a pixel, whose centre lies half a pixel further.
        return (points + 0.5) * _scale(self) - 0.5

    def logits(self, at_side: Float[Tensor, "*batch S S"]) -> Float[Tensor, "*batch H W"]:
        """Logits of the input as those of the image."""
        return to_native(at_side, self.size)


@dataclass(frozen=True)
class Pad:
    """An image that keeps its proportions and fills the longer side, as `SamPredictor` has it.

    Attributes:
        size: rows and columns of the image, H and W.
        side: of the model's square input, S, in pixels.
        colour: red, green and blue, in [0, 255], of the rest.
    """

    size: tuple[int, int]
    side: int
    colour: Float[Tensor, "3"]

    @property
    def shown(self) -> tuple[int, int]:
        """Rows and columns of the input that show the image; its upper left ones."""
        rows, columns = ResizeLongestSide.get_preprocess_shape(*self.size, self.side)
        return rows, columns

    def image(self, pixels: Real[np.ndarray, "H W *rgb"]) -> Float[Tensor, "3 S S"]:
        """The input, in [0, 255]."""
        grey = to_grey_values(pixels).round().astype(np.uint8)
        colours = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=-1)
        shown = torch.from_numpy(ResizeLongestSide(self.side).apply_image(colours).copy())
        rows, columns = self.shown
        square = self.colour.float().cpu()[:, None, None].repeat(1, self.side, self.side)
        square[:, :rows, :columns] = shown.permute(2, 0, 1)
        return square

    def points(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Points (x, y) of the image in pixels of the input."""
        # `SamPredictor` scales the indices of pixels rather than their centres.
        return np.clip(points * _scale(self), -0.5, np.array(self.shown[::-1]) - 0.5)

    def logits(self, at_side: Float[Tensor, "*batch S S"]) -> Float[Tensor, "*batch H W"]:
        """Logits of the input as those of the image."""
        rows, columns = self.shown
        shown = at_side[..., :rows, :columns]
        flat = shown.reshape(1, -1, rows, columns)
        native = F.interpolate(flat, self.size, mode="bilinear", align_corners=False)
        return native.reshape(*shown.shape[:-2], *self.size)


Fit = Squash | Pad
"""How an image of H x W pixels lies in a square input of S x S."""


def fit_of(size: tuple[int, int], side: int, colour: Float[Tensor, "3"] | None) -> Fit:
    """How a model takes an image: padded with a colour, or squashed where there is none."""
    return Squash(size, side) if colour is None else Pad(size, side, colour)


def boxes_in_input(fit: Fit, box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """A box (x0, y0, x1, y1) of the image, from edge to edge, in pixels of the input."""
    return box * np.tile(_scale(fit), 2)


def mask_in_input(
    fit: Fit, mask: Bool[np.ndarray, "H W"], low_res: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    """A mask of the image as logits of the input, at the low resolution of mask prompts."""
    rows, columns = (
        max(1, round(low * shown / fit.side)) for low, shown in zip(low_res, fit.shown, strict=True)
    )
    share = F.interpolate(
        torch.from_numpy(mask.astype(np.float32))[None, None],
        (rows, columns),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    share = F.pad(share, (0, low_res[1] - columns, 0, low_res[0] - rows))
    # The decoder is used to logits of this size where it is sure.
    return torch.logit(share[0, 0], eps=1e-3).numpy()


def logits_as_mask_prompt(
    logits: Float[np.ndarray, "h w"], low_res: tuple[int, int]
) -> Float[np.ndarray, "H W"]:
    """The logits of an answer at the low resolution of mask prompts; with `Detail`, those of an
    answer are of the input's size."""
    if logits.shape == low_res:
        return logits
    as_tensor = torch.from_numpy(logits.astype(np.float32))[None, None]
    resized = F.interpolate(
        as_tensor, low_res, mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0, 0].numpy()


def _scale(fit: Fit) -> Float[np.ndarray, "2"]:
    """Pixels of the input for one of the image, along x and along y."""
    (height, width), (rows, columns) = fit.size, fit.shown
    return np.array([columns / width, rows / height])


def at_side(low_res: Float[Tensor, "n h w"], side: int) -> Float[Tensor, "n S S"]:
    """Logits at the size of the model's input."""
    return F.interpolate(low_res[None], (side, side), mode="bilinear", align_corners=False)[0]
