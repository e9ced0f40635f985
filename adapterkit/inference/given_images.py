"""Images as a `Predictor` is given them."""

from pathlib import Path

import numpy as np

from adapterkit.data.image_file import DataError, ImageFile, image_of_array

MIN_SIDE = 8
"""Rows and columns that an image has at least, in pixels."""


def image_file(image: str | Path | ImageFile | np.ndarray, frames: bool) -> ImageFile:
    """An image, read if it is a file.

    Args:
        image: a file, what `read_image` gave, or an array.
        frames: whether an array's first axis counts frames.

    Raises:
        DataError: as `read_image` and `image_of_array`.
    """
    if isinstance(image, ImageFile):
        return image
    if isinstance(image, str | Path):
        from adapterkit.data.files.images import read_image  # Needs an extra.

        return read_image(image)
    return image_of_array(np.asarray(image), frames)


def chosen_frame(image: ImageFile, frame: int | None) -> int:
    """The frame that is asked for, of an image that can be segmented.

    Raises:
        DataError: it is a DICOM segmentation, or has too few pixels.
        ValueError: there is no such frame, or there are several and none is chosen.
    """
    if image.dicom is not None and image.dicom.get("Modality") == "SEG":
        raise DataError(
            f"{image.path} is a DICOM segmentation: expected an image; give the one that it "
            "refers to."
        )
    count, height, width = image.frames.shape[:3]
    if frame is None and count != 1:
        raise ValueError(
            f"{image.path} has {count} frames: choose one with frame=, or take predict_sequence"
        )
    if not 0 <= (frame or 0) < count:
        raise ValueError(f"frame is {frame}, and {image.path} has frames 0 to {count - 1}")
    if min(height, width) < MIN_SIDE:
        raise DataError(
            f"{image.path} is {height} x {width} pixels (rows x columns): expected at least "
            f"{MIN_SIDE} x {MIN_SIDE}."
        )
    return frame or 0
