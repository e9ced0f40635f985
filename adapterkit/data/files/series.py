"""DICOM series: files of one slice each, in their order in the body."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adapterkit.data.files.images import is_dicom, read_image
from adapterkit.data.image_file import (
    DataError,
    ImageFile,
    check_size,
    slice_axis,
    unreadable,
)


def is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files, and no other."""
    files = files_of(folder)
    return bool(files) and all(each.is_file() and is_dicom(each) for each in files)


def files_of(folder: Path) -> list[Path]:
    """The slices in the folder of a series."""
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def find_series(files: Sequence[Path]) -> list[list[Path]]:
    """Those of the files that are slices of one volume: at least two of a folder, each.

    They are of one DICOM series, with one frame each, of the same size and direction. Ultrasound
    stills of a series that state no place in the patient are images of their own.
    """
    found: dict[Any, list[Path]] = defaultdict(list)
    for path in files:
        key = _volume_of(path)
        if key is not None:
            found[path.parent, *key].append(path)
    return [sorted(slices) for slices in found.values() if len(slices) > 1]


def _volume_of(path: Path) -> tuple[Any, ...] | None:
    """What the slices of a volume share; None for what is no slice, or cannot be read."""
    try:
        if not is_dicom(path):
            return None
        from adapterkit.data.files.dicom_data_set import read_data_set

        slice = read_data_set(path, with_pixels=False)
        series, direction = slice.get("SeriesInstanceUID"), slice.get("ImageOrientationPatient")
        kind = slice.get("Modality")
        alone = kind == "SEG" or (kind == "US" and not direction)
        if alone or not series or (slice.get("NumberOfFrames") or 1) > 1:
            return None
        rounded = None if not direction else tuple(round(float(each), 3) for each in direction)
        return str(series), slice.Rows, slice.Columns, slice.get("SamplesPerPixel"), rounded
    # Reading it as an image will say what is wrong with it, a missing pydicom too, whose own errors
    # share no base.
    except Exception:
        return None


def read_series(files: Sequence[Path], path: Path) -> ImageFile:
    """The slices of a series as one volume, with their data sets as its `series`.

    They follow each other along their normal, from the right, front or feet; without places in the
    patient, by their instance numbers.

    Args:
        files: of the slices, in any order.
        path: what the volume is called: their folder, say.

    Raises:
        DataError: a file cannot be read, or is no single slice, or they differ in size, direction
            or series.
    """
    slices = [read_image(each) for each in sorted(files)]
    first = slices[0]
    for each in slices:
        one = each.dicom is not None and len(each.frames) == 1
        alike = one and each.frames.shape == first.frames.shape
        if not alike or not np.allclose(each.affine[:3, :2], first.affine[:3, :2], atol=1e-4):
            raise DataError(
                f"{each.path} is no slice of the series in {path}, as {first.path.name} is: "
                "expected one frame of the same size and direction; give each series a folder."
            )
    unlike = {str(each.dicom.get("SeriesInstanceUID")) for each in slices if each.dicom}
    if len(unlike) > 1:
        raise DataError(f"{path} holds {len(unlike)} series: expected one in each folder.")
    normal = slice_axis(first.affine[:3, 0], first.affine[:3, 1])
    places = [float(normal @ each.affine[:3, 3]) for each in slices]
    if np.ptp(places) < 1e-6:
        places = [float(each.dicom.get("InstanceNumber") or 0) for each in slices if each.dicom]
    order = np.argsort(places, kind="stable")
    slices = [slices[index] for index in order]
    check_size((len(slices), *first.frames.shape[1:]), path)
    affine = slices[0].affine.copy()
    if len(slices) > 1:
        step = slices[1].affine[:3, 3] - slices[0].affine[:3, 3]
        affine[:3, 2] = step if step.any() else affine[:3, 2]
    frames = np.concatenate([each.frames for each in slices])
    series = tuple(each.dicom for each in slices if each.dicom is not None)
    return replace(slices[0], path=path, frames=frames, affine=affine, series=series)


def read_series_labels(path: Path, instances: Sequence[str]) -> np.ndarray:
    """The label maps of a DICOM-SEG, for the slices of the series that it refers to.

    Args:
        path: of the DICOM-SEG.
        instances: SOP instance UIDs of the slices; those that it does not refer to are background.

    Raises:
        DataError: it is none, refers to none of them, or its segments overlap.
    """
    from highdicom.seg import Segmentation

    from adapterkit.data.files.dicom_data_set import read_data_set

    try:
        found = Segmentation.from_dataset(read_data_set(path), copy=False)
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
