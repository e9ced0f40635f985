"""Images of a data set with the outlines of their references and predictions, for a page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from accelerate.utils import gather_object
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from adapterkit.data.dataset import SegmentationDataset
from adapterkit.evaluation.evaluation import Predictions
from adapterkit.evaluation.outlines import outline

_LARGE = 384
"""Pixels of a large drawing's side, at most."""


@dataclass(frozen=True)
class Drawing:
    """An image as the model saw it, and paths over it.

    Attributes:
        source: the image, as a URL that holds it.
        side: of the square in which paths and points are, in pixels.
        aspect: the width of what the image shows over its height, in the body where the size of a
            pixel is known.
        reference: the outline of each structure's reference, as an SVG path.
        predicted: of each structure's prediction.
        points: by which each structure was asked for, (x, y).
    """

    source: str
    side: int
    aspect: float
    reference: Sequence[str]
    predicted: Sequence[str]
    points: Sequence[Sequence[tuple[float, float]]]


class Drawings:
    """Small drawings of the images of a data set, made while these are evaluated.

    Each of several processes draws its share.

    Args:
        dataset: the images; the more there are, the smaller they are drawn.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self._dataset = dataset
        # 200 images of 112 pixels are some 3 MB.
        self._side = int(np.clip(112 * (200 / len(dataset)) ** 0.5, 48, 112))
        self._own: list[tuple[int, Drawing]] = []

    def draw(self, predictions: Predictions) -> None:
        """Draw a batch, as `show` of `evaluate`."""
        for i, index in enumerate(predictions.indices):
            drawing = _draw(predictions, i, _aspect(self._dataset, index), self._side)
            self._own.append((index, drawing))

    def of_all(self) -> list[Drawing]:
        """Those of all processes, in the order of the data set."""
        found = sorted(gather_object(self._own), key=lambda image: image[0])
        return [drawing for _, drawing in found]


def draw_large(
    dataset: SegmentationDataset, predictions: Mapping[int, Predictions]
) -> dict[int, Drawing]:
    """Large drawings of images by their indices, of what `predict_extremes` gives."""
    return {
        number: _draw(each, 0, _aspect(dataset, each.indices[0]), _LARGE)
        for number, each in predictions.items()
    }


def _aspect(dataset: SegmentationDataset, index: int) -> float:
    masks, spacing = dataset.native_reference(index)
    (rows, columns), (row, column) = masks.shape[-2:], spacing or (1, 1)
    return columns * column / (rows * row)


def _draw(predictions: Predictions, i: int, aspect: float, side: int) -> Drawing:
    image = predictions.images[i]
    size = image.shape[-1]
    side = min(side, size)
    shown = F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0]
    pixels = shown.round().clamp(0, 255).byte().movedim(0, -1).numpy()
    # Points lie at the centres of pixels.
    scaled = (predictions.points[i] + 0.5) * (side / size)
    return Drawing(
        source=_jpeg(pixels),
        side=side,
        aspect=aspect,
        reference=[_path(mask, side) for mask in predictions.reference[i]],
        predicted=[_path(mask, side) for mask in predictions.predicted[i]],
        points=[[(round(x, 1), round(y, 1)) for x, y in each] for each in scaled.tolist()],
    )


def _path(mask: Bool[Tensor, "S S"], side: int) -> str:
    if not mask.any():
        return ""
    part = F.interpolate(mask[None, None].float(), (side, side), mode="area")[0, 0].numpy()
    # What is smaller than a pixel of the drawing still shows.
    level = min(0.5, 0.99 * float(part.max()))
    return outline(part - np.float32(level), part > level)


def _jpeg(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    grey = (pixels == pixels[..., :1]).all()
    file = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if grey else pixels)
    picture.save(file, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
