"""Folders that are being annotated, as `adapterkit serve FOLDER` works on them:

    structures.json               {"structures": [{"label": 1, "name": "ventricle",
                                                   "colour": "#E69F00"}]}
    images/a.png, b.nii.gz        of any kind; or beside structures.json, without a folder images
    masks/a.png, b.nii.gz         a label map of each image that has been accepted

Images without a mask are not annotated yet, and left out. A structure with "left_out": true is no
longer wanted; its label counts as background. Sequences and volumes are taken frame by frame, and
are a group.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterkit.data.collections.collection import (
    Collection,
    collection_format,
    group_of,
    without_suffix,
)
from adapterkit.data.collections.labels import counted_as
from adapterkit.data.collections.volumes import Volume, slices
from adapterkit.data.files.images import by_name, find_images
from adapterkit.data.image_file import DataError

STRUCTURES = "structures.json"
"""The file that names the structures, and tells such a folder."""

MASKS = "masks"
"""The folder of the label maps."""


@dataclass(frozen=True)
class Structure:
    """What a label stands for.

    Attributes:
        label: in masks, from 1 to 255.
        name: of the structure.
        colour: as HTML writes it, "#E69F00"; "" for the palette's.
        left_out: whether it is no longer wanted, and its label counts as background.
    """

    label: int
    name: str
    colour: str = ""
    left_out: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of such a folder; `mask` is None where there is none yet."""

    name: str
    image: Path
    mask: Path | None


def read_structures(path: Path) -> tuple[Structure, ...]:
    """What a file structures.json names, by their labels.

    Raises:
        DataError: it cannot be read, or is not as above.
    """
    try:
        stated: Any = json.loads(path.read_text(encoding="utf-8-sig"))["structures"]
        found = [Structure(**each) for each in stated]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not as expected ({type(error).__name__}: {error}): expected "
            '{"structures": [{"label": 1, "name": "ventricle"}]}.'
        ) from error
    labels = [each.label for each in found]
    if not all(type(label) is int and 0 < label < 256 for label in labels):
        raise DataError(f"{path} has the labels {labels}: expected whole numbers from 1 to 255.")
    if len({*labels}) < len(labels) or not all(isinstance(each.name, str) for each in found):
        raise DataError(f"{path}: expected each label once, with a name.")
    return tuple(sorted(found, key=lambda each: each.label))


def find_annotated(path: Path) -> list[AnnotatedImage]:
    """The images of such a folder, with or without a mask, by their names.

    A mask has its image's name, or that with _mask, _seg, _label or _gt, and lies in the folder
    masks, or beside the image.

    Raises:
        DataError: there is no image, two share a name, or a mask has no image.
    """
    images, masks = path / "images", path / MASKS
    folder = images if images.is_dir() else path
    there = by_name(folder, (file for file in find_images(folder) if masks not in file.parents))
    theirs = by_name(masks, find_images(masks)) if _holds_files(masks) else {}
    for name in [name for name in there if without_suffix(name) != name]:
        if without_suffix(name) in there:
            theirs.setdefault(without_suffix(name), there.pop(name))
    theirs = {
        name if name in there else without_suffix(name): file for name, file in theirs.items()
    }
    strange = sorted(theirs.keys() - there.keys())
    if strange:
        raise DataError(
            f"{theirs[strange[0]]} belongs to no image ({len(strange)} such files): expected one "
            "label map of an image, under its name."
        )
    return [AnnotatedImage(name, there[name], theirs.get(name)) for name in sorted(there)]


@collection_format("annotated", recognises=lambda path: (path / STRUCTURES).is_file())
def open_annotated(
    path: Path,
    structures: Mapping[int, str] | None = None,
    leave_out: Sequence[int] = (),
    group: str | None = None,
    axis: int = 0,
) -> Collection:
    """The images of a folder that have been annotated so far.

    Args:
        path: the folder that holds structures.json.
        structures: other names than there; labels of one name are merged.
        leave_out: further labels that count as background.
        group: a regular expression of what images that belong together share in their names. None:
            the subfolder, if images lie in some, else each image for itself.
        axis: along which volumes are cut: 0 the order of frames, 1 rows, 2 columns.

    Raises:
        DataError: structures.json is not as expected or names no structure, no image has a mask,
            or a file cannot be read or does not fit.
    """
    stated = read_structures(path / STRUCTURES)
    gone = {*leave_out, *(each.label for each in stated if each.left_out)}
    named = {each.label: each.name for each in stated} | dict(structures or {})
    named = {label: name for label, name in named.items() if label not in gone}
    if not named:
        raise DataError(f"{path / STRUCTURES} names no structure: expected at least one.")
    counts_as = counted_as(named, sorted(gone))
    volumes = [
        Volume(each.name, each.image, each.mask, named, counts_as)
        for each in find_annotated(path)
        if each.mask is not None
    ]
    if not volumes:
        raise DataError(f"no image in {path} has a mask yet: accept some in `adapterkit serve`.")
    records = slices(volumes, axis)
    return Collection(
        name=path.resolve().name,
        format="annotated",
        records=tuple(records),
        groups=tuple(group_of(each.volume.name, group) for each in records),
    )


def _holds_files(folder: Path) -> bool:
    try:
        return bool(find_images(folder))
    except DataError:
        return False
