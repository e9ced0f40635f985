"""Image files as arrays in (row, column) order: NIfTI, MetaImage, PNG, JPEG and TIFF.

Reading needs nibabel, SimpleITK and Pillow, which come with `adapterkit[recipes]`.
"""

import math
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import SimpleITK as sitk
from jaxtyping import Real
from nibabel.spatialimages import SpatialImage
from PIL import Image

Spacing = tuple[float, float]
"""Size of a pixel in mm, (row, column)."""


class DataError(ValueError):
    """The data on disk, or what was asked of them, are not as expected."""


def read_frames(path: Path) -> tuple[Real[np.ndarray, "T H W"], Spacing | None]:
    """The frames of a NIfTI (.nii, .nii.gz) or MetaImage (.mhd) file, and their pixel spacing.

    A 2-D image is one frame; of a 3-D one the slowest axis counts the frames. The spacing is None
    where the file states 1 x 1 mm, which is what writers put if they know none.

    Raises `DataError`, naming the file, where it cannot be read, has other than two or three axes
    or not real numbers, holds values that are NaN or infinite, or states a spacing that is not
    finite and positive.
    """
    array, (row, column) = (_read_metaimage if path.suffix == ".mhd" else _read_nifti)(path)
    if array.ndim not in (2, 3) or array.dtype.kind not in "iuf":
        raise DataError(
            f"{path} holds an array of shape {array.shape} and type {array.dtype}: expected real "
            "numbers with two axes, or three for a sequence."
        )
    if not (0 < row < math.inf and 0 < column < math.inf):
        raise DataError(
            f"{path} states a pixel spacing of {row} x {column} mm (row x column): expected "
            "finite positive lengths; correct the file's header."
        )
    _check_finite(array, path)
    frames = array if array.ndim == 3 else array[None]
    return frames, None if row == column == 1 else (row, column)


def read_picture(path: Path, indexed: bool = False) -> Real[np.ndarray, "H W *rgb"]:
    """The pixels of a PNG, JPEG or TIFF file: grey (H, W) or colour (H, W, 3), of 8 or 16 bits.

    Transparency is dropped, black and white are 0 and 255, and colour of 16 bits is read as 8. Of a
    file with a palette, `indexed` gives the indices instead of the colours.

    Raises `DataError`, naming the file, where it cannot be read, holds several images, or has
    values that are NaN or infinite.
    """
    try:
        with Image.open(path) as picture:
            count = getattr(picture, "n_frames", 1)
            if picture.mode in ("1", "L", "LA"):
                array = np.asarray(picture.convert("L"))
            # Modes of more than 8 bits begin with I (whole numbers) and F (float32).
            elif picture.mode[0] in "IF" or (indexed and picture.mode == "P"):
                array = np.asarray(picture)
            else:
                array = np.asarray(picture.convert("RGB"))
    # Damaged files make Pillow raise OSError, SyntaxError, ValueError and others.
    except Exception as error:
        raise _unreadable(path, "a picture", error) from error
    if count != 1:
        raise DataError(f"{path} holds {count} images: expected one; save them one by one.")
    _check_finite(array, path)
    return array


def _read_nifti(path: Path) -> tuple[np.ndarray, Spacing]:
    # Not through SimpleITK, which fills the rest of a truncated NIfTI file with zeros.
    try:
        nifti = cast(SpatialImage, nibabel.load(path))
        array = np.asarray(nifti.dataobj)
        zooms = nifti.header.get_zooms()
    # Damaged files make nibabel, gzip and zlib raise exceptions that share no narrower base.
    except Exception as error:
        raise _unreadable(path, "NIfTI", error) from error
    # On disk the fastest axis comes first: (x, y, time).
    return array.T, (float(zooms[1]), float(zooms[0])) if len(zooms) > 1 else (1.0, 1.0)


def _read_metaimage(path: Path) -> tuple[np.ndarray, Spacing]:
    try:
        image = sitk.ReadImage(path)
    except RuntimeError as error:
        raise _unreadable(path, "MetaImage", error) from error
    return sitk.GetArrayFromImage(image), (image.GetSpacing()[1], image.GetSpacing()[0])


def _check_finite(array: np.ndarray, path: Path) -> None:
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise DataError(
            f"{path} has {count} of {array.size} values that are NaN or infinite: expected "
            "finite values; replace the file."
        )


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    detail = str(error).strip().splitlines()[-1] if str(error).strip() else "no detail"
    return DataError(
        f"{path} cannot be read as {kind} ({type(error).__name__}: {detail}): the file is "
        "missing, damaged or cut short; get it again from its source."
    )
