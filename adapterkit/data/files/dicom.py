"""DICOM files as images: pixels as they are meant to be seen, their size, and where they lie.

Needs pydicom, which comes with `adapterkit[dicom]`. Lossless JPEG needs python-gdcm too, which is
used for nothing else: of damaged files, it makes up pixels or ends the process.

Source: DICOM PS3.3, C.7.6.3 (Image Pixel), C.8.5.5 (US Region Calibration), C.11.1 and C.11.2
(Modality LUT and VOI LUT).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Real
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_windowing
from pydicom.pixels.utils import pixel_array

from adapterkit.data.files.dicom_data_set import read_data_set
from adapterkit.data.image_file import (
    DataError,
    ImageFile,
    Spacing,
    check_finite,
    check_size,
    check_spacing,
    right_front_top,
    unreadable,
)

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_FUNCTIONAL_GROUPS = (
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
)
_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3


def read_dicom(path: str | Path) -> ImageFile:
    """The frames of a DICOM file, in the file's order.

    Grey values come out of the modality transformation (rescale slope and intercept, or table) and,
    where there is one, of the first window or VOI table, which maps them to [0, 255], as uint8.
    MONOCHROME1 is inverted, so that white is high. Colour (RGB, YBR_*, palette) is RGB in
    [0, 255], as uint8.

    The spacing is the first of these that the file states: Pixel Spacing, of the largest calibrated
    2-D region of an ultrasound image, at the detector (Imager Pixel Spacing), or of what was
    scanned (Nominal Scanned Pixel Spacing).

    Raises:
        DataError: the file is no DICOM file, damaged or cut short, has no pixels, or states a
            spacing that is not finite and positive; the message names it.
    """
    path = Path(path)
    try:
        dataset = read_data_set(path)
        found = any(keyword in dataset for keyword in _PIXELS)
        kind = getattr(dataset.get("SOPClassUID"), "name", "of unknown kind")
    # Damaged files make pydicom raise exceptions that share no narrower base.
    except Exception as error:
        raise unreadable(path, "DICOM", error) from error
    if not found:
        raise DataError(f"{path} is a DICOM file without pixels ({kind}): expected an image.")
    try:
        parts = ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel")
        check_size([dataset.get(part) or 1 for part in parts], path)
        plugin = _decoding_plugin(dataset, path)
        frames = _displayed(dataset, plugin)
        spacing = _spacing(dataset)
        affine = _affine(dataset, spacing, len(frames))
    except DataError:
        raise
    except Exception as error:
        syntax = getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "of unknown syntax")
        raise unreadable(path, f"a DICOM image ({syntax})", error) from error
    if spacing is not None:
        check_spacing(spacing, path)
    check_finite(frames, path)
    for keyword in _PIXELS:
        dataset.pop(keyword, None)
    return ImageFile(path, frames, spacing, affine, dicom=dataset)


def _decoding_plugin(dataset: Dataset, path: Path) -> str:
    """What shall decode compressed pixels; "" for pydicom's own choice."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or not syntax.is_encapsulated:
        return ""
    plugins = sorted(get_decoder(syntax).available_plugins, key=lambda name: name == "gdcm")
    if not plugins:
        raise DataError(
            f"{path} is compressed ({syntax.name}), and no decoder for that is installed: pip "
            "install python-gdcm, which has one for lossless JPEG, or have it written uncompressed."
        )
    return plugins[0]


def _displayed(dataset: Dataset, plugin: str) -> Real[np.ndarray, "T H W *rgb"]:
    photometric = dataset.PhotometricInterpretation
    # pydicom converts YBR_* to RGB.
    stored = pixel_array(dataset, decoding_plugin=plugin)
    if dataset.get("NumberOfFrames") in (None, 0, 1):
        stored = stored[None]
    if photometric in _GREY:
        return np.stack([_grey(frame, _transform(dataset, t)) for t, frame in enumerate(stored)])
    bits = dataset.BitsStored
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)[..., :3]
        bits = 8 * stored.dtype.itemsize
    if stored.ndim != 4 or stored.shape[-1] != 3 or stored.dtype.kind != "u":
        raise ValueError(f"an array of shape {stored.shape} for colour {photometric}")
    return stored if bits <= 8 else (stored >> (bits - 8)).astype(np.uint8)


def _grey(stored: Real[np.ndarray, "H W"], transform: Dataset) -> Real[np.ndarray, "H W"]:
    values = _rescaled(stored, transform)
    if "WindowCenter" in transform:
        # What lies far outside of the window gives the ends of pydicom's output range.
        black, white = apply_windowing(np.array([-1e12, 1e12]), transform)
        values = (apply_windowing(values, transform) - black) * (255 / (white - black))
        ends = 0, 255
    elif "VOILUTSequence" in transform:
        found, white = _look_up(values, transform.VOILUTSequence[0], transform)
        values = found * (255 / white)
        ends = 0, 255
    else:
        ends = _rescaled(_ends(stored, transform), transform)
    if transform.PhotometricInterpretation == "MONOCHROME1":
        values = float(ends[0]) + float(ends[1]) - values
    if isinstance(ends, tuple):
        return np.rint(values).astype(np.uint8)
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _rescaled(stored: Real[np.ndarray, "*any"], transform: Dataset) -> Real[np.ndarray, "*any"]:
    if "ModalityLUTSequence" in transform:
        return _look_up(stored, transform.ModalityLUTSequence[0], transform)[0]
    if "RescaleSlope" not in transform and "RescaleIntercept" not in transform:
        return stored
    slope, intercept = transform.get("RescaleSlope", 1), transform.get("RescaleIntercept", 0)
    return stored * float(slope) + float(intercept)


