"""Tests of writing label maps in the geometry of the image that they lie on."""

from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import Dataset

from adapterkit.data.files.dicom_seg import MAY_BE_EMPTY, read_labels
from adapterkit.data.files.images import read_image
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.files.masks import write_masks
from adapterkit.data.files.palette import colour
from adapterkit.data.image_file import DataError, ImageFile
from tests.data.dicom_files import BUNDLED, write_dicom
from tests.data.test_images import GREY, RGB, STACK

NAMES = ["left ventricle", "myocardium"]
AFFINE = np.array([[-0.5, 0, 0, 9], [0, 0, 2, 8], [0, -0.25, 0, 7], [0, 0, 0, 1.0]])


def labels_on(image: ImageFile) -> np.ndarray:
    """Unlike in every frame and under every flip, with labels 0, 1 and 2."""
    labels = np.zeros(image.frames.shape[:3], dtype=np.uint8)
    for t, frame in enumerate(labels):
        frame[1 : 2 + t % 3, : 3 + t % 2] = 1
        frame[-2:, 3 : 5 + t % 4] = 2
    return labels


# NIfTI


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("shape", [(10, 6), (10, 6, 1), (10, 6, 3)])
def test_nifti_labels_lie_on_their_nifti_image(tmp_path: Path, ending: str, kind, shape):
    source = kind(np.zeros(shape, np.int16), AFFINE)
    source.header.set_xyzt_units("micron", "msec")
    source.header.set_qform(AFFINE, "scanner")
    source.header.set_sform(AFFINE, "talairach")
    source.header["descrip"] = b"an image"
    source.header["cal_max"] = 1000
    nibabel.save(source, tmp_path / "image.nii.gz")
    image = read_image(tmp_path / "image.nii.gz")
    labels = labels_on(image)
    write_masks(tmp_path / f"labels{ending}", labels, image)
    found: Any = nibabel.load(tmp_path / f"labels{ending}")
    assert isinstance(found, kind)
    assert found.shape == shape
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(found.dataobj).T.reshape(labels.shape), labels)
    for field in ("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(found.header[field], source.header[field])
    assert found.header["cal_max"] == 0
    np.testing.assert_array_equal(read_image(tmp_path / f"labels{ending}").frames, labels)


@pytest.mark.parametrize("unit", ["unknown", "mm", "micron"])
def test_nifti_labels_have_the_spacing_of_their_image(tmp_path: Path, unit: str):
    source = nibabel.Nifti1Image(np.zeros((10, 6), np.uint8), np.diag([500, 250, 1000, 1]))
    source.header.set_xyzt_units(unit)
    nibabel.save(source, tmp_path / "image.nii")
    image = read_image(tmp_path / "image.nii")
    write_masks(tmp_path / "labels.nii", labels_on(image), image)
    found = read_image(tmp_path / "labels.nii")
    assert found.spacing == image.spacing
    np.testing.assert_array_equal(found.affine, image.affine)


def test_labels_of_an_image_of_unknown_spacing_state_none(tmp_path: Path, picture: ImageFile):
    write_masks(tmp_path / "labels.nii", labels_on(picture), picture)
    assert read_image(tmp_path / "labels.nii").spacing is None


def test_nifti_with_a_scale_is_written_as_labels(tmp_path: Path):
    source = nibabel.Nifti1Image(np.zeros((10, 6)), AFFINE)
    source.header.set_data_dtype(np.int16)
    source.header.set_slope_inter(0.5, 7)
    nibabel.save(source, tmp_path / "image.nii")
    image = read_image(tmp_path / "image.nii")
    write_masks(tmp_path / "labels.nii", labels_on(image), image)
    np.testing.assert_array_equal(read_image(tmp_path / "labels.nii").frames, labels_on(image))


def test_metaimage_labels_are_where_the_image_is(tmp_path: Path):
    image = sitk.GetImageFromArray(STACK)
    image.SetSpacing((0.5, 0.25, 2))
    image.SetOrigin((9, 8, 7))
    image.SetDirection((0, 1, 0, 0, 0, 1, 1, 0, 0))
    sitk.WriteImage(image, tmp_path / "image.mha")
    source = read_image(tmp_path / "image.mha")
    write_masks(tmp_path / "labels.nii.gz", labels_on(source), source)
    found = sitk.ReadImage(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), labels_on(source))
    for one, other in [
        (found.GetOrigin(), image.GetOrigin()),
        (found.GetSpacing(), image.GetSpacing()),
        (found.GetDirection(), image.GetDirection()),
    ]:
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_dicom_labels_as_nifti_are_where_itk_sees_the_image(tmp_path: Path):
    source = read_image(BUNDLED / "MR_small.dcm")
    write_masks(tmp_path / "labels.nii", labels_on(source), source)
    found, image = sitk.ReadImage(tmp_path / "labels.nii"), sitk.ReadImage(BUNDLED / "MR_small.dcm")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), labels_on(source))
    np.testing.assert_allclose(found.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(found.GetDirection(), image.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(found.GetSpacing()[:2], image.GetSpacing()[:2], atol=1e-6)


def test_the_same_labels_give_the_same_bytes(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(STACK.T, AFFINE), tmp_path / "image.nii.gz")
    image = read_image(tmp_path / "image.nii.gz")
    for name in ("a.nii.gz", "b.nii.gz"):
        write_masks(tmp_path / name, labels_on(image), image)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


# PNG


def test_png_holds_indices_and_colours(tmp_path: Path):
    Image.fromarray(RGB).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    labels = labels_on(image)
    write_masks(tmp_path / "labels.png", labels, image)
    np.testing.assert_array_equal(read_label_map(tmp_path / "labels.png").frames[0], labels[0])
    with Image.open(tmp_path / "labels.png") as picture:
        seen = np.asarray(picture.convert("RGB"))
    for label in (0, 1, 2):
        np.testing.assert_array_equal(
            seen[labels[0] == label], [colour(label)] * (labels == label).sum()
        )


def test_colours_are_unlike():
    colours = [np.array(colour(label)) for label in range(30)]
    apart = [np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(apart) > 10
    assert colour(0) == (0, 0, 0)


# DICOM-SEG


def read_segmentation(path: Path, image: ImageFile) -> np.ndarray:
    """The label map of each frame of the image that a segmentation refers to, by highdicom."""
    found = highdicom.seg.segread(path)
    assert image.dicom is not None
    unique = image.dicom.SOPInstanceUID
    options: dict[str, Any] = {"combine_segments": True, "ignore_spatial_locations": True}
    if "NumberOfFrames" not in image.dicom:
        return found.get_pixels_by_source_instance([unique], **options)
    frames = range(1, 1 + len(image.frames))
    return found.get_pixels_by_source_frame(
        unique, frames, assert_missing_frames_are_empty=True, **options
    )


# One of these patients is called PLA.
@pytest.mark.filterwarnings("ignore:The string .* is unlikely to represent:UserWarning:highdicom")
@pytest.mark.parametrize(
    "name",
    ["CT_small", "MR_small", "examples_ybr_color", "examples_rgb_color", "examples_palette"],
)
def test_dicom_segmentations_refer_to_their_image(tmp_path: Path, name: str):
    image = read_image(BUNDLED / f"{name}.dcm")
    labels = labels_on(image)
    labels[3:5] = 0
    write_masks(tmp_path / "labels.dcm", labels, image, NAMES)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "labels.dcm", image), labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.dcm"), labels)
    found = pydicom.dcmread(tmp_path / "labels.dcm")
    assert [each.SegmentLabel for each in found.SegmentSequence] == NAMES
    assert image.dicom is not None
    assert found.StudyInstanceUID == image.dicom.StudyInstanceUID
    assert found.PatientID == image.dicom.PatientID
    assert (found.Rows, found.Columns) == image.frames.shape[1:3]
    if image.spacing is not None:
        measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert measures.PixelSpacing == pytest.approx(image.spacing)


@pytest.mark.parametrize("marked", [None, 1])
def test_a_loop_without_spacing_and_with_few_labels(tmp_path: Path, marked: int | None):
    image = read_image(write_dicom(tmp_path / "image.dcm", STACK, "THW"))
    labels = np.zeros(STACK.shape, dtype=np.uint8)
    if marked is not None:
        labels[marked, 2, 3:7] = 2
    write_masks(tmp_path / "labels.dcm", labels, image, NAMES)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "labels.dcm", image), labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.dcm"), labels)


def test_the_same_labels_have_the_same_identifiers(tmp_path: Path):
    image = read_image(write_dicom(tmp_path / "image.dcm", GREY))
    found = []
    for labels in (labels_on(image), labels_on(image), np.zeros_like(labels_on(image))):
        write_masks(tmp_path / "labels.dcm", labels, image, NAMES)
        found.append(pydicom.dcmread(tmp_path / "labels.dcm").SOPInstanceUID)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("axes", ["HW", "THW"])
def test_an_image_can_be_segmented_again(tmp_path: Path, axes: str):
    image = read_image(write_dicom(tmp_path / "image.dcm", STACK if "T" in axes else GREY, axes))
    for labels in (labels_on(image), labels_on(image)[::-1]):
        write_masks(tmp_path / "labels.dcm", labels, image, NAMES)
        np.testing.assert_array_equal(read_labels(tmp_path / "labels.dcm"), labels)


def test_nothing_may_be_found_of_structures_without_names(tmp_path: Path):
    image = read_image(write_dicom(tmp_path / "image.dcm", STACK, "THW"))
    write_masks(tmp_path / "labels.dcm", np.zeros(STACK.shape, np.uint8), image)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.dcm"), np.zeros(STACK.shape))


def foreign(path: Path, kind: str, masks: np.ndarray, sources: list[Dataset]) -> Path:
    """A DICOM-SEG of masks (T, H, W, K) that leaves out what is empty, by highdicom."""
    count = masks.shape[-1]
    code = highdicom.sr.CodedConcept("1", "99TEST", "tissue")
    described = [
        highdicom.seg.SegmentDescription(k + 1, f"{k}", code, code, "MANUAL") for k in range(count)
    ]
    series, instance = highdicom.UID(), highdicom.UID()
    found = highdicom.seg.Segmentation(
        sources, masks, kind, described, series, 1, instance, 1, "us", "ours", "1", "0"
    )
    found.save_as(path)
    return path


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_segmentations_of_others_are_read(tmp_path: Path, kind: str):
    image = read_image(BUNDLED / "CT_small.dcm")
    assert image.dicom is not None
    labels = labels_on(image)
    masks = np.stack([labels == k for k in (1, 2)], axis=-1)
    masks = masks.astype(float) if kind == "FRACTIONAL" else masks
    path = foreign(tmp_path / "labels.dcm", kind, masks, [image.dicom])
    np.testing.assert_array_equal(read_labels(path), labels)


@pytest.mark.parametrize("with_meta", [True, False])
@pytest.mark.parametrize("axes", ["HW", "THW"])
def test_segmentations_without_preamble_are_read(tmp_path: Path, axes: str, with_meta: bool):
    image = read_image(write_dicom(tmp_path / "image.dcm", STACK if "T" in axes else GREY, axes))
    labels = labels_on(image)
    write_masks(tmp_path / "whole.dcm", labels, image, NAMES)
    content = (tmp_path / "whole.dcm").read_bytes()[132:]
    if not with_meta:
        content = content[12 + int.from_bytes(content[8:12], "little") :]
    (tmp_path / "labels.dcm").write_bytes(content)
    np.testing.assert_array_equal(read_label_map(tmp_path / "labels.dcm").frames, labels)


def test_what_is_no_label_map_is_told(tmp_path: Path):
    image = read_image(BUNDLED / "CT_small.dcm")
    assert image.dicom is not None
    full = np.ones((1, *image.frames.shape[1:], 2))
    path = tmp_path / "labels.dcm"
    foreign(path, "BINARY", full > 0, [image.dicom])
    with pytest.raises(DataError, match=r"labels\.dcm is no label map .*overlap"):
        read_labels(path)
    foreign(path, "FRACTIONAL", full / 2, [image.dicom])
    with pytest.raises(DataError, match=r"labels\.dcm is no label map .*binary"):
        read_labels(path)
    with pytest.raises(DataError, match=r"liver_1frame\.dcm refers to 3 DICOM images"):
        read_labels(BUNDLED / "liver_1frame.dcm")
    with pytest.raises(DataError, match=r"CT_small\.dcm cannot be read as DICOM-SEG"):
        read_labels(BUNDLED / "CT_small.dcm")

    image = read_image(write_dicom(tmp_path / "image.dcm", STACK, "THW"))
    write_masks(path, labels_on(image), image)
    found = pydicom.dcmread(path)
    last = found.PerFrameFunctionalGroupsSequence[-1].DerivationImageSequence[0]
    last.SourceImageSequence[0].ReferencedFrameNumber = 2**31 - 1
    found.save_as(path)
    with pytest.raises(DataError, match=r"shape \(2147483647, 6, 10\): expected at most"):
        read_labels(path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_segmentations_give_label_maps_or_the_one_error(tmp_path: Path):
    rng = np.random.default_rng(0)
    image = read_image(write_dicom(tmp_path / "image.dcm", STACK, "THW"))
    path = tmp_path / "labels.dcm"
    write_masks(path, labels_on(image), image)
    whole = path.read_bytes()
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.5 else whole)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_labels(path).ndim == 3
        except DataError:
            refused += 1
    assert refused > 30


# What cannot be written


@pytest.fixture
def picture(tmp_path: Path) -> ImageFile:
    Image.fromarray(GREY).save(tmp_path / "image.png")
    return read_image(tmp_path / "image.png")


def test_what_does_not_fit_is_explained_and_nothing_is_written(tmp_path: Path, picture: ImageFile):
    labels = labels_on(picture)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"a\.jpg: expected a name that ends in \.nii\.gz"):
        write_masks(tmp_path / "a.jpg", labels, picture)
    with pytest.raises(DataError, match=r"shape \(1, 5, 10\): expected \(1, 6, 10\) .*image\.png"):
        write_masks(tmp_path / "a.png", labels[:, 1:], picture)
    with pytest.raises(DataError, match="labels go up to 2, but structures names 1"):
        write_masks(tmp_path / "a.png", labels, picture, ["left ventricle"])
    with pytest.raises(DataError, match=r"refers to a DICOM image, and .*image\.png is none"):
        write_masks(tmp_path / "a.dcm", labels, picture)
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        write_masks(tmp_path / "nowhere/a.png", labels, picture)
    assert sorted(tmp_path.iterdir()) == before


