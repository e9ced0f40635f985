"""What every reader of image files gives, and the checks that they share."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Real
from wadler_lindig import pformat

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header
    from pydicom import Dataset

Spacing = tuple[float, float]
"""Size of a pixel in mm, (row, column)."""


MAX_VALUES = 2**30
"""That an image or a sequence holds at most. A small file can state, or unpack to, far more."""


class DataError(ValueError):
    """The data on disk, or what was asked of them, are not as expected."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What an image file shows, and what it takes to write masks that lie on it.

    Attributes:
        path: of the file.
        frames: the images in their order, grey (T, H, W) or colour (T, H, W, 3), in the file's own
            values; a single image is one frame.
        spacing: pixel size in mm, (row, column), or None where it is not known.
        affine: maps (column, row, frame, 1) to mm to the right, front and top of the patient; where
            the file does not say how the patient lies, to mm from the first pixel.
        nifti: the header of a NIfTI file; None of other kinds.
        dicom: the data set of a DICOM file, without its pixels, of a series that of the first
            slice; None of other kinds.
        series: the data sets of the slices of a DICOM series, in the order of the frames.
    """

    path: Path
    frames: Real[np.ndarray, "T H W *rgb"]
    spacing: Spacing | None
    affine: Float[np.ndarray, "4 4"]
    nifti: "Nifti1Header | None" = field(default=None, repr=False)
    dicom: "Dataset | None" = field(default=None, repr=False)
    series: "tuple[Dataset, ...]" = field(default=(), repr=False)

    def __repr__(self) -> str:
        return pformat(self)

    def __post_init__(self) -> None:
        if not np.isfinite(self.affine).all():
            raise DataError(
                f"{self.path} states a place in space that is NaN or infinite: expected finite "
                "lengths; correct the file's header."
            )


_AT_MOST = ContextVar("_AT_MOST", default=MAX_VALUES)


@contextmanager
def at_most(values: int) -> Iterator[None]:
    """Within it, images of more values are refused: those that strangers upload, say."""
    before = _AT_MOST.set(min(values, MAX_VALUES))
    try:
        yield
    finally:
        _AT_MOST.reset(before)


def check_size(shape: Sequence[int], path: Path) -> None:
    """Raises `DataError` where an array of this shape has more than `MAX_VALUES`, or than
    `at_most` says."""
    if math.prod(map(int, shape)) > _AT_MOST.get():
        raise DataError(
            f"{path} states an array of shape {tuple(map(int, shape))}: expected at most "
            f"{_AT_MOST.get():,} values; cut a longer sequence into several files."
        )


def check_spacing(spacing: Spacing, path: Path) -> None:
    """Raises `DataError` where a spacing is not finite and positive."""
    row, column = spacing
    if not (0 < row < math.inf and 0 < column < math.inf):
        raise DataError(
            f"{path} states a pixel spacing of {row} x {column} mm (row x column): expected "
            "finite positive lengths; correct the file's header."
        )


def check_finite(array: np.ndarray, path: Path) -> None:
    """Raises `DataError` where a value is NaN or infinite."""
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise DataError(
            f"{path} has {count} of {array.size} values that are NaN or infinite: expected "
            "finite values; replace the file."
        )


def right_front_top(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """An affine to mm to the left, back and top, as DICOM and ITK have it, as NIfTI has it."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def slice_axis(
    across: Float[np.ndarray, "3"], down: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3"]:
    """Along which slices follow each other: as in files of volumes, from the feet to the head."""
    normal = np.cross(across, down)
    normal = normal / np.linalg.norm(normal)
    return normal * np.sign(normal[np.abs(normal).argmax()])


def unreadable(path: Path, kind: str, error: Exception) -> DataError:
    """The error for a file that its reader refused, with the last line of what that said."""
    detail = str(error).strip().splitlines()[-1] if str(error).strip() else "no detail"
    return DataError(
        f"{path} cannot be read as {kind} ({type(error).__name__}: {detail}): the file is "
        "missing, damaged or cut short; get it again from its source."
    )


def image_of_array(array: np.ndarray, frames: bool) -> ImageFile:
    """An array as if it had been read, with nothing known of its pixels' size.

    Args:
        array: (H, W) or (H, W, 3); with frames (T, H, W) or (T, H, W, 3).
        frames: whether the first axis counts frames.

    Raises:
        DataError: it has another shape, holds no numbers, or some that are not finite.
    """
    path = Path("the array")
    expected = "(T, H, W) or (T, H, W, 3)" if frames else "(H, W) or (H, W, 3)"
    axes = array.ndim - frames
    if array.dtype.kind not in "iuf" or not (axes == 2 or (axes == 3 and array.shape[-1] == 3)):
        raise DataError(
            f"{path} has the shape {array.shape} and type {array.dtype}: expected numbers, "
            f"{expected}."
        )
    if 0 in array.shape:
        raise DataError(f"{path} has the shape {array.shape}: expected some pixels.")
    check_finite(array, path)
    return ImageFile(path, array if frames else array[None], None, np.eye(4))
