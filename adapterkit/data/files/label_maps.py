"""Mask files of any kind as label maps."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from adapterkit.data.files.images import is_picture, read_image
from adapterkit.data.files.pictures import read_label_pages
from adapterkit.data.files.quiet import quietly
from adapterkit.data.image_file import DataError, ImageFile


def read_label_map(path: str | Path, binary: bool = False) -> ImageFile:
    """A mask file of any kind that `read_image` reads, and DICOM-SEG, as whole numbers.

    Of pictures, `read_label_pages` says what is a label; of a DICOM-SEG, the numbers of its
    segments are. 0 is background.

    Args:
        path: of the file.
        binary: all that is not 0 is 1; in a JPEG, whose compression blurs edges, what is above 127.

    Returns:
        The label maps as `frames`, (T, H, W), of an integer type.

    Raises:
        DataError: it cannot be read, is in colour, holds numbers that are not whole, or does not
            tell what its labels are; the message names it.
    """
    path = Path(path)
    if is_picture(path):
        with quietly():
            return ImageFile(path, read_label_pages(path, binary), None, np.eye(4))
    mask = read_image(path)
    if mask.dicom is not None:
        from adapterkit.data.files.dicom_seg import read_labels

        with quietly():
            mask = replace(mask, frames=read_labels(path))
    labels = mask.frames
    if labels.ndim != 3:
        raise DataError(f"{path} is in colour: expected labels, grey or of a palette.")
    if not (labels == np.round(labels)).all():
        raise DataError(f"{path} holds numbers that are not whole: expected labels.")
    if labels.dtype.kind not in "iu":
        labels = labels.astype(np.int64)
    return replace(mask, frames=(labels != 0).astype(np.uint8) if binary else labels)
