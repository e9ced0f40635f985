"""Tests of the CAMUS reader, on phantoms, on planted faults and, where at hand, on real frames."""

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from adapterkit.data.collections.camus import (
    STRUCTURES,
    CamusDataset,
    Frame,
    Info,
    find_frames,
    find_sequences,
    read_info,
    read_split,
)
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split, split_patients
from tests.camus_files import save

REAL = Path(__file__).parents[3] / "shared/data/camus224"


# find_frames


def test_the_same_frames_are_found_from_the_three_roots(phantom: Path) -> None:
    frames = find_frames(phantom)
    assert find_frames(phantom / "database_nifti") == frames
    assert find_frames(phantom.parent) == frames


def test_frames_are_sorted_and_named_as_on_disk(phantom: Path) -> None:
    frames = find_frames(phantom)
    assert [frame.name for frame in frames[:5]] == [
        "patient0001_2CH_ED",
        "patient0001_2CH_ES",
        "patient0001_4CH_ED",
        "patient0001_4CH_ES",
        "patient0002_2CH_ED",
    ]
    assert len(frames) == 12
    assert all(frame.image.name == f"{frame.name}.nii.gz" for frame in frames)
    assert all(frame.mask.name == f"{frame.name}_gt.nii.gz" for frame in frames)


def test_half_sequences_are_no_frames_and_a_patient_may_lack_a_view(release: Path) -> None:
    folder = release / "database_nifti/patient0002"
    (folder / "patient0002_2CH_half_sequence.nii.gz").touch()
    for path in folder.glob("patient0002_4CH_*"):
        path.unlink()
    names = [frame.name for frame in find_frames(release) if frame.patient == "patient0002"]
    assert names == ["patient0002_2CH_ED", "patient0002_2CH_ES"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        find_frames(tmp_path / "nowhere")


def test_a_folder_without_patients_is_told_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected database_nifti/patient0001/patient0001_2CH_ED"):
        find_frames(tmp_path)


@pytest.mark.parametrize("missing", ["patient0002_4CH_ES_gt.nii.gz", "patient0002_4CH_ES.nii.gz"])
def test_a_frame_without_mask_or_without_image_is_named(release: Path, missing: str) -> None:
    (release / "database_nifti/patient0002" / missing).unlink()
    with pytest.raises(DataError, match=f"patient0002_4CH_ES is incomplete.*{missing} is missing"):
        find_frames(release)


def test_a_patient_in_two_folders_is_named_with_both(release: Path) -> None:
    shutil.copytree(release / "database_nifti/patient0003", release / "copy/patient0003")
    with pytest.raises(DataError, match=r"patient0003 is listed twice, in .*copy and in .*nifti"):
        find_frames(release)


def test_a_patient_without_frames_is_named(release: Path) -> None:
    (release / "database_nifti/patient0009").mkdir()
    with pytest.raises(DataError, match="patient0009 holds no frame"):
        find_frames(release)


def test_two_files_of_one_frame_are_named(release: Path) -> None:
    folder = release / "database_nifti/patient0002"
    (folder / "patient0002_2CH_ED.mhd").touch()
    with pytest.raises(DataError, match=r"2CH_ED is listed twice.*2CH_ED\.nii\.gz.*2CH_ED\.mhd"):
        find_frames(release)


# Frame.read


def test_arrays_are_row_by_column_and_so_is_the_spacing(frame: Frame) -> None:
    native = frame.read()
    assert native.image.dtype == native.labels.dtype == np.uint8
    np.testing.assert_array_equal(native.image, np.arange(24).reshape(6, 4))
    np.testing.assert_array_equal(native.labels, np.arange(24).reshape(6, 4) % 4)
    assert native.spacing == (0.5, 0.75)


def test_a_spacing_of_one_is_an_unknown_one(frame: Frame) -> None:
    save(frame.image, np.zeros((6, 4), np.uint8))
    assert frame.read().spacing is None


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float64])
def test_other_types_are_read_as_float32_with_their_values(frame: Frame, dtype: type) -> None:
    save(frame.image, (100 * np.arange(24).reshape(6, 4)).astype(dtype))
    image = frame.read().image
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, 100 * np.arange(24).reshape(6, 4))