def test_a_png_of_a_stack_is_refused(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(STACK.T, AFFINE), tmp_path / "image.nii")
    image = read_image(tmp_path / "image.nii")
    with pytest.raises(
        DataError, match=r"one label map, and .*image\.nii has 3 frames; write \.nii"
    ):
        write_masks(tmp_path / "a.png", labels_on(image), image)


def test_a_dicom_image_that_lacks_what_a_segmentation_states(tmp_path: Path):
    image = read_image(write_dicom(tmp_path / "image.dcm", GREY, StudyInstanceUID=None))
    with pytest.raises(DataError, match=r"image\.dcm cannot be the source .*StudyInstanceUID"):
        write_masks(tmp_path / "a.dcm", labels_on(image), image, NAMES)
    assert not (tmp_path / "a.dcm").exists()


def test_what_an_anonymiser_takes_out_is_empty_in_a_segmentation(tmp_path: Path):
    source = write_dicom(tmp_path / "image.dcm", GREY, **dict.fromkeys(MAY_BE_EMPTY))
    image = read_image(source)
    write_masks(tmp_path / "a.dcm", labels_on(image), image, NAMES)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "a.dcm", image), labels_on(image))
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert all(keyword in found and not found[keyword].value for keyword in MAY_BE_EMPTY)
    assert image.dicom is not None
    assert not any(keyword in image.dicom for keyword in MAY_BE_EMPTY)


def test_a_failing_write_keeps_what_was_there(
    tmp_path: Path, picture: ImageFile, monkeypatch: pytest.MonkeyPatch
):
    write_masks(tmp_path / "a.png", labels_on(picture), picture)
    before = (tmp_path / "a.png").read_bytes()

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        write_masks(tmp_path / "a.png", labels_on(picture), picture)
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