def _look_up(
    values: Real[np.ndarray, "*any"], item: Dataset, transform: Dataset
) -> tuple[Real[np.ndarray, "*any"], int]:
    """What a table says of the values, and the highest value that its entries can have.

    pydicom's `apply_voi` wraps around where entries have 8 bits and values more.
    """
    count, first, bits = item.LUTDescriptor
    table = item.LUTData
    if isinstance(table, bytes):
        order = "<" if transform.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(table, "u1" if len(table) in (count, count + 1) else f"{order}u2")
    table = np.asarray(table)[: count or 2**16]
    # Values outside of the table have those of its ends.
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index], 2**bits - 1


def _ends(stored: Real[np.ndarray, "H W"], transform: Dataset) -> Real[np.ndarray, "2"]:
    """The lowest and the highest value that can be stored."""
    if stored.dtype.kind == "f":
        return np.array([stored.min(), stored.max()])
    bits = transform.BitsStored
    lowest = -(2 ** (bits - 1)) if transform.PixelRepresentation else 0
    return np.array([lowest, lowest + 2**bits - 1])


def _transform(dataset: Dataset, frame: int) -> Dataset:
    """All that turns a frame's stored values into those to be seen, wherever the file states it."""
    keywords = (
        "PhotometricInterpretation",
        "BitsStored",
        "PixelRepresentation",
        "RescaleSlope",
        "RescaleIntercept",
        "ModalityLUTSequence",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "VOILUTSequence",
    )
    transform = Dataset()
    transform.file_meta = dataset.file_meta  # It tells the byte order of tables.
    for keyword in keywords:
        value = _stated(dataset, keyword, frame)
        if value is not None:
            setattr(transform, keyword, value)
    width = np.min(transform.get("WindowWidth", 0))
    linear = transform.get("VOILUTFunction", "LINEAR") == "LINEAR"
    if not width > 0 or (linear and width < 1):  # As some files have it that mean no window.
        for keyword in ("WindowCenter", "WindowWidth"):
            transform.pop(keyword, None)
    return transform


def _stated(dataset: Dataset, keyword: str, frame: int = 0) -> Any:
    """The value for a frame, from its functional groups, the shared ones, or the data set itself.

    None where it is absent or empty.
    """
    for place in (*_groups(dataset, frame), dataset):
        value = place.get(keyword)
        if value not in (None, "") and not (isinstance(value, list) and not value):
            return value
    return None


def _groups(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    of_frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in (*of_frames[frame : frame + 1], *shared):
        for keyword in _FUNCTIONAL_GROUPS:
            yield from (item.get(keyword) or [])[:1]


def _spacing(dataset: Dataset) -> Spacing | None:
    found = _stated(dataset, "PixelSpacing") or _region_spacing(dataset)
    for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = found or _stated(dataset, keyword)
    return found and (float(found[0]), float(found[1]))


def _region_spacing(dataset: Dataset) -> Spacing | None:
    """Of the largest 2-D ultrasound region that is calibrated in centimetres."""
    regions = [
        region
        for region in dataset.get("SequenceOfUltrasoundRegions") or []
        if region.get("RegionSpatialFormat") == _TWO_DIMENSIONAL
        and region.get("PhysicalUnitsXDirection") == _CENTIMETRES
        and region.get("PhysicalUnitsYDirection") == _CENTIMETRES
        and region.get("PhysicalDeltaX")
        and region.get("PhysicalDeltaY")
    ]
    if not regions:
        return None
    largest = max(regions, key=_area)
    # Negative where the physical axis runs against the pixels'.
    return 10 * abs(largest.PhysicalDeltaY), 10 * abs(largest.PhysicalDeltaX)


def _area(region: Dataset) -> int:
    width = region.get("RegionLocationMaxX1", 0) - region.get("RegionLocationMinX0", 0)
    return width * (region.get("RegionLocationMaxY1", 0) - region.get("RegionLocationMinY0", 0))


def _affine(dataset: Dataset, spacing: Spacing | None, frames: int) -> Float[np.ndarray, "4 4"]:
    row, column = spacing or (1.0, 1.0)
    orientation = _stated(dataset, "ImageOrientationPatient")
    first, last = (_stated(dataset, "ImagePositionPatient", t) for t in (0, frames - 1))
    if orientation is None or first is None:
        return np.diag([column, row, 1.0, 1.0])
    across, down = np.reshape(np.asarray(orientation, dtype=np.float64), (2, 3))
    step = np.subtract(last, first, dtype=np.float64) / max(frames - 1, 1)
    if not step.any():
        thickness = _stated(dataset, "SpacingBetweenSlices") or _stated(dataset, "SliceThickness")
        step = np.cross(across, down) * float(thickness or 1)
    affine = np.eye(4)
    affine[:3] = np.stack([across * column, down * row, step, np.asarray(first, float)], axis=1)
    return right_front_top(affine)
