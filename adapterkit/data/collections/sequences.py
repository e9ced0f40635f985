"""Sequences with masks in plain folders, matched by name; each frame is a record:

    images/a.dcm                  or a.nii.gz, a.mha, a.tif: a file of several frames
    images/b/0001.png, ...        or a folder of pictures, in the order of their names
    masks/a.nii.gz                or a_mask.nii.gz, ...: as many frames as the sequence has; one
                                  that is 255 in all pixels is not labelled
    masks/a/017.png               or a picture for each labelled frame: of a file of frames named by
    masks/b/0001.png              the number of the frame, from 0, of pictures as the picture is

A frame without a mask is not labelled, which is not the same as one whose mask is empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from adapterkit.data.collections.collection import Collection, collection_format, group_of
from adapterkit.data.collections.folders import read_mask, without_suffix
from adapterkit.data.collections.frames import Film, frames_of
from adapterkit.data.collections.labels import (
    BINARY,
    check_binary,
    counted_as,
    merged,
    relabelled,
)
from adapterkit.data.collections.volumes import read_pair
from adapterkit.data.files.images import find_images, is_picture, read_image, stem
from adapterkit.data.files.pictures import read_pages, read_picture
from adapterkit.data.image_file import DataError, Spacing

NOT_LABELLED = 255
"""What all pixels of a frame of a mask are that says nothing of that frame."""


@dataclass(frozen=True, eq=False)
class PlainCine:
    """A file of frames, or a folder of pictures, with its masks.

    Attributes:
        name: the file's or folder's, with subfolders.
        image: it.
        mask: a file of as many frames, or a folder of pictures.
        structures: the labels to segment, and what they stand for.
        counts_as: for each label that a mask may hold beside 0, the one of `structures` that it
            counts as, or 0; None: all that is not 0 is the first structure.
    """

    name: str
    image: Path
    mask: Path
    structures: Mapping[int, str]
    counts_as: Mapping[int, int] | None

    @property
    def attributes(self) -> Mapping[str, str]:
        return {}

    def read(self) -> Film:
        images, labels, spacing = self._files()
        there = _labelled(labels)
        known = labels * there[:, None, None]
        if self.counts_as is None:
            known = np.where(known != 0, next(iter(self.structures)), 0).astype(np.uint8)
        else:
            known = relabelled(known, self.counts_as, self.mask)
        return Film(images, known, spacing)

    def look(self) -> tuple[UInt8[np.ndarray, "T"], list[int]]:
        """Which frames are labelled, 1 or 0, and the labels that the masks hold beside 0."""
        labels = self._files()[1]
        there = _labelled(labels)
        return there, [int(each) for each in np.unique(labels[there > 0]) if each]

    def _files(self) -> tuple[np.ndarray, np.ndarray, Spacing | None]:
        if self.image.is_file() and self.mask.is_file():
            images, labels, sides = read_pair(self.image, self.mask)
            return images, labels, None if sides is None else sides[1:]
        spacing: Spacing | None = None
        if self.image.is_dir():
            files = find_images(self.image)
            images = _stacked(files)
            names = [file.stem for file in files]
        else:
            shown = read_image(self.image)
            images, spacing = shown.frames, shown.spacing
            names = [str(index) for index in range(len(images))]
        if self.mask.is_file():
            return images, _masks_of_file(self.mask, images.shape), spacing
        return images, self._masks_of_folder(names, images.shape), spacing

    def _masks_of_folder(self, names: Sequence[str], shape: Sequence[int]) -> np.ndarray:
        labels = np.full(shape[:3], NOT_LABELLED, np.int64)
        place = {name: index for index, name in enumerate(names)}
        for file in find_images(self.mask):
            name = without_suffix(file.stem)
            name = str(int(name)) if self.image.is_file() and name.isdecimal() else name
            if name not in place:
                raise DataError(
                    f"{file} is of no frame of {self.image}: expected one of {names[0]} to "
                    f"{names[-1]}."
                )
            mask = read_mask(file, binary=self.counts_as is None)
            if mask.shape != shape[1:3]:
                raise DataError(
                    f"{file} is {mask.shape[0]} x {mask.shape[1]} (rows x columns) but "
                    f"{self.image} is {shape[1]} x {shape[2]}: expected the same size."
                )
            labels[place[name]] = mask
        return labels


def _labelled(labels: np.ndarray) -> UInt8[np.ndarray, "T"]:
    return (labels != NOT_LABELLED).any(axis=(1, 2)).astype(np.uint8)


def _stacked(files: Sequence[Path]) -> np.ndarray:
    pictures = [read_picture(file) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise DataError(
                f"{file} has the shape {picture.shape}, and {files[0]} has {pictures[0].shape}: "
                "expected frames of one size, all grey or all in colour."
            )
    return np.stack(pictures)


def _masks_of_file(mask: Path, shape: Sequence[int]) -> np.ndarray:
    from adapterkit.data.files.label_maps import read_label_map

    labels = read_label_map(mask).frames
    if labels.shape != tuple(shape[:3]):
        raise DataError(
            f"{mask} is {' x '.join(map(str, labels.shape))}, and its sequence is "
            f"{' x '.join(map(str, shape[:3]))}: expected the same size."
        )
    return labels


@collection_format("sequences", recognises=lambda path: False)
def open_sequences(
    path: Path,
    images: Path | None = None,
    masks: Path | None = None,
    structures: Mapping[int, str] | None = None,
    leave_out: Sequence[int] = (),
    group: str | None = None,
) -> Collection:
    """The sequences in `path/images` with the masks in `path/masks`, frame by frame.

    Args:
        path: the folder that holds the two.
        images: another folder than `path/images`.
        masks: another folder than `path/masks`.
        structures: labels from 1 to 254 and what they stand for; labels of one name are merged.
            None for binary masks, "foreground".
        leave_out: labels that count as background.
        group: a regular expression of what sequences that belong together share in their names.
            None: the subfolder, if sequences lie in some, else each for itself.

    Raises:
        DataError: a sequence has no mask or a mask no sequence, masks hold several labels of which
            none has a name, or a file cannot be read or does not fit.
    """
    there = _entries(images or path / "images")
    theirs = {without_suffix(name): file for name, file in _masks(masks or path / "masks", there)}
    unmatched = sorted(there.keys() ^ theirs.keys())
    if unmatched:
        name = unmatched[0]
        what = "mask" if name in there else "sequence"
        raise DataError(
            f"{there.get(name) or theirs[name]} has no {what} ({len(unmatched)} such): expected "
            f"one of the same name, {name}."
        )
    if structures is None and leave_out:
        raise DataError("labels are left out, and none is named: give --structures too.")
    counts_as = None if structures is None else counted_as(structures, leave_out)
    named = merged(structures or BINARY)
    cines = [PlainCine(name, there[name], theirs[name], named, counts_as) for name in sorted(there)]
    looks = [cine.look() for cine in cines]
    if structures is None:
        check_binary(
            {float(v): c.mask for c, (_, held) in zip(cines, looks, strict=True) for v in held}
        )
    records = [
        frame
        for cine, (labelled, _) in zip(cines, looks, strict=True)
        for frame in frames_of(cine, [bool(each) for each in labelled])
    ]
    return Collection(
        name=path.resolve().name,
        format="sequences",
        records=tuple(records),
        groups=tuple(group_of(record.cine.name, group) for record in records),
    )


def _entries(folder: Path) -> dict[str, Path]:
    """The sequences in a folder, by name: files of frames, and folders of pictures."""
    found: dict[str, Path] = {}
    for file in find_images(folder):
        entry = file
        if file.parent != folder and is_picture(file) and len(read_pages(file)) == 1:
            entry = file.parent
        name = entry.relative_to(folder).as_posix() if entry.is_dir() else _name(file, folder)
        if found.setdefault(name, entry) != entry:
            raise DataError(
                f"{name} is listed twice, as {found[name]} and as {entry.name}: expected one "
                "sequence of a name."
            )
    return found


def _masks(folder: Path, sequences: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """Names and files of masks, or folders where they lie in one that is named as a sequence is."""
    found = {}
    for file in find_images(folder):
        above = file.parent.relative_to(folder).as_posix()
        entry = file.parent if without_suffix(above) in sequences else file
        found[entry] = above if entry.is_dir() else _name(file, folder)
    return [(name, entry) for entry, name in found.items()]


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_name(stem(file.name)).as_posix()
