"""A scene while it is drawn, back to front: its colours, and which thing each pixel shows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from adapterkit.data.synthetic.materials import LARGEST, Material


@dataclass(frozen=True)
class Scene:
    """A drawn image and the masks of all that may be segmented in it.

    Attributes:
        image: RGB in [0, 255].
        masks: the visible pixels of each background region, object, part and whole, every one at
            least `MIN_AREA` of the image.
    """

    image: UInt8[np.ndarray, "S S 3"]
    masks: Bool[np.ndarray, "n S S"]


MIN_AREA = 0.005
"""Smallest mask, as a share of the image: 18 x 18 pixels of 256 x 256."""


@dataclass(frozen=True)
class Coverage:
    """How much of each pixel of a box is covered, in [0, 1]; nothing is covered outside."""

    box: tuple[slice, slice]
    alpha: Float[np.ndarray, "h w"]

    def times(self, alpha: Float[np.ndarray, "h w"]) -> "Coverage":
        return Coverage(self.box, self.alpha * alpha)


class Canvas:
    """The image so far, and which thing each pixel shows."""

    def __init__(self, size: int):
        if not 32 <= size <= LARGEST:
            raise ValueError(f"size is {size} pixels: expected between 32 and {LARGEST}")
        self.size = size
        self.colour = np.zeros((size, size, 3), np.float32)
        self.shown = np.zeros((size, size), np.uint8)
        self.things = 0
        self.wholes: list[list[int]] = []

    def paint(self, coverage: Coverage, material: Material) -> int:
        """Lay a new thing over the image; its number."""
        self.things += 1
        box, alpha = coverage.box, coverage.alpha
        under = self.colour[box]
        under += alpha[..., None] * (material.colour(box) - under)
        self.shown[box][alpha > 0.5] = self.things
        return self.things

    def masks(self) -> Bool[np.ndarray, "n S S"]:
        pixels = np.bincount(self.shown.ravel(), minlength=self.things + 1)
        groups = [[thing] for thing in range(1, self.things + 1)]
        # A whole of which only one member is seen is that member again.
        groups += [[each for each in whole if pixels[each]] for whole in self.wholes]
        groups = groups[: self.things] + [
            whole for whole in groups[self.things :] if len(whole) > 1
        ]
        large = [group for group in groups if pixels[group].sum() >= MIN_AREA * self.shown.size]
        chosen = np.zeros((len(large), self.things + 1), bool)
        for row, group in zip(chosen, large, strict=True):
            row[group] = True
        return chosen[:, self.shown]
