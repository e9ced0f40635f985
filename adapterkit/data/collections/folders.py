"""Images with masks in plain folders, matched by the name without its ending:

    images/a.png                  or images/patient1/a.png, in subfolders for what belongs together
    masks/a.png                   or a_mask.png, a_seg.png, a_label.png, a_gt.png
    masks/a_lv.png, a_la.png      or one binary mask for each structure

or all in one folder, as a.png with a_mask.png; or as patterns say, "raw/{name}/photo.png" and
"raw/{name}/truth.png". They are pictures: PNG, JPEG, TIFF and others. A mask is binary (all that is
not 0), a label map, or coded by colours.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from adapterkit.data.collections.collection import (
    Collection,
    collection_format,
    group_of,
    without_suffix,
)
from adapterkit.data.collections.labels import (
    BINARY,
    Colour,
    check_binary,
    counted_as,
    merged,
    relabelled,
)
from adapterkit.data.dataset import LabelledImage
from adapterkit.data.files.images import find_images, is_picture
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.files.pictures import read_picture
from adapterkit.data.image_file import DataError
from adapterkit.system.pages import see

_JPEG = (".jpg", ".jpeg")
_ENDINGS = (".png", ".tif", ".tiff", *_JPEG)


@dataclass(frozen=True)
class Pair:
    """An image file and its mask, in one file or in one for each structure: a record."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    """A label map or binary mask; or, for several structures, the binary mask of each in order. A
    structure without a file is absent."""
    structures: Mapping[int, str]
    """The labels to segment and what they stand for."""
    labels: Mapping[int, int] | None
    """For each label that a label map may hold beside 0, the one of `structures` that it counts
    as, or 0. None for binary masks, whose foreground is all that is not 0; in a JPEG, whose
    compression blurs edges, all above 127."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    structures_of_masks: tuple[int, ...] = (1,)
    """The label of each file in `masks`, where they are binary."""
    colours: Mapping[Colour, int] | None = None
    """The label of each colour of a colour-coded mask, of which black is background."""

    def read(self) -> LabelledImage:
        """The image in the file's own values, and its label map; the spacing is not known.

        Raises `DataError`, naming the file, where one cannot be read, the two differ in size, the
        mask is in colour or holds an unknown label, or a label map is a JPEG.
        """
        image = read_picture(self.image)
        labels = np.zeros(image.shape[:2], np.uint8)
        for path, label in zip(self.masks, self.structures_of_masks, strict=True):
            mask = self._read_mask(path, image.shape[:2])
            labels = np.where(mask > 0, mask if self.labels is not None else label, labels)
        return LabelledImage(image, labels.astype(np.uint8), spacing=None)

    def _read_mask(self, path: Path, size: tuple[int, ...]) -> UInt8[np.ndarray, "H W"]:
        if self.colours is not None:
            mask = read_coded(path, self.colours)
        else:
            mask = read_mask(path, binary=self.labels is None)
        if mask.shape != size:
            raise DataError(
                f"{path} is {mask.shape[0]} x {mask.shape[1]} (rows x columns) but its image "
                f"{self.image} is {size[0]} x {size[1]}: expected the same size."
            )
        if self.labels is None:
            return (mask > 0).astype(np.uint8)
        return relabelled(mask, self.labels, path)


def read_mask(path: Path, binary: bool = False) -> Integer[np.ndarray, "H W"]:
    """The label map of a mask file, as `read_label_map` reads it.

    Raises `DataError`, naming the file, where it cannot be read or holds several.
    """
    maps = read_label_map(path, binary).frames
    if len(maps) != 1:
        raise DataError(f"{path} holds {len(maps)} label maps: expected one.")
    return maps[0]


def read_coded(path: Path, colours: Mapping[Colour, int]) -> np.ndarray:
    """The label map, (H, W), that a mask's colours stand for; black is background.

    Raises `DataError`, naming the file, where it cannot be read or has another colour.
    """
    picture = read_picture(path)
    rgb = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1)
    labels = np.zeros(rgb.shape[:2], np.uint8)
    known = (rgb == 0).all(axis=-1)
    for colour, label in colours.items():
        here = (rgb == colour).all(axis=-1)
        labels[here] = label
        known |= here
    if not known.all():
        first = rgb[~known][0]
        raise DataError(
            f"{path} has the colour {','.join(map(str, first))} (red, green, blue) in "
            f"{(~known).sum()} pixels: expected black or "
            f"{' or '.join(','.join(map(str, each)) for each in colours)}; name it in --colours."
        )
    return labels


