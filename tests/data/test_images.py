"""Tests of reading image files of every kind, whole, damaged and of other kinds."""

import gzip
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from adapterkit.data.files.dicom_seg import read_labels
from adapterkit.data.files.images import find_images, read_frames, read_image
from adapterkit.data.files.masks import write_masks
from adapterkit.data.image_file import DataError, ImageFile

BUNDLED = Path(pydicom.__file__).parent / "data/test_files"
"""DICOM files that pydicom brings along, of many scanners and transfer syntaxes."""

GREY = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4
STACK = np.arange(180, dtype=np.int16).reshape(3, 6, 10) - 50
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def write_dicom(path: Path, array: np.ndarray, axes: str = "HW", **elements: Any) -> Path:
    """A DICOM file of `array`; axes may begin with T and end with C. Elements given as None are
    left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    several = axes.startswith("T")
    kind = UltrasoundMultiFrameImageStorage if several else SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    unique = UID(generate_uid(entropy_srcs=[path.name])[:60])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = unique
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = unique + ".1", unique + ".2"
    dataset.PatientID, dataset.PatientName, dataset.Modality = "1", "No^Body", "US"
    dataset.StudyID = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.Rows, dataset.Columns = array.shape[several : several + 2]
    if several:
        dataset.NumberOfFrames = len(array)
    dataset.SamplesPerPixel = 3 if axes.endswith("C") else 1
    if axes.endswith("C"):
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if axes.endswith("C") else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * array.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.PixelData = array.tobytes() + b"\0" * (array.nbytes % 2)
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


# Pictures


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("array", [GREY, GREY.astype(np.uint16) * 250, RGB], ids=["8", "16", "RGB"])
def test_pictures_are_read_as_one_frame(tmp_path: Path, ending: str, array: np.ndarray):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(array).save(path)
    image = read_image(path)
    np.testing.assert_array_equal(image.frames, array[None])
    assert (image.path, image.spacing, image.nifti, image.dicom) == (path, None, None, None)


def test_the_content_tells_the_kind_not_the_name(tmp_path: Path):
    path = tmp_path / "scan"
    Image.fromarray(RGB).save(path, format="JPEG", quality=95)
    assert read_image(path).frames.shape == (1, 6, 10, 3)
    write_dicom(tmp_path / "really_dicom.png", GREY)
    np.testing.assert_array_equal(read_image(tmp_path / "really_dicom.png").frames[0], GREY)


# NIfTI and MetaImage


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_keeps_affine_and_spacing(tmp_path: Path, ending: str, kind: Callable):
    affine = np.array([[-0.5, 0, 0, 9], [0, 0, 2, 8], [0, -0.25, 0, 7], [0, 0, 0, 1.0]])
    nibabel.save(kind(STACK.T, affine), tmp_path / f"a.{ending}")
    image = read_image(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(image.frames, STACK)
    np.testing.assert_allclose(image.affine, affine)
    assert image.spacing == (0.25, 0.5)


def test_a_nifti_image_is_one_frame_and_one_mm_is_no_spacing(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(GREY.T, np.eye(4)), tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(image.frames, GREY[None])
    assert image.spacing is None


@pytest.mark.parametrize("unit", ["unknown", "mm", "micron", "meter"])
@pytest.mark.parametrize("forms", [(0, 0), (0, 1), (2, 0)])
@pytest.mark.parametrize("side", [1.0, 0.5, 1000.0])
def test_one_mm_is_believed_where_nifti_states_unit_and_form(
    tmp_path: Path, unit: str, forms: tuple[int, int], side: float
):
    image = nibabel.Nifti1Image(GREY.T, np.diag([side, side, side, 1]))
    image.header.set_xyzt_units(unit)
    content = bytearray(image.to_bytes())
    content[252:256] = np.array(forms[::-1], "<i2").tobytes()  # qform_code and sform_code.
    (tmp_path / "a.nii").write_bytes(content)
    found = read_image(tmp_path / "a.nii")
    mm = side * {"micron": 0.001, "meter": 1000}.get(unit, 1)
    believed = mm != 1 or (unit != "unknown" and any(forms))
    assert found.spacing == (pytest.approx((mm, mm)) if believed else None)
    if any(forms):
        np.testing.assert_allclose(np.diag(found.affine), [mm, mm, mm, 1], rtol=1e-6)


@pytest.mark.parametrize("ending", ["mha", "mhd"])
def test_metaimage_has_the_affine_that_nifti_has(tmp_path: Path, ending: str):
    image = sitk.GetImageFromArray(STACK)
    image.SetSpacing((0.5, 0.25, 2))
    image.SetOrigin((9, 8, 7))
    image.SetDirection((0, 1, 0, 0, 0, 1, 1, 0, 0))
    sitk.WriteImage(image, tmp_path / f"a.{ending}")
    sitk.WriteImage(image, tmp_path / "a.nii")
    found, nifti = read_image(tmp_path / f"a.{ending}"), read_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(found.frames, STACK)
    np.testing.assert_allclose(found.affine, nifti.affine, atol=1e-6)
    assert found.spacing == nifti.spacing == (0.25, 0.5)


def test_metaimage_in_colour(tmp_path: Path):
    sitk.WriteImage(sitk.GetImageFromArray(RGB, isVector=True), tmp_path / "a.mhd")
    np.testing.assert_array_equal(read_image(tmp_path / "a.mhd").frames, RGB[None])
    with pytest.raises(DataError, match=r"a\.mhd is in colour"):
        read_frames(tmp_path / "a.mhd")


def test_a_metaimage_that_names_a_file_elsewhere_is_refused(tmp_path: Path):
    sitk.WriteImage(sitk.GetImageFromArray(GREY), tmp_path / "a.mhd")
    text = (tmp_path / "a.mhd").read_text()
    for elsewhere in ("= /etc/passwd", ": /etc/passwd", "= ../a.raw", r"=..\a.raw", "= LIST\n/a"):
        (tmp_path / "a.mhd").write_text(text.replace("= a.raw", elsewhere))
        with pytest.raises(DataError, match=r"a\.mhd names .* expected one beside it"):
            read_image(tmp_path / "a.mhd")


@pytest.mark.parametrize("outside", [True, False])
def test_a_metaimage_whose_data_are_a_link_elsewhere_is_refused(tmp_path: Path, outside: bool):
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(GREY), tmp_path / "in/a.mhd")
    target = tmp_path / ("" if outside else "in") / "secret"
    (tmp_path / "in/a.raw").rename(target)
    (tmp_path / "in/a.raw").symlink_to(target)
    if not outside:
        np.testing.assert_array_equal(read_image(tmp_path / "in/a.mhd").frames[0], GREY)
        return
    with pytest.raises(DataError, match=r"a\.mhd names a\.raw .* a link to .*secret"):
        read_image(tmp_path / "in/a.mhd")


# Folders


def test_images_are_found_by_what_they_are(tmp_path: Path):
    (tmp_path / "b/.hidden").mkdir(parents=True)
    for name in ("b/IM0001", "a.dcm", "b/.hidden/c.dcm", ".d.dcm"):
        write_dicom(tmp_path / name, GREY)
    sitk.WriteImage(sitk.GetImageFromArray(GREY), tmp_path / "b/e.mhd")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").touch()
    found = find_images(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.dcm", "b/IM0001", "b/e.mhd"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none holds no image"):
        find_images(tmp_path / "none")
    with pytest.raises(DataError, match=r"nowhere is not a folder"):
        find_images(tmp_path / "nowhere")


# DICOM


def test_dicom_grey_is_read_as_it_is_stored(tmp_path: Path):
    image = read_image(write_dicom(tmp_path / "a.dcm", GREY))
    np.testing.assert_array_equal(image.frames, GREY[None])
    assert image.frames.dtype == np.uint8
    assert image.spacing is None
    assert image.dicom is not None
    assert "PixelData" not in image.dicom
    np.testing.assert_array_equal(image.affine, np.eye(4))


def test_monochrome1_is_inverted(tmp_path: Path):
    inverted = read_image(
        write_dicom(tmp_path / "a.dcm", GREY, PhotometricInterpretation="MONOCHROME1")
    )
    np.testing.assert_array_equal(inverted.frames[0], 255 - GREY)
    path = write_dicom(tmp_path / "b.dcm", STACK[0], PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(path).frames[0], -1 - STACK[0])


def test_rescale_and_window_make_grey_values(tmp_path: Path):
    elements: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -100}
    path = write_dicom(tmp_path / "a.dcm", STACK[0], "HW", **elements)
    np.testing.assert_array_equal(read_image(path).frames[0], 2.0 * STACK[0] - 100)
    # Values from 50 to 150 are seen, and nothing else is told apart.
    elements |= {
        "WindowCenter": [100, 7],
        "WindowWidth": [100, 3],
        "VOILUTFunction": "LINEAR_EXACT",
    }
    stored = np.array([[-500, 75, 80, 100, 125, 126, 500, 0]], dtype=np.int16)
    path = write_dicom(tmp_path / "b.dcm", stored, "HW", **elements)
    expected = np.array([0, 0, 25.5, 127.5, 255, 255, 255, 0])
    np.testing.assert_allclose(read_image(path).frames[0, 0], expected, atol=0.5)
    path = write_dicom(
        tmp_path / "c.dcm", stored, "HW", PhotometricInterpretation="MONOCHROME1", **elements
    )
    np.testing.assert_allclose(read_image(path).frames[0, 0], 255 - expected, atol=0.5)


@pytest.mark.parametrize("width", ["", 0, 0.5])
def test_a_window_that_is_none_is_left_out(tmp_path: Path, width: Any):
    path = write_dicom(tmp_path / "a.dcm", STACK[0], WindowCenter=width, WindowWidth=width)
    np.testing.assert_array_equal(read_image(path).frames[0], STACK[0])


@pytest.mark.parametrize("packed", [True, False])
def test_tables_of_8_bits(tmp_path: Path, packed: bool):
    entries = [255 - i // 16 for i in range(4096)]
    data = np.array(entries, dtype=np.uint8 if packed else np.uint16).tobytes()
    table = item(LUTDescriptor=[4096, 0, 8], LUTData=data)
    stored = np.array([[0, 15, 16, 4095, 2048, 5000, 1, 2]], dtype=np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[table])
    expected = [255, 255, 254, 0, 127, 0, 255, 255]
    np.testing.assert_allclose(read_image(path).frames[0, 0], expected, atol=0.5)
    path = write_dicom(tmp_path / "b.dcm", stored, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(read_image(path).frames[0, 0], expected)


def test_a_table_of_12_bits(tmp_path: Path):
    table = item(
        LUTDescriptor=[4, 10, 12], LUTData=np.array([0, 1000, 2000, 4095], "<u2").tobytes()
    )
    stored = np.array([[-9, 10, 11, 12, 13, 14, 300, 0]], dtype=np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[table])
    expected = np.array([0, 0, 1000, 2000, 4095, 4095, 4095, 0]) * 255 / 4095
    np.testing.assert_allclose(read_image(path).frames[0, 0], expected, atol=0.5)


def test_frames_have_their_own_windows_positions_and_spacing(tmp_path: Path):
    def groups(t: int) -> Dataset:
        return item(
            FrameVOILUTSequence=[item(WindowCenter=50 * (t + 1) + 0.5, WindowWidth=101)],
            PlanePositionSequence=[item(ImagePositionPatient=[1, 2, 3 - 4 * t])],
        )

    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25], SliceThickness=9)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=50)],
    )
    image = read_image(
        write_dicom(
            tmp_path / "a.dcm",
            STACK,
            "THW",
            SharedFunctionalGroupsSequence=[shared],
            PerFrameFunctionalGroupsSequence=[groups(t) for t in range(3)],
        )
    )
    for t, frame in enumerate(image.frames):
        expected = np.clip((STACK[t] + 50 - 50 * t) * 2.55, 0, 255)
        np.testing.assert_allclose(frame, expected, atol=0.51)
    assert image.spacing == (0.5, 0.25)
    # Right, front and top are the other way round than DICOM's left, back and top in two axes.
    np.testing.assert_allclose(
        image.affine, [[-0.25, 0, 0, -1], [0, -0.5, 0, -2], [0, 0, -4, 3], [0, 0, 0, 1]]
    )


def test_colour_is_rgb_of_8_bits(tmp_path: Path):
    np.testing.assert_array_equal(
        read_image(write_dicom(tmp_path / "a.dcm", RGB, "HWC")).frames, RGB[None]
    )
    both = np.stack([RGB, RGB[::-1]])
    np.testing.assert_array_equal(
        read_image(write_dicom(tmp_path / "b.dcm", both, "THWC")).frames, both
    )
    many = read_image(write_dicom(tmp_path / "c.dcm", RGB.astype(np.uint16) * 257, "HWC"))
    np.testing.assert_array_equal(many.frames, RGB[None])


@pytest.mark.parametrize(
    "name",
    [
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
    ],
)
def test_one_picture_in_all_colour_spaces_and_syntaxes(name: str):
    """These files hold the same picture; JPEG and halved colour change it a little."""
    expected = read_image(BUNDLED / "SC_rgb_rle.dcm").frames.astype(int)
    found = read_image(BUNDLED / name).frames
    assert found.dtype == np.uint8
    assert np.abs(found - expected).mean() < 4


def test_a_palette_gives_its_colours():
    image = read_image(BUNDLED / "examples_palette.dcm")
    dataset = pydicom.dcmread(BUNDLED / "examples_palette.dcm")
    expected = apply_color_lut(pixel_array(dataset), dataset)
    np.testing.assert_array_equal(image.frames[0], expected // 256)
    assert image.spacing == pytest.approx((0.26229, 0.26229), abs=1e-5)


def test_an_ultrasound_loop():
    image = read_image(BUNDLED / "examples_ybr_color.dcm")
    assert image.frames.shape == (30, 240, 320, 3)
    assert image.spacing == pytest.approx((0.5105, 0.5105), abs=1e-4)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE", "MR_small_bigendian", "MR_small_jp2klossless", "MR_small_implicit"]
)
def test_one_slice_in_all_syntaxes(name: str):
    expected, found = (read_image(BUNDLED / f"{each}.dcm") for each in ("MR_small", name))
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert found.spacing == (0.3125, 0.3125)


def region(area: int, delta: float, **elements: Any) -> Dataset:
    usual = {
        "RegionSpatialFormat": 1,
        "PhysicalUnitsXDirection": 3,
        "PhysicalUnitsYDirection": 3,
        "PhysicalDeltaX": delta,
        "PhysicalDeltaY": -2 * delta,
        "RegionLocationMinX0": 0,
        "RegionLocationMinY0": 0,
        "RegionLocationMaxX1": area,
        "RegionLocationMaxY1": 1,
    }
    return item(**{**usual, **elements})


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [9, 9]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"NominalScannedPixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"SequenceOfUltrasoundRegions": [region(4, 0.03), region(5, 0.02)]}, (0.4, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(9, 9, RegionSpatialFormat=3)]}, None),
        ({"SequenceOfUltrasoundRegions": [region(9, 9, PhysicalUnitsXDirection=4)]}, None),
        ({"SequenceOfUltrasoundRegions": []}, None),
        ({"PixelSpacing": ""}, None),
    ],
)
def test_pixel_spacing(tmp_path: Path, elements: dict[str, Any], expected: Any):
    spacing = read_image(write_dicom(tmp_path / "a.dcm", GREY, "HW", **elements)).spacing
    assert spacing == (expected and pytest.approx(expected))


@pytest.mark.parametrize("name", ["a.dcm", "IM0001", "1.2.840.5"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("with_meta", [True, False])
def test_dicom_without_preamble(tmp_path: Path, name: str, syntax: UID, with_meta: bool):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "whole", GREY, PixelSpacing=[0.5, 0.25]))
    dataset.file_meta.TransferSyntaxUID = syntax
    if with_meta:
        buffer = BytesIO()
        dataset.save_as(buffer, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True,
                        enforce_file_format=True)  # fmt: skip
        content = buffer.getvalue()[132:]
    else:
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = syntax == ImplicitVRLittleEndian, True
        write_dataset(buffer, dataset)
        content = buffer.getvalue()
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / name
    path.write_bytes(content)
    assert find_images(tmp_path / "folder") == [path]
    image = read_image(path)
    np.testing.assert_array_equal(image.frames[0], GREY)
    assert image.spacing == (0.5, 0.25)
    write_masks(tmp_path / "labels.dcm", GREY[None] // 100, image)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.dcm"), GREY[None] // 100)


def test_what_is_called_dicom_and_is_none_is_refused(tmp_path: Path):
    for content in (b"", b"text that is no image", GREY.tobytes() * 9, b"\x08\0\x16\0UI\x02\0ab"):
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.dcm .* DICOM"):
            read_image(tmp_path / "a.dcm")


# What cannot be read


def test_four_axes_are_refused(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 7)), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(
        DataError, match=r"a\.nii\.gz .* shape \(7, 6, 5, 4\) .* two axes, or three"
    ):
        read_image(tmp_path / "a.nii.gz")


def test_a_small_file_of_a_vast_image_is_refused_before_it_is_read(tmp_path: Path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((30_000, 30_000, 30_000))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    text = "ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 30000\nElementType = MET_UCHAR\n"
    (tmp_path / "a.mhd").write_text(text + "ElementDataFile = a.raw\n")
    write_dicom(tmp_path / "a.dcm", GREY, Rows=60_000, Columns=60_000)
    for name in ("a.nii.gz", "a.mhd", "a.dcm"):
        with pytest.raises(DataError, match=rf"{name} states .* at most 1,073,741,824 values"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_counted(tmp_path: Path, bad: float):
    array = np.zeros((6, 10), dtype=np.float32)
    array[2, 3] = bad
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    Image.fromarray(array).save(tmp_path / "a.tif")
    for name in ("a.nii", "a.tif"):
        with pytest.raises(DataError, match=f"{name} has 1 of 60 values that are NaN or infinite"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_place_that_is_no_number_is_refused(tmp_path: Path, bad: float):
    whole = nibabel.Nifti1Image(np.zeros((6, 10), dtype=np.uint8), np.diag([0.5, 0.25, 1, 1]))
    content = bytearray(whole.to_bytes())
    content[292:296] = np.float32(bad).tobytes()  # The fourth number of srow_x.
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii states a place in space that is NaN or infinite"):
        read_image(tmp_path / "a.nii")


def test_what_is_no_image_is_told_what_is(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"notes\.txt is no image that .*\.nii, .* or DICOM"):
        read_image(tmp_path / "notes.txt")
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(DataError, match=f"{path.name} cannot be read .*: expected a file"):
            read_image(path)


def test_dicom_without_pixels_says_what_it_is():
    with pytest.raises(DataError, match=r"rtplan\.dcm is a DICOM file without pixels \(RT Plan"):
        read_image(BUNDLED / "rtplan.dcm")


def test_truncated_dicom():
    with pytest.raises(DataError, match=r"MR_truncated\.dcm .* less than expected .* cut short"):
        read_image(BUNDLED / "MR_truncated.dcm")


def test_dicom_that_states_nonsense(tmp_path: Path):
    path = write_dicom(tmp_path / "a.dcm", GREY, PixelSpacing=[0, 1])
    with pytest.raises(DataError, match=r"a\.dcm states a pixel spacing of 0\.0 x 1\.0"):
        read_image(path)
    path = write_dicom(tmp_path / "b.dcm", GREY, PhotometricInterpretation="HSV")
    with pytest.raises(DataError, match=r"b\.dcm cannot be read .*HSV"):
        read_image(path)
    path = write_dicom(tmp_path / "c.dcm", GREY, Rows=None)
    with pytest.raises(DataError, match=r"c\.dcm cannot be read .*Rows"):
        read_image(path)


@pytest.mark.skipif(
    get_decoder(JPEGLosslessSV1).is_available, reason="a decoder of lossless JPEG is installed"
)
def test_a_missing_decoder_is_named():
    with pytest.raises(DataError, match=r"\(JPEG Lossless.* pip install python-gdcm"):
        read_image(BUNDLED / "SC_rgb_jpeg_gdcm.dcm")


def sources(folder: Path) -> list[Path]:
    """A small file of each kind."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 24, 32), dtype=np.uint8)
    for ending in ("nii", "nii.gz"):
        nibabel.save(
            nibabel.Nifti1Image(noise.T, np.diag([0.5, 0.25, 1, 1])), folder / f"a.{ending}"
        )
    sitk.WriteImage(sitk.GetImageFromArray(noise), folder / "a.mha")
    Image.fromarray(noise[0]).save(folder / "a.png")
    Image.fromarray(noise[0].astype(np.uint16) * 257).save(folder / "b.png")
    Image.fromarray(noise[0]).save(folder / "a.jpg")
    Image.fromarray(noise[0]).save(folder / "a.tif")
    Image.fromarray(noise[0]).save(folder / "b.tif", compression="tiff_lzw")
    write_dicom(folder / "a.dcm", noise, "THW", WindowCenter=100, WindowWidth=50)
    dataset = pydicom.dcmread(folder / "a.dcm")
    dataset.compress(RLELossless)
    dataset.save_as(folder / "b.dcm")
    bundled = ("SC_rgb_small_odd_jpeg", "JPEGLSNearLossless_08", "MR_small_jp2klossless")
    return [*sorted(folder.iterdir()), *(BUNDLED / f"{name}.dcm" for name in bundled)]


