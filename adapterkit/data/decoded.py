"""Decoded images in memory, within a budget, shared with the workers of a `DataLoader`."""

import mmap
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

_PLANES = 4
"""Red, green, blue and the label map; of a grey image two are never touched, and take nothing."""


class DecodedImages:
    """The first images of a data set, as far as the budget goes; others are not kept.

    Processes that are forked from this one share the memory: what one decodes, all have. To those
    that are started otherwise a copy comes empty, and keeps nothing.

    Args:
        count: of the images.
        side: of each, in pixels.
        budget: in bytes.
    """

    def __init__(self, count: int, side: int, budget: int):
        self._side = side
        self._slots = min(count, budget // (_PLANES * side * side))
        # Anonymous memory: a file in /dev/shm, as torch shares, is small in many containers.
        self._pixels = mmap.mmap(-1, max(1, self._slots * _PLANES * side * side))
        self._channels = mmap.mmap(-1, max(1, self._slots))

    def __getstate__(self) -> dict[str, Any]:
        return {"_side": self._side, "_slots": 0}

    def get(self, index: int) -> tuple[UInt8[Tensor, "c S S"], UInt8[Tensor, "1 S S"]] | None:
        """An image and its label map; None where they are not kept."""
        if index >= self._slots or not self._channels[index]:
            return None
        planes = self._planes(index)
        return planes[: self._channels[index]], planes[-1:]

    def put(
        self, index: int, image: UInt8[Tensor, "c S S"], labels: UInt8[Tensor, "1 S S"]
    ) -> None:
        """Keep an image and its label map, if there is room."""
        if index < self._slots:
            planes = self._planes(index)
            planes[: len(image)] = image
            planes[-1:] = labels
            # Last, since from now on other processes read them.
            self._channels[index] = len(image)

    def _planes(self, index: int) -> UInt8[Tensor, "4 S S"]:
        size = _PLANES * self._side**2
        flat = torch.frombuffer(self._pixels, dtype=torch.uint8, count=size, offset=index * size)
        return flat.view(_PLANES, self._side, self._side)
