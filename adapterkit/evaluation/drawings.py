"""Images of a data set with the outlines of their references and predictions, for a page."""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from accelerate.utils import gather_object
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from adapterkit.data.dataset import SegmentationDataset
from adapterkit.evaluation.evaluation import predict
from adapterkit.evaluation.outlines import outline
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.strategies import PromptStrategy

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


def draw_images(
    segmenter: Promptable,
    dataset: SegmentationDataset,
    *,
    seed: int,
    points: PromptStrategy = "1",
    batch_size: int = 8,
    large: Collection[int] = (),
) -> tuple[list[Drawing], dict[int, Drawing]]:
    """Segment a data set anew, and draw every image; each of several processes draws its share.

    Args:
        segmenter: what is drawn; `seed`, `points` and `batch_size` are as of `predict`.
        dataset: the images.
        seed: of the points.
        points: how the prompts are chosen.
        batch_size: images at a time.
        large: the indices of images to draw large too.

    Returns:
        A small drawing of each image, smaller where there are many; and the large ones by index.
    """
    # 200 images of 112 pixels are some 3 MB.
    small = int(np.clip(112 * (200 / len(dataset)) ** 0.5, 48, 112))
    found: list[tuple[int, Drawing, Drawing | None]] = []
    for each in predict(segmenter, dataset, seed=seed, points=points, batch_size=batch_size):
        for i, index in enumerate(each.indices):
            masks, spacing = dataset.native_reference(index)
            (rows, columns), (row, column) = masks.shape[-2:], spacing or (1, 1)
            drawn = [
                _draw(dataset[index]["image"], each.reference[i], each.predicted[i],
                      each.points[i], columns * column / (rows * row), side)
                if side else None
                for side in (small, _LARGE if index in large else 0)
            ]  # fmt: skip
            found.append((index, *drawn))  # pyright: ignore[reportArgumentType]
    found = sorted(gather_object(found), key=lambda image: image[0])
    return (
        [drawing for _, drawing, _ in found],
        {index: drawing for index, _, drawing in found if drawing is not None},
    )


def _draw(
    image: Float[Tensor, "3 S S"],
    reference: Bool[Tensor, "k S S"],
    predicted: Bool[Tensor, "k S S"],
    points: Float[Tensor, "k n 2"],
    aspect: float,
    side: int,
) -> Drawing:
    size = image.shape[-1]
    side = min(side, size)
    shown = F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0]
    pixels = shown.round().clamp(0, 255).byte().movedim(0, -1).numpy()
    # Points lie at the centres of pixels.
    scaled = (points + 0.5) * (side / size)
    return Drawing(
        source=_jpeg(pixels),
        side=side,
        aspect=aspect,
        reference=[_path(mask, side) for mask in reference],
        predicted=[_path(mask, side) for mask in predicted],
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
