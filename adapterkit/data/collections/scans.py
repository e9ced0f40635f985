"""Loose NIfTI, MetaImage and DICOM images with their label maps, matched by name:

    images/a.nii.gz               or images/patient1/a.dcm, in subfolders for what belongs together
    images/ct1/0001.dcm, ...      a DICOM series, as one volume, where there is a mask ct1
    masks/a.nii.gz                or a_mask.nii.gz, a_seg.dcm, ..., of any kind, DICOM-SEG too

Volumes are taken slice by slice along an axis; a volume is a group. Frames of an image and of its
mask follow each other in the order of the files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adapterkit.data.collections.collection import (
    Collection,
    collection_format,
    group_of,
    without_suffix,
)
from adapterkit.data.collections.folders import holds_pictures
from adapterkit.data.collections.labels import BINARY, check_binary, counted_as
from adapterkit.data.collections.volumes import Volume, labels_of, slices
from adapterkit.data.files.images import by_name, find_images, is_dicom
from adapterkit.data.files.series import is_series
from adapterkit.data.image_file import DataError
from adapterkit.system.extras import require


def _recognises(path: Path) -> bool:
    folders = (path / "images", path / "masks")
    there = all(folder.is_dir() for folder in folders)
    return there and not all(holds_pictures(folder) for folder in folders)


@collection_format("scans", recognises=_recognises)
def open_scans(
    path: Path,
    images: Path | None = None,
    masks: Path | None = None,
    structures: Mapping[int, str] | None = None,
    leave_out: Sequence[int] = (),
    group: str | None = None,
    axis: int = 0,
) -> Collection:
    """The images in `path/images` with the label maps in `path/masks`, slice by slice.

    Args:
        path: the folder that holds the two.
        images: another folder than `path/images`.
        masks: another folder than `path/masks`.
        structures: labels from 1 to 255 and what they stand for; labels of one name are merged.
            None for the names in DICOM-SEG, or for binary masks, "foreground".
        leave_out: labels that count as background.
        group: a regular expression of what images that belong together share in their names. None:
            the subfolder, if images lie in some, else each volume for itself.
        axis: along which volumes are cut: 0 the order of frames, 1 rows, 2 columns.

    Raises:
        DataError: an image has no mask or a mask no image, two files share a name, masks hold
            several labels of which none has a name, or a file cannot be read or does not fit.
    """
    folders = (images or path / "images", masks or path / "masks")
    theirs = by_name(folders[1], find_images(folders[1]))
    theirs = {without_suffix(name): file for name, file in theirs.items()}
    there = _images(folders[0], theirs)
    unmatched = sorted(there.keys() ^ theirs.keys())
    if unmatched:
        name = unmatched[0]
        file, what, folder = (there[name], "mask", folders[1]) if name in there else (
            theirs[name], "image", folders[0])  # fmt: skip
        raise DataError(
            f"{file} has no {what} ({len(unmatched)} such files): expected one of the same name, "
            f"{name}, in {folder}."
        )
    if structures is None:
        structures = _named_in({there[name]: theirs[name] for name in there})
        if structures is None and leave_out:
            raise DataError("labels are left out, and none is named: give --structures too.")
    counts_as = None if structures is None else counted_as(structures, leave_out)
    volumes = [
        Volume(name, there[name], theirs[name], structures or BINARY, counts_as)
        for name in sorted(there)
    ]
    if structures is None:
        held = {float(label): each.mask for each in volumes for label in labels_of(each)}
        check_binary(held)
    records = slices(volumes, axis)
    return Collection(
        name=path.resolve().name,
        format="scans",
        records=tuple(records),
        groups=tuple(group_of(record.volume.name, group) for record in records),
    )


def _images(folder: Path, masks: Mapping[str, Path]) -> dict[str, Path]:
    """By name, the files in a folder, and of a series that has a mask its folder."""
    files = find_images(folder)
    series = {
        parent.relative_to(folder).as_posix(): parent
        for parent in {file.parent for file in files} - {folder}
        if parent.relative_to(folder).as_posix() in masks and is_series(parent)
    }
    alone = [file for file in files if file.parent not in series.values()]
    return by_name(folder, alone) | series


def _named_in(masks: Mapping[Path, Path]) -> dict[int, str] | None:
    """The labels and names of the segments, where all masks are DICOM-SEG."""
    named: dict[int, str] = {}
    for mask in masks.values():
        if not is_dicom(mask):
            return None
        try:
            require("dicom", "highdicom", "pydicom")
            from adapterkit.data.files.dicom_data_set import read_data_set

            segments = read_data_set(mask, with_pixels=False).SegmentSequence
            of_mask = {int(each.SegmentNumber): str(each.SegmentLabel) for each in segments}
        # pydicom raises what shares no narrower base for what is damaged or is no DICOM-SEG.
        except Exception as error:
            raise DataError(f"{mask} cannot be read as DICOM-SEG ({error}).") from error
        for label, name in of_mask.items():
            if named.setdefault(label, name) != name:
                raise DataError(
                    f"{mask} calls segment {label} {name!r}, and another mask calls it "
                    f"{named[label]!r}: expected one name; say which with --structures."
                )
    return dict(sorted(named.items()))
