"""DICOM series: a folder of files of one slice each, in their order in the body."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adapterkit.data.files.image_file import DataError, ImageFile, check_size, unreadable
from adapterkit.data.files.images import is_dicom, read_image


def is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files, and no other."""
    files = [each for each in folder.iterdir() if not each.name.startswith(".")]
    return bool(files) and all(each.is_file() and is_dicom(each) for each in files)


def read_series(folder: Path) -> tuple[ImageFile, list[str]]:
    """The slices of a series as one volume, and their SOP instance UIDs.

    They follow each other along their normal, from the right, front or feet; without places in the
    patient, by their instance numbers.

    Raises:
        DataError: a file cannot be read, or is no single slice, or they differ in size, direction
            or series.
    """
    files = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    slices = [read_image(each) for each in files]
    first = slices[0]
    for each in slices:
        one = each.dicom is not None and len(each.frames) == 1
        alike = one and each.frames.shape == first.frames.shape
        if not alike or not np.allclose(each.affine[:3, :2], first.affine[:3, :2], atol=1e-4):
            raise DataError(
                f"{each.path} is no slice of the series in {folder}, as {first.path.name} is: "
                "expected one frame of the same size and direction; give each series a folder."
            )
    series = {str(each.dicom.get("SeriesInstanceUID")) for each in slices if each.dicom}
    if len(series) > 1:
        raise DataError(f"{folder} holds {len(series)} series: expected one in each folder.")
    normal = np.cross(first.affine[:3, 0], first.affine[:3, 1])
    normal = normal / np.linalg.norm(normal)
    # As in files of volumes: from the feet to the head.
    normal = normal * np.sign(normal[np.abs(normal).argmax()])
    places = [float(normal @ each.affine[:3, 3]) for each in slices]
    if np.ptp(places) < 1e-6:
        places = [float(each.dicom.get("InstanceNumber") or 0) for each in slices if each.dicom]
    order = np.argsort(places, kind="stable")
    slices = [slices[index] for index in order]
    check_size((len(slices), *first.frames.shape[1:]), folder)
    affine = slices[0].affine.copy()
    if len(slices) > 1:
        step = slices[1].affine[:3, 3] - slices[0].affine[:3, 3]
        affine[:3, 2] = step if step.any() else affine[:3, 2]
    frames = np.concatenate([each.frames for each in slices])
    volume = replace(slices[0], path=folder, frames=frames, affine=affine)
    return volume, [str(each.dicom.SOPInstanceUID) for each in slices if each.dicom]


def read_series_labels(path: Path, instances: Sequence[str]) -> np.ndarray:
    """The label maps of a DICOM-SEG, for the slices of the series that it refers to.

    Args:
        path: of the DICOM-SEG.
        instances: SOP instance UIDs of the slices; those that it does not refer to are background.

    Raises:
        DataError: it is none, refers to none of them, or its segments overlap.
    """
    from highdicom.seg import segread

    try:
        found = segread(path)
        labels = found.get_pixels_by_source_instance(
            list(instances),
            combine_segments=True,
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )
    # highdicom raises what shares no narrower base.
    except Exception as error:
        raise unreadable(path, "DICOM-SEG of its series", error) from error
    return labels
