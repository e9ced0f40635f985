"""Label maps as DICOM-SEG, which refers to the frames of the DICOM image that they lie on.

Every frame of the image is there for every segment, empty or not, so that the file tells how many
frames there are. Those of others may leave out what is empty.

Needs pydicom and highdicom, which come with `adapterkit[dicom]`.

Source: DICOM PS3.3, A.51 (Segmentation IOD) and C.7.6.17 (Multi-frame Dimension).
"""

from collections.abc import Sequence
from copy import deepcopy
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, PixelMeasuresSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    SegmentationTypeValues,
    SegmentDescription,
)
from highdicom.seg import Segmentation as DicomSegmentation
from highdicom.spatial import get_image_coordinate_system
from highdicom.sr import CodedConcept
from jaxtyping import UInt8
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.pixels.utils import pack_bits
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from adapterkit.data.files.dicom_data_set import read_data_set
from adapterkit.data.files.palette import colour
from adapterkit.data.image_file import (
    DataError,
    Spacing,
    check_size,
    slice_axis,
    unreadable,
)


def segmentation(
    labels: UInt8[np.ndarray, "T H W"],
    path: Path,
    sources: Sequence[Dataset],
    spacing: Spacing | None,
    structures: Sequence[str],
) -> Dataset:
    """A DICOM segmentation with one binary segment per structure, to be saved.

    The same labels of the same image have the same identifiers.

    Args:
        labels: of the image's frames; 0 is background, k + 1 is the k-th structure.
        path: of the image, to name it in errors.
        sources: the image's data set, or those of the slices of a series; without pixels.
        spacing: in mm, (row, column), or None where it is not known.
        structures: names of the structures.

    Raises:
        DataError: the image lacks what the segmentation must state.
    """
    try:
        digest = blake2b(labels.tobytes(), digest_size=16).hexdigest()
        unique = [*(each.SOPInstanceUID for each in sources), *structures, digest]
        sources = [_completed(each) for each in sources]
        source = sources[0]
        # A cine loop has neither positions nor the functional groups that could tell them.
        loop = "NumberOfFrames" in source and "SharedFunctionalGroupsSequence" not in source
        masks = np.stack([labels == k + 1 for k in range(len(structures))], axis=-1)
        segmented = DicomSegmentation(
            [_as_one_frame(source, spacing)] if loop else sources,
            masks[:1] if loop else masks,
            SegmentationTypeValues.BINARY,
            [_description(k + 1, name) for k, name in enumerate(structures)],
            series_instance_uid=generate_uid(entropy_srcs=[*unique, "series"]),
            series_number=1000 + int(source.get("SeriesNumber") or 0),
            sop_instance_uid=generate_uid(entropy_srcs=unique),
            instance_number=1,
            manufacturer="adapterkit",
            manufacturer_model_name="adapterkit",
            software_versions=version("adapterkit"),
            device_serial_number="0",
            omit_empty_frames=False,
            pixel_measures=_measures(source, spacing),
        )
        if not loop:
            return segmented
        if spacing is None:
            del segmented.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        return _over_frames(segmented, masks)
    # highdicom raises AttributeError, ValueError and others for what an image lacks.
    except Exception as error:
        raise DataError(
            f"{path} cannot be the source of a DICOM-SEG ({type(error).__name__}: {error}): "
            "write .nii.gz instead."
        ) from error


MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Of type 2 in the modules of patient and study: there, but empty where it is not known."""


def _completed(source: Dataset) -> Dataset:
    """With what an anonymiser may have taken out, though it must be there, as empty."""
    if all(keyword in source for keyword in MAY_BE_EMPTY):
        return source
    completed = deepcopy(source)
    for keyword in MAY_BE_EMPTY:
        if keyword not in completed:
            setattr(completed, keyword, "")
    return completed


def _description(number: int, name: str) -> SegmentDescription:
    # Any names are possible, so the code is the project's own: a digest of the name.
    code = blake2b(name.encode(), digest_size=8).hexdigest().upper()
    return SegmentDescription(
        number,
        name[:64],
        codes.SCT.AnatomicalStructure,
        CodedConcept(code, "99ADAPTERKIT", name[:64]),
        SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        AlgorithmIdentificationSequence(
            "adapterkit", codes.cid7162.ArtificialIntelligence, version("adapterkit")
        ),
        display_color=CIELabColor.from_rgb(*colour(number)),
    )


def _measures(source: Dataset, spacing: Spacing | None) -> PixelMeasuresSequence | None:
    """For an image without position in the patient; None: highdicom takes the image's own."""
    if spacing is None or get_image_coordinate_system(source) is not None:
        return None
    # Readers, highdicom among them, expect a thickness also where there is none.
    return PixelMeasuresSequence(spacing, source.get("SliceThickness") or 0)


# Cine loops
#
# highdicom takes several frames only where they have positions in the patient. So it makes the
# segmentation of one frame, and the other frames are put in after its pattern.