def test_a_mask_of_whole_floats_is_read(frame: Frame) -> None:
    save(frame.mask, np.full((6, 4), 3.0))
    assert (frame.read().labels == 3).all()


@pytest.mark.parametrize("content", [b"", b"not a NIfTI file", None])
def test_a_damaged_or_truncated_file_is_named(frame: Frame, content: bytes | None) -> None:
    save(frame.image, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    whole = frame.image.read_bytes()
    frame.image.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=r"patient0007_2CH_ED\.nii\.gz cannot be read"):
        frame.read()


def test_a_truncated_mask_is_named(frame: Frame) -> None:
    frame.mask.write_bytes(frame.mask.read_bytes()[:60])
    with pytest.raises(DataError, match=r"patient0007_2CH_ED_gt\.nii\.gz cannot be read"):
        frame.read()


def test_a_sequence_is_not_a_frame(frame: Frame) -> None:
    save(frame.image, np.zeros((5, 6, 4), np.uint8))
    save(frame.mask, np.zeros((5, 6, 4), np.uint8))
    with pytest.raises(DataError, match=r"ED\.nii\.gz holds 5 images of 6 x 4 .*expected one"):
        frame.read()


def test_what_is_no_image_is_refused(frame: Frame) -> None:
    save(frame.image, np.zeros((2, 2, 5, 6, 4), np.uint8))
    with pytest.raises(DataError, match=r"ED\.nii\.gz holds an array of shape.*expected real"):
        frame.read()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted(frame: Frame, value: float) -> None:
    image = np.zeros((6, 4), np.float32)
    image[2, 1:3] = value
    save(frame.image, image)
    with pytest.raises(DataError, match=r"ED\.nii\.gz has 2 of 24 values that are NaN"):
        frame.read()


def test_a_spacing_that_is_not_a_length_is_refused(frame: Frame) -> None:
    nifti = nibabel.Nifti1Image(np.zeros((4, 6), np.uint8), None)
    nifti.header["pixdim"][2] = np.inf
    nibabel.save(nifti, frame.image)
    with pytest.raises(DataError, match=r"ED\.nii\.gz states a pixel spacing of inf x 1"):
        frame.read()


def test_both_sizes_of_a_mismatch_are_given(frame: Frame) -> None:
    save(frame.mask, np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"_gt\.nii\.gz is 4 x 6 .*ED\.nii\.gz is 6 x 4"):
        frame.read()


@pytest.mark.parametrize(("value", "listed"), [(7, "0, 7"), (0.5, "0, 0.5"), (-1, "-1, 0")])
def test_unknown_labels_are_listed(frame: Frame, value: float, listed: str) -> None:
    mask = np.zeros((6, 4), np.float32)
    mask[3, 3] = value
    save(frame.mask, mask)
    with pytest.raises(DataError, match=rf"holds the labels {listed}: expected only 0, 1, 2, 3"):
        frame.read()


# The older release


@pytest.fixture
def older(phantom: Path, tmp_path: Path) -> Path:
    """The phantom as the older release has it, with a folder of test patients without masks."""
    root = tmp_path / "CAMUS"
    for frame in find_frames(phantom):
        native = frame.read()
        assert native.spacing is not None
        folder = root / "training" / frame.patient
        for stem, array in ((frame.name, native.image), (f"{frame.name}_gt", native.labels)):
            # Its images have a third axis of one slice.
            image = sitk.GetImageFromArray(array[None])
            image.SetSpacing((native.spacing[1], native.spacing[0], 1.54))
            folder.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, folder / f"{stem}.mhd")
    sequence = np.random.default_rng(0).integers(0, 255, (7, 20, 30)).astype(np.uint8)
    name = "training/patient0002/patient0002_4CH_sequence.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(sequence), root / name)
    (root / "testing/patient0001").mkdir(parents=True)
    (root / "testing/patient0001/patient0001_2CH_ED.mhd").touch()
    return root


