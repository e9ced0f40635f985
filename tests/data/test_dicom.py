"""Tests of reading DICOM files: grey values, colours, places, and what is wrong with them."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1

from adapterkit.data.collections import open_collection
from adapterkit.data.files.dicom_seg import read_labels
from adapterkit.data.files.images import find_images, read_image
from adapterkit.data.files.masks import write_masks
from adapterkit.data.files.series import find_series
from adapterkit.data.image_file import DataError
from tests.data.dicom_files import BUNDLED, item, write_dicom
from tests.data.test_images import GREY, RGB, STACK


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
    np.testing.assert_array_equal(read_image(path).frames[0, 0], np.rint(expected))
    path = write_dicom(
        tmp_path / "c.dcm", stored, "HW", PhotometricInterpretation="MONOCHROME1", **elements
    )
    np.testing.assert_array_equal(read_image(path).frames[0, 0], np.rint(255 - expected))


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
    np.testing.assert_array_equal(read_image(path).frames[0, 0], np.rint(expected))
    path = write_dicom(tmp_path / "b.dcm", stored, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(read_image(path).frames[0, 0], expected)


def test_a_table_of_12_bits(tmp_path: Path):
    table = item(
        LUTDescriptor=[4, 10, 12], LUTData=np.array([0, 1000, 2000, 4095], "<u2").tobytes()
    )
    stored = np.array([[-9, 10, 11, 12, 13, 14, 300, 0]], dtype=np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[table])
    expected = np.array([0, 0, 1000, 2000, 4095, 4095, 4095, 0]) * 255 / 4095
    np.testing.assert_array_equal(read_image(path).frames[0, 0], np.rint(expected))


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
        expected = np.clip((STACK[t] + 50.0 - 50 * t) * 255 / 100, 0, 255)
        np.testing.assert_array_equal(frame, np.rint(expected))
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


def test_without_the_extra_pictures_are_found_and_dicom_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        write_dicom(tmp_path / folder / "a.dcm", GREY)
    picture = tmp_path / "b.png"
    Image.fromarray(GREY).save(picture)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.delitem(sys.modules, "adapterkit.data.files.dicom_data_set")

    files = [picture, tmp_path / "images" / "a.dcm"]
    assert find_series(files) == []
    np.testing.assert_array_equal(read_image(picture).frames[0], GREY)
    needed = r'a\.dcm .*this needs pydicom, .*: pip install "adapterkit\[dicom\]"'
    with pytest.raises(DataError, match=needed):
        read_image(files[1])
    with pytest.raises(DataError, match=needed):
        open_collection(tmp_path)
