"""Tests of reading image files of every kind, whole, damaged and of other kinds."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.uid import (
    RLELossless,
)

from adapterkit.data.files.images import find_images, read_frames, read_image
from adapterkit.data.image_file import DataError, ImageFile
from tests.data.dicom_files import BUNDLED, write_dicom

GREY = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4
STACK = np.arange(180, dtype=np.int16).reshape(3, 6, 10) - 50
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


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