def test_both_releases_hold_the_same(phantom: Path, older: Path) -> None:
    frames = find_frames(older)
    assert frames == find_frames(older / "training") == find_frames(older.parent)
    for ours, theirs in zip(find_frames(phantom), frames, strict=True):
        assert ours.name == theirs.name
        ours, theirs = ours.read(), theirs.read()
        np.testing.assert_array_equal(theirs.image, ours.image)
        np.testing.assert_array_equal(theirs.labels, ours.labels)
        assert theirs.spacing == pytest.approx(ours.spacing)


def test_the_test_patients_have_no_masks(older: Path) -> None:
    with pytest.raises(DataError, match=r"2CH_ED\.mhd is there but .*2CH_ED_gt\.mhd is missing"):
        find_frames(older / "testing")


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_raw_file_is_named_by_its_header(older: Path, damage: str) -> None:
    frame = find_frames(older)[0]
    raw = frame.image.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[:99]) if damage == "truncate" else raw.unlink()
    with pytest.raises(DataError, match=r"patient0001_2CH_ED\.mhd cannot be read as MetaImage"):
        frame.read()


# Sequences


@pytest.fixture
def sequence(release: Path) -> tuple[Path, Path]:
    """A half sequence of 5 frames of 6 rows and 4 columns, planted in the release."""
    stem = release / "database_nifti/patient0002/patient0002_4CH_half_sequence"
    image, mask = Path(f"{stem}.nii.gz"), Path(f"{stem}_gt.nii.gz")
    save(image, np.arange(120, dtype=np.uint8).reshape(5, 6, 4), spacing=(0.5, 0.75))
    save(mask, np.arange(120, dtype=np.uint8).reshape(5, 6, 4) % 4)
    return image, mask


def test_half_sequences_are_read_with_their_masks(
    release: Path, sequence: tuple[Path, Path]
) -> None:
    (found,) = find_sequences(release)
    assert (found.name, found.image, found.mask) == ("patient0002_4CH", *sequence)
    frames, labels, spacing = found.read()
    np.testing.assert_array_equal(frames, np.arange(120).reshape(5, 6, 4))
    assert labels is not None
    np.testing.assert_array_equal(labels, np.arange(120).reshape(5, 6, 4) % 4)
    assert spacing == (0.5, 0.75)


def test_a_half_sequence_without_mask_is_named(release: Path, sequence: tuple[Path, Path]) -> None:
    sequence[1].unlink()
    with pytest.raises(DataError, match=r"half_sequence is incomplete.*_gt\.nii\.gz is missing"):
        find_sequences(release)


def test_a_half_sequence_of_other_length_than_its_mask_is_named(
    release: Path, sequence: tuple[Path, Path]
) -> None:
    save(sequence[1], np.zeros((4, 6, 4), np.uint8))
    with pytest.raises(
        DataError, match=r"_gt\.nii\.gz is 4 frames of 6 x 4.* is 5 frames of 6 x 4"
    ):
        find_sequences(release)[0].read()


def test_sequences_of_the_older_release_have_no_masks(older: Path) -> None:
    (found,) = find_sequences(older)
    frames, labels, spacing = found.read()
    assert frames.shape == (7, 20, 30)
    assert labels is None
    assert spacing is None


# read_info

INFO = """ED: 1
ES: 18
NbFrame: 18
Sex: F
Age: 56
ImageQuality: Good
EF: 54
FrameRate: 48.4
"""
READ = Info(1, 18, 18, "F", 56, "Good", 54.0, 48.4)
WITH_VOLUMES = replace(READ, edv=94.0, esv=43.3)


