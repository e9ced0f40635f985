"""Images with masks in plain folders, matched by the name without its ending.

They are PNG, JPEG and TIFF, of 8 or 16 bits:

    images/a.png
    masks/a.png                   a label map, or a binary mask
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adapterkit.data.dataset import LabelledImage
from adapterkit.data.files.image_file import DataError
from adapterkit.data.files.images import read_picture

_JPEG = (".jpg", ".jpeg")
_ENDINGS = (".png", ".tif", ".tiff", *_JPEG)
_BINARY = {1: "foreground"}


@dataclass(frozen=True)
class Pair:
    """An image file and the file of its label map: a record of `SegmentationDataset`."""

    name: str
    image: Path
    mask: Path
    structures: Mapping[int, str]
    """The labels to segment and what they stand for."""
    labels: tuple[int, ...] | None
    """All labels that the mask may hold beside 0. None for a binary mask, whose foreground, label
    1, is all that is not 0; in a JPEG, whose compression blurs edges, all above 127."""
    attributes: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> LabelledImage:
        """The image in the file's own values, and its label map; the spacing is not known.

        Raises `DataError`, naming the file, where one cannot be read, the two differ in size, the
        mask is in colour or holds an unknown label, or a label map is a JPEG.
        """
        image, mask = read_picture(self.image), read_picture(self.mask, indexed=True)
        if mask.ndim == 3 and (mask == mask[..., :1]).all():
            mask = mask[..., 0]
        if mask.ndim == 3:
            raise DataError(
                f"{self.mask} is in colour: expected grey values or palette indices as labels."
            )
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"{self.mask} is {mask.shape[0]} x {mask.shape[1]} (rows x columns) but its image "
                f"{self.image} is {image.shape[0]} x {image.shape[1]}: expected the same size."
            )
        lossy = self.mask.suffix.lower() in _JPEG
        if self.labels is None:
            mask = mask > (127 if lossy else 0)
        elif lossy:
            raise DataError(
                f"{self.mask} is a JPEG, whose compression changes labels: save it as PNG or TIFF."
            )
        elif not np.isin(found := np.unique(mask), [0, *self.labels]).all():
            listed = ", ".join(f"{value:g}" for value in found[:10])
            raise DataError(
                f"{self.mask} holds the labels {listed}{', ...' if len(found) > 10 else ''}: "
                f"expected only 0 (background), {', '.join(map(str, self.labels))}."
            )
        return LabelledImage(image, mask.astype(np.uint8), spacing=None)


def find_pairs(root: Path, structures: Mapping[int, str] | None = None) -> list[Pair]:
    """The images in `root/images` with their masks in `root/masks`, sorted by name.

    Files of other kinds and subfolders are left out.

    Args:
        root: the folder that holds the two.
        structures: labels from 1 to 255 and what they stand for. None for binary masks, of one
            structure, "foreground".

    Raises:
        DataError: a folder is missing or holds no picture, an image has no mask or a mask no
            image, two files of a folder share a name, or a label is out of range.
    """
    root = Path(root)
    if structures is not None and not (structures and all(0 < label < 256 for label in structures)):
        raise DataError(
            f"structures is {dict(structures)}: expected at least one label, each from 1 to 255."
        )
    images, masks = _pictures(root / "images"), _pictures(root / "masks")
    unmatched = sorted(images.keys() ^ masks.keys())
    if unmatched:
        there = images.get(unmatched[0]) or masks[unmatched[0]]
        missing, folder = ("mask", "masks") if unmatched[0] in images else ("image", "images")
        raise DataError(
            f"{there} has no {missing} ({len(unmatched)} such files): expected a picture of the "
            f"same name, {unmatched[0]}, in {root / folder}."
        )
    labels = None if structures is None else tuple(structures)
    return [
        Pair(name, images[name], masks[name], structures or _BINARY, labels)
        for name in sorted(images)
    ]


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: expected folders images and masks in {folder.parent}."
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _ENDINGS or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                f"{path.stem} is listed twice, as {found[path.stem]} and as {path.name}: expected "
                "one picture of a name."
            )
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder} holds no picture: expected files ending in {_or(_ENDINGS)}.")
    return found


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