def outcome(path: Path, content: bytes) -> ImageFile | None:
    """What a file of that content gives, which is an image or the one error."""
    path.write_bytes(content)
    try:
        image = read_image(path)
    except DataError as error:
        return None if path.name in str(error) else pytest.fail(f"{error} does not name {path}")
    assert np.isfinite(image.frames).all()
    assert image.frames.ndim == 3 or (image.frames.ndim == 4 and image.frames.shape[-1] == 3)
    assert image.affine.shape == (4, 4)
    assert np.isfinite(image.affine).all()
    return image


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_an_image_or_the_one_error(tmp_path: Path):
    """Some damage is harmless, or changes pixels alone; none escapes as another exception."""
    rng = np.random.default_rng(0)
    (tmp_path / "whole").mkdir()
    for source in sources(tmp_path / "whole"):
        whole = source.read_bytes()
        path = tmp_path / f"damaged{''.join(source.suffixes)}"
        assert outcome(path, whole) is not None
        for end in rng.integers(0, round(0.9 * len(whole)), 8):
            assert outcome(path, whole[:end]) is None, f"{source.name} up to byte {end}"
        for _ in range(30):
            damaged = bytearray(whole)
            # Headers, where each byte counts, are at the front.
            for at in rng.integers(0, [len(whole), min(len(whole), 400)] * 4):
                damaged[at] = rng.integers(256)
            outcome(path, bytes(damaged))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".png", ".jpg", ".tif", ".dcm", ""])
def test_random_bytes_are_no_image(tmp_path: Path, ending: str):
    rng = np.random.default_rng(0)
    starts = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", bytes(128) + b"DICM")
    for length in (0, 1, 100, 1000, 5000):
        for start in starts:
            assert outcome(tmp_path / f"random{ending}", start + rng.bytes(length)) is None


def test_without_simpleitk_only_metaimage_is_refused(tmp_path: Path, monkeypatch):
    nibabel.save(nibabel.Nifti1Image(GREY.T, np.eye(4)), tmp_path / "a.nii")
    sitk.WriteImage(sitk.GetImageFromArray(GREY), tmp_path / "a.mha")
    monkeypatch.setattr("adapterkit.system.extras.find_spec", lambda name: None)
    assert read_image(tmp_path / "a.nii").frames.shape == (1, 6, 10)
    with pytest.raises(DataError, match=r'a\.mha is a MetaImage .* pip install "adapterkit\[files'):
        read_image(tmp_path / "a.mha")