def _as_one_frame(source: Dataset, spacing: Spacing | None) -> Dataset:
    frame = deepcopy(source)  # A shallow copy would share its elements.
    frame.NumberOfFrames = 1
    shared = Dataset()
    # highdicom does not do without; where the spacing is not known, this is taken out again.
    shared.PixelMeasuresSequence = _measures(source, spacing or (1, 1))
    frame.SharedFunctionalGroupsSequence = [shared]
    return frame


def _over_frames(segmented: Dataset, masks: np.ndarray) -> Dataset:
    """With the masks (T, H, W, K) of all frames, of which it has the first."""
    pointer = Dataset()
    pointer.DimensionOrganizationUID = segmented.DimensionIndexSequence[0].DimensionOrganizationUID
    pointer.DimensionIndexPointer = tag_for_keyword("TemporalPositionIndex")
    pointer.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
    pointer.DimensionDescriptionLabel = "Temporal Position Index"
    segmented.DimensionIndexSequence.append(pointer)
    patterns = segmented.PerFrameFunctionalGroupsSequence
    of_segments = np.moveaxis(masks, -1, 0)
    items = []
    for k, t in np.ndindex(of_segments.shape[:2]):
        item = deepcopy(patterns[k])
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = t + 1
        item.FrameContentSequence[0].TemporalPositionIndex = t + 1
        item.FrameContentSequence[0].DimensionIndexValues = [k + 1, t + 1]
        items.append(item)
    segmented.PerFrameFunctionalGroupsSequence = items
    segmented.NumberOfFrames = len(items)
    segmented.PixelData = pack_bits(of_segments)
    return segmented


# Reading


def read_labels(path: Path) -> UInt8[np.ndarray, "T H W"]:
    """The label maps in a DICOM-SEG that refers to one DICOM image or series, by highdicom.

    0 is background, k the segment of number k. Of frames after the last one that it refers to, the
    file does not say whether there are any. Slices of a series follow each other as in
    `read_series`; of those that it does not refer to, it does not tell.

    Raises:
        DataError: the file is no DICOM-SEG, damaged or cut short, refers to several images that are
            no slices of a volume or to none, its segments overlap or are no masks but fractions,
            or one has a number above 255.
    """
    try:
        found = DicomSegmentation.from_dataset(read_data_set(path), copy=False)
        sources = _sources(found)
        images = {str(each.ReferencedSOPInstanceUID) for each in sources}
        frames = max((int(np.max(each.get("ReferencedFrameNumber") or 0)) for each in sources),
                     default=0)  # fmt: skip
        shape = (frames or len(images), int(found.Rows), int(found.Columns))
    # Of what it cannot read, highdicom raises AttributeError, ValueError and others.
    except Exception as error:
        raise unreadable(path, "DICOM-SEG", error) from error
    instances = [*images] if len(images) == 1 else _slices_in_order(found)
    if not instances or (frames and len(instances) > 1):
        raise DataError(
            f"{path} refers to {len(images)} DICOM images: expected one, or slices of a series."
        )
    check_size(shape, path)
    options: dict[str, Any] = {"combine_segments": True, "ignore_spatial_locations": True}
    try:
        if frames:
            labels = found.get_pixels_by_source_frame(instances[0], **options)
        else:
            labels = found.get_pixels_by_source_instance(instances, **options)
    except Exception as error:
        raise DataError(
            f"{path} is no label map ({str(error).strip() or type(error).__name__}): expected "
            "binary segments that do not overlap."
        ) from error
    if labels.max(initial=0) > 255:
        raise DataError(f"{path} has a segment of number {labels.max()}: expected 1 to 255.")
    return labels.astype(np.uint8)


def _slices_in_order(found: Dataset) -> list[str]:
    """The slices that the frames were made of, by their places; [] where these are not stated."""
    places: dict[str, float] = {}
    try:
        (shared,) = found.SharedFunctionalGroupsSequence
        turned = np.array([-1, -1, 1])  # To the right, front and top.
        direction = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
        normal = slice_axis(*(turned * direction.astype(float)))
        if int(found.NumberOfFrames) != len(found.PerFrameFunctionalGroupsSequence):
            return []
        for frame in found.PerFrameFunctionalGroupsSequence:
            ((source,),) = [each.SourceImageSequence for each in frame.DerivationImageSequence]
            place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            places[str(source.ReferencedSOPInstanceUID)] = float(normal @ (turned * place))
    # Where something is not there or of another kind; pydicom's errors share no narrower base.
    except Exception:
        return []
    return sorted(places, key=places.__getitem__)


def _sources(found: Dataset) -> list[Dataset]:
    """The references of all frames to what they were made of."""
    return [
        source
        for frame in found.PerFrameFunctionalGroupsSequence
        for derivation in frame.get("DerivationImageSequence") or []
        for source in derivation.get("SourceImageSequence") or []
    ]
