"""What becomes of masks: files to download, and measures."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from adapterkit.data.files.masks import write_masks
from adapterkit.data.image_file import ImageFile
from adapterkit.web.clinical import measure_heart
from adapterkit.web.workspace import Workspace


def opened(work: Workspace, name: str) -> ImageFile:
    """An image of a work list; KeyError where there is none."""
    if name not in work.worklist.images:
        raise KeyError(name)
    return work.worklist.read(name)


def endings(work: Workspace, name: str) -> list[str]:
    """Of the kinds of file that can hold the masks, the image's own first."""
    image = opened(work, name)
    found = [".nii.gz"]
    if len(image.frames) == 1:
        found.insert(image.nifti is not None, ".png")
    if image.dicom is not None:
        found.insert(0, ".dcm")
    return found


def mask_file(work: Workspace, name: str, ending: str) -> tuple[str, bytes]:
    """The masks of an image as they are now, as a file: its name and content.

    Raises:
        KeyError: there is no such image.
        ValueError: such a file cannot hold them, or the image cannot be read.
    """
    image, known = opened(work, name), endings(work, name)
    if ending not in known:
        raise ValueError(f"ending is {ending!r}: expected {', '.join(known)}")
    labels, named = work.labels(name), work.worklist.structures.names
    if ending == ".dcm":  # A segment for each structure, without gaps.
        number = np.zeros(256, np.uint8)
        number[list(named)] = np.arange(1, len(named) + 1)
        labels, names = number[labels], list(named.values())
    else:
        top = max([*named, int(labels.max(initial=0))])
        names = [named.get(label, f"label {label}") for label in range(1, top + 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{Path(name).name}_mask{ending}"
        write_masks(path, labels, image, names)
        return path.name, path.read_bytes()


def measured(work: Workspace, name: str) -> dict[str, Any]:
    """Areas of each structure in each frame, and what `measure_heart` gives.

    Raises:
        KeyError: there is no such image.
        ValueError: it cannot be read.
    """
    image, labels = opened(work, name), work.labels(name)
    pixel = None if image.spacing is None else image.spacing[0] * image.spacing[1]
    return {
        "frames": len(labels),
        "mm2_per_pixel": pixel,
        "areas": [
            {
                "structure": label,
                "name": structure,
                "pixels": (labels == label).sum(axis=(1, 2)).tolist(),
            }
            for label, structure in work.worklist.structures.names.items()
        ],
        **measure_heart(work, name),
    }