@pytest.mark.parametrize(
    ("text", "info"),
    [
        (INFO, READ),
        (INFO.replace(": ", ":").replace("\n", "\r\n"), READ),
        (INFO.replace(": ", " : ") + "\n", READ),
        (INFO.replace("EF", "LVedv: 94.0\nLVesv: 43.3\nLVef"), WITH_VOLUMES),
        ("ED: 1\nES: \n", Info(1, None, None, None, None, None, None, None)),
    ],
)
def test_info_is_read_in_every_form(frame: Frame, text: str, info: Info) -> None:
    (frame.image.parent / "Info_2CH.cfg").write_bytes(text.encode())
    assert read_info(frame) == info


def test_info_is_of_the_frames_own_view_and_may_be_missing(release: Path) -> None:
    frames = find_frames(release)
    (release / "database_nifti/patient0001/Info_4CH.cfg").unlink()
    assert read_info(frames[0]) is not None
    assert read_info(frames[2]) is None


@pytest.mark.parametrize(
    ("text", "named"),
    [(b"ED 1", 'the line "ED 1"'), (b"Age: old", 'the Age "old"'), (b"\xff\xfe\x00", "as text")],
)
def test_info_that_is_none_is_named(frame: Frame, text: bytes, named: str) -> None:
    (frame.image.parent / "Info_2CH.cfg").write_bytes(text)
    with pytest.raises(DataError, match=rf"Info_2CH\.cfg .*{named}"):
        read_info(frame)


# read_split


@pytest.fixture
def split_folder(release: Path) -> Path:
    folder = release / "database_split"
    folder.mkdir()
    (folder / "subgroup_training.txt").write_text("patient0003\npatient0001\n\n")
    (folder / "subgroup_validation.txt").write_text("patient0002\r\n")
    (folder / "subgroup_testing.txt").write_text("patient0500")
    return folder


def test_the_releases_own_split_is_read_from_the_three_roots(split_folder: Path) -> None:
    release = split_folder.parent
    split = Split(("patient0001", "patient0003"), ("patient0002",), ("patient0500",))
    assert read_split(release) == split
    assert read_split(release / "database_nifti") == split
    assert read_split(release.parent) == split


def test_a_release_may_have_no_split(release: Path) -> None:
    assert read_split(release) is None


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("subgroup_testing.txt", None, r"subgroup_testing\.txt cannot be read"),
        ("subgroup_testing.txt", "patient0003", "patient0003 is in the split more than once"),
        ("subgroup_training.txt", "a patient", r'subgroup_training\.txt lists "a": expected names'),
    ],
)
def test_a_split_that_is_none_is_refused(
    split_folder: Path, file: str, text: str | None, message: str
) -> None:
    path = split_folder / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_split(split_folder.parent)


# Real frames


@pytest.fixture(scope="module")
def real_frames() -> list[Frame]:
    if not REAL.is_dir():
        pytest.skip("the real CAMUS frames are not on this machine")
    return find_frames(REAL)


def test_the_real_release_is_found_whole(real_frames: list[Frame]) -> None:
    patients = {frame.patient for frame in real_frames}
    assert len(real_frames) == 1800
    assert len(patients) == 450
    split = split_patients(patients)
    assert (len(split.train), len(split.validation), len(split.test)) == (315, 45, 90)


def test_real_hearts_stand_upright(real_frames: list[Frame]) -> None:
    for frame in real_frames[::45]:
        native = frame.read()
        rows = {label: np.argwhere(native.labels == label)[:, 0].mean() for label in STRUCTURES}
        assert rows[3] > rows[1], f"{frame.name}: the atrium lies below the ventricle"
        assert native.spacing is None
        corners = native.image[:10, [0, -1]]
        assert corners.max() < 30, f"{frame.name}: the sector's apex is at the top"


def test_real_frames_load_through_the_dataset(real_frames: list[Frame]) -> None:
    dataset = CamusDataset(real_frames[::300], 256)
    for sample in (dataset[index] for index in range(len(dataset))):
        assert sample["image"].shape == (3, 256, 256)
        assert (sample["masks"].sum((1, 2)) > 100).all()