def holds_pictures(folder: Path) -> bool:
    """Whether the first image of a folder is a picture; also where there is none."""
    try:
        return is_picture(find_images(folder)[0])
    except DataError:
        return True


def _recognises(path: Path) -> bool:
    folders = (path / "images", path / "masks")
    if all(folder.is_dir() for folder in folders):
        return all(holds_pictures(folder) for folder in folders)
    return path.is_dir() and any(
        without_suffix(each.stem) != each.stem and each.suffix.lower() in _ENDINGS
        for each in path.iterdir()
    )


@collection_format("folders", recognises=_recognises)
def open_folders(
    path: Path,
    images: Path | None = None,
    masks: Path | None = None,
    structures: Mapping[int, str] | None = None,
    leave_out: Sequence[int] = (),
    group: str | None = None,
    colours: Mapping[Colour, str] | None = None,
) -> Collection:
    """The data set in `path/images` and `path/masks`, or in `path` where it has neither.

    Args:
        path: the folder that holds the two.
        images: another folder than `path/images`, or a pattern of the images' paths, in which
            "{name}" stands for what an image and its mask share.
        masks: another folder than `path/masks`, or a pattern.
        structures: labels from 1 to 255 of label maps and what they stand for; labels of one name
            are merged. None for binary masks, "foreground", or one mask for each structure, named
            by what its file name adds.
        leave_out: labels that count as background.
        group: a regular expression; what it finds in an image's name, or what its first group
            does, is what images that belong together share. None: the subfolder, if images lie in
            some, else each image for itself.
        colours: of masks that are coded by colours, and what they stand for.

    Raises:
        DataError: as `find_pairs`; or masks hold several labels and `structures` names none, or
            `group` finds nothing in a name.
    """
    if images is None and masks is None and not (path / "images").is_dir():
        images = masks = path
    if colours is not None:
        if structures is not None or leave_out:
            raise DataError("colours name the structures: give no labels beside --colours.")
        structures = dict(enumerate(dict.fromkeys(colours.values()), start=1))
        label_of = {name: label for label, name in structures.items()}
        coded = {colour: label_of[name] for colour, name in colours.items()}
        pairs = find_pairs(path, structures, images, masks)
        pairs = [replace(pair, colours=coded) for pair in pairs]
    else:
        pairs = find_pairs(path, structures, images, masks, leave_out)
        if structures is None:
            check_binary_masks(pairs)
    return Collection(
        name=path.resolve().name,
        format="folders",
        records=tuple(pairs),
        groups=tuple(group_of(pair.name, group) for pair in pairs),
    )


def check_binary_masks(pairs: Sequence[Pair]) -> None:
    """Raises `DataError` where masks that are taken as binary hold several values beside 0."""
    values: dict[float, Path] = {}
    for path in (path for pair in pairs for path in pair.masks):
        if path.suffix.lower() not in _JPEG:
            values |= {value: path for value in np.unique(read_mask(path)) if value != 0}
    check_binary(values)


