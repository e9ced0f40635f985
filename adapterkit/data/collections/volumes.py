"""Slices of volumes: what formats of NIfTI and MetaImage files share."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from adapterkit.data.collections.labels import relabelled
from adapterkit.data.dataset import LabelledImage
from adapterkit.data.files.image_file import DataError, Spacing
from adapterkit.data.files.images import read_image


@dataclass(frozen=True)
class Slice:
    """One slice of a volume, or a picture, and its label map: a record."""

    volume: str
    """The name of its volume."""
    image: Path
    mask: Path
    axis: int
    """Along which slices follow each other: 0 the file's own order of frames, 1 rows, 2 columns."""
    index: int
    structures: Mapping[int, str]

    @property
    def name(self) -> str:
        """For example "case_001/017"."""
        return f"{self.volume}/{self.index:03d}"

    @property
    def attributes(self) -> Mapping[str, str]:
        return {"volume": self.volume, "slice": str(self.index)}

    def read(self) -> LabelledImage:
        """The slice in the file's own values, its label map, and its pixel spacing.

        Raises `DataError`, naming the file, where one cannot be read, the two differ in size, or
        the mask holds an unknown label.
        """
        frames, labels, sides = _read_pair(self.image, self.mask)
        known = {label: label for label in self.structures}
        plane = np.take(labels, self.index, axis=self.axis)
        spacing: Spacing | None = None
        if sides is not None:
            row, column = (sides[axis] for axis in range(3) if axis != self.axis)
            spacing = row, column
        return LabelledImage(
            np.take(frames, self.index, axis=self.axis),
            relabelled(plane, known, self.mask),
            spacing,
        )


def slices(
    volume: str, image: Path, mask: Path, axis: int, structures: Mapping[int, str]
) -> list[Slice]:
    """The slices of a volume along an axis.

    Raises:
        DataError: the axis is not 0, 1 or 2, or a file cannot be read or does not fit.
    """
    if axis not in (0, 1, 2):
        raise DataError(f"axis {axis}: expected 0, the order of frames, 1, rows, or 2, columns.")
    count = _read_pair(image, mask)[0].shape[axis]
    return [Slice(volume, image, mask, axis, index, structures) for index in range(count)]


# The slices of a volume are mostly read one after another; two volumes bound the memory.
@lru_cache(maxsize=2)
def _read_pair(
    image: Path, mask: Path
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float] | None]:
    """Frames, label maps, and the sides of a voxel in mm by axis, where they are known."""
    shown, labelled = read_image(image), read_image(mask)
    if labelled.frames.shape != shown.frames.shape[:3]:
        raise DataError(
            f"{mask} is {_size(labelled.frames)} but its image {image} is {_size(shown.frames)}: "
            "expected the same size."
        )
    sides = None
    if shown.spacing is not None:
        thickness = float(np.linalg.norm(shown.affine[:3, 2]))
        sides = (thickness, *shown.spacing)
    return shown.frames, labelled.frames, sides


def _size(frames: np.ndarray) -> str:
    return " x ".join(map(str, frames.shape[:3]))
