"""Slices of volumes: what formats of NIfTI, MetaImage and DICOM files share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from adapterkit.data.collections.labels import merged, relabelled
from adapterkit.data.dataset import LabelledImage
from adapterkit.data.files.images import is_dicom, read_image
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.files.series import files_of, read_series, read_series_labels
from adapterkit.data.image_file import DataError, ImageFile, Spacing


@dataclass(frozen=True)
class Volume:
    """The files of a volume, or of a picture, and what its labels are.

    Attributes:
        name: no two of a data set share it.
        image: its file, or the folder of a DICOM series.
        mask: of its label maps.
        structures: labels and what they stand for; labels of one name are merged.
        counts_as: for each label that the mask may hold beside 0, the one of `structures` that it
            counts as, or 0; None: all that is not 0 is the first structure.
    """

    name: str
    image: Path
    mask: Path
    structures: Mapping[int, str]
    counts_as: Mapping[int, int] | None


@dataclass(frozen=True)
class Slice:
    """One slice of a volume, or a picture, and its label map: a record."""

    volume: Volume
    axis: int
    """Along which slices follow each other: 0 the file's own order of frames, 1 rows, 2 columns."""
    index: int
    is_whole: bool = False
    """Whether it is a picture rather than a slice, as all of its data set."""

    @property
    def name(self) -> str:
        """For example "case_001/017"."""
        return self.volume.name if self.is_whole else f"{self.volume.name}/{self.index:03d}"

    @property
    def image(self) -> Path:
        """The file, which all slices of a volume share."""
        return self.volume.image

    @property
    def structures(self) -> Mapping[int, str]:
        return merged(self.volume.structures)

    @property
    def attributes(self) -> Mapping[str, str]:
        if self.is_whole:
            return {}
        return {"volume": self.volume.name, "slice": str(self.index)}

    def read(self) -> LabelledImage:
        """The slice in the file's own values, its label map, and its pixel spacing.

        Raises `DataError`, naming the file, where one cannot be read, the two differ in size, or
        the mask holds an unknown label.
        """
        volume = self.volume
        frames, labels, sides = read_pair(volume.image, volume.mask)
        plane = np.take(labels, self.index, axis=self.axis)
        if volume.counts_as is None:
            plane = np.where(plane != 0, next(iter(volume.structures)), 0).astype(np.uint8)
        else:
            plane = relabelled(plane, volume.counts_as, volume.mask)
        spacing: Spacing | None = None
        if sides is not None:
            row, column = (sides[axis] for axis in range(3) if axis != self.axis)
            spacing = row, column
        return LabelledImage(np.take(frames, self.index, axis=self.axis), plane, spacing)


def slices(volumes: Sequence[Volume], axis: int = 0) -> list[Slice]:
    """The slices of volumes along an axis, one volume after another.

    Raises:
        DataError: the axis is not 0, 1 or 2, or a file cannot be read or does not fit.
    """
    if axis not in (0, 1, 2):
        raise DataError(f"axis {axis}: expected 0, the order of frames, 1, rows, or 2, columns.")
    found = [
        Slice(volume, axis, index)
        for volume in volumes
        for index in range(read_pair(volume.image, volume.mask)[0].shape[axis])
    ]
    if len(found) == len(volumes):
        found = [replace(each, is_whole=True) for each in found]
    return found


def labels_of(volume: Volume) -> list[int]:
    """The labels that a volume's mask holds beside 0.

    Raises:
        DataError: a file cannot be read or does not fit.
    """
    labels = np.unique(read_pair(volume.image, volume.mask)[1])
    return [int(label) for label in labels if label]


# The slices of a volume are mostly read one after another; two volumes bound the memory.
@lru_cache(maxsize=2)
def read_pair(
    image: Path, mask: Path
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float] | None]:
    """Frames, label maps, and the sides of a voxel in mm by axis, where they are known.

    Raises:
        DataError: one cannot be read, or they differ in size.
    """
    shown = read_series(files_of(image), image) if image.is_dir() else read_image(image)
    instances = [str(each.SOPInstanceUID) for each in shown.series]
    if instances and is_dicom(mask):
        labels = read_series_labels(mask, instances)
    else:
        labels = _as_it_lies(read_label_map(mask), shown)
    frames = shown.frames
    if is_dicom(mask) and labels.shape[1:] == frames.shape[1:3]:
        # It need not say how many frames without any structure follow.
        rest = max(0, len(frames) - len(labels))
        labels = np.pad(labels, ((0, rest), (0, 0), (0, 0)))
    if labels.shape != frames.shape[:3]:
        raise DataError(
            f"{mask} is {_size(labels)} but its image {image} is {_size(frames)}: "
            "expected the same size."
        )
    sides = None
    if shown.spacing is not None:
        thickness = float(np.linalg.norm(shown.affine[:3, 2]))
        sides = (thickness, *shown.spacing)
    return frames, labels, sides


def _as_it_lies(mask: ImageFile, image: ImageFile) -> np.ndarray:
    """The frames of a mask, turned and flipped as the image is, where both state the same place.

    Programs that write NIfTI for a DICOM series often store its axes in another order. Where the
    places differ otherwise, one of the files does not know it, and the order of both is kept.
    """
    change = ornt_transform(io_orientation(mask.affine), io_orientation(image.affine))
    turned = apply_orientation(mask.frames.T, change)
    affine = mask.affine @ inv_ornt_aff(change, mask.frames.T.shape)
    sides = np.linalg.norm(image.affine[:3, :3], axis=0)
    same_place = np.abs(affine - image.affine).max() < 0.1 * sides.min()
    return turned.T if same_place else mask.frames


def _size(frames: np.ndarray) -> str:
    return " x ".join(map(str, frames.shape[:3]))