def find_pairs(
    root: Path,
    structures: Mapping[int, str] | None = None,
    images: Path | None = None,
    masks: Path | None = None,
    leave_out: Sequence[int] = (),
) -> list[Pair]:
    """The images in `root/images` with their masks in `root/masks`, sorted by name.

    Files of other kinds are left out.

    Args:
        root: the folder that holds the two.
        structures: as in `open_folders`.
        images: another folder than `root/images`, or a pattern, as in `open_folders`.
        masks: another folder than `root/masks`, or a pattern.
        leave_out: labels that count as background.

    Raises:
        DataError: a folder is missing or holds no picture, an image has no mask or a mask no
            image, two files of a folder share a name, or a label is out of range.
    """
    root = Path(root)
    if structures is None and leave_out:
        raise DataError("labels are left out, and none is named: give --structures too.")
    labels = None if structures is None else counted_as(structures, leave_out)
    folders = (images or root / "images", masks or root / "masks")
    there, theirs = (_pictures(folder) for folder in folders)
    if folders[0].resolve() == folders[1].resolve() and not _is_pattern(folders[0]):
        theirs = {name: path for name, path in there.items() if without_suffix(name) != name}
        there = {name: path for name, path in there.items() if name not in theirs}
    matched = _matched(there, theirs)
    unmatched = sorted(name for name in there if not matched[name])
    if unmatched:
        raise DataError(
            f"{there[unmatched[0]]} has no mask ({len(unmatched)} such files): expected a picture "
            f"of the same name, {unmatched[0]}, in {folders[1]}; {see('own_data.md', 'folders')}."
        )
    used = {path for found in matched.values() for path in found.values()}
    unused = sorted(path for path in theirs.values() if path not in used)
    if unused:
        raise DataError(
            f"{unused[0]} has no image ({len(unused)} such files): expected a picture of the same "
            f"name, {unused[0].stem}, in {folders[0]}; {see('own_data.md', 'folders')}."
        )
    names = sorted({what for found in matched.values() for what in found if what})
    if names and labels is not None:
        raise DataError(
            f"{folders[1]} has one mask for each of {', '.join(names)}, which name the structures: "
            "give no --structures, or one label map for each image."
        )
    named = dict(enumerate(names, start=1)) if names else structures or BINARY
    return [
        _pair(name, there[name], matched[name], merged(named), labels) for name in sorted(there)
    ]


def _pair(
    name: str,
    image: Path,
    masks: Mapping[str, Path],
    structures: Mapping[int, str],
    labels: Mapping[int, int] | None,
) -> Pair:
    label_of = {what: label for label, what in structures.items()}
    files = {path: label_of.get(what, 1) for what, path in masks.items()}
    return Pair(
        name,
        image,
        tuple(files),
        structures,
        labels,
        structures_of_masks=tuple(files.values()),
    )


def _is_pattern(path: Path) -> bool:
    return "{name}" in str(path)


def _matching(pattern: Path) -> dict[str, Path]:
    """The files of a pattern, by what its {name} stands for, subfolders too."""
    first = next(n for n, part in enumerate(pattern.parts) if "{name}" in part)
    root = Path(*pattern.parts[:first])
    rest = re.escape(Path(*pattern.parts[first:]).as_posix())
    before, *others = rest.split(re.escape("{name}"))
    form = re.compile(before + "(?P<name>.+)" + "(?P=name)".join(others))
    found = {}
    for path in sorted(root.rglob("*")) if root.is_dir() else ():
        match = form.fullmatch(path.relative_to(root).as_posix())
        if match and path.is_file():
            found[match["name"]] = path
    if not found:
        raise DataError(f"{pattern} fits no file: expected some, with {{name}} for their names.")
    return found


def _pictures(folder: Path) -> dict[str, Path]:
    if _is_pattern(folder):
        return _matching(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: expected folders images and masks in {folder.parent}."
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() not in _ENDINGS or hidden:
            continue
        name = inside.with_suffix("").as_posix()
        if name in found:
            raise DataError(
                f"{name} is listed twice, as {found[name]} and as {path.name}: expected one "
                "picture of a name."
            )
        found[name] = path
    if not found:
        raise DataError(f"{folder} holds no picture: expected files ending in {_or(_ENDINGS)}.")
    return found


def _matched(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """For each image its masks, by what their names add to the image's: nothing, or a structure."""
    matched: dict[str, dict[str, Path]] = {name: {} for name in images}
    for name, path in masks.items():
        plain = without_suffix(name)
        if name in images or plain in images:
            matched[name if name in images else plain][""] = path
            continue
        # The longest image's name that it begins with, so that "a_1_lv" is not of image "a".
        parts = re.split(r"(?=[_-])", plain)
        begins = ("".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
        of = next((each for each in begins if each in images), None)
        if of is not None:
            matched[of][plain[len(of) + 1 :]] = path
    return matched


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
