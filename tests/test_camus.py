"""Tests of the CAMUS reader, on phantoms, on planted faults and, where at hand, on real frames."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from adapterkit.data.camus import (
    STRUCTURES,
    CamusDataset,
    Frame,
    Info,
    find_frames,
    find_sequences,
    read_info,
    read_split,
)
from adapterkit.data.dataset import to_native
from adapterkit.data.images import DataError
from adapterkit.data.phantom import write_phantom
from adapterkit.data.splits import Split, split_patients

REAL = Path(__file__).parents[2] / "shared/data/camus224"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("camus") / "release", 3, image_size=64)


@pytest.fixture
def release(phantom: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(phantom, tmp_path / "release")


def save(path: Path, rows: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> None:
    """Writes a (row, column) or (time, row, column) array as CAMUS does, (x, y, time)."""
    affine = np.diag([spacing[1], spacing[0], 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(rows.T, affine), path)


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """A frame of 6 rows and 4 columns whose files a test may replace."""
    stem = tmp_path / "patient0007_2CH_ED"
    image, mask = Path(f"{stem}.nii.gz"), Path(f"{stem}_gt.nii.gz")
    save(image, np.arange(24, dtype=np.uint8).reshape(6, 4), spacing=(0.5, 0.75))
    save(mask, np.arange(24, dtype=np.uint8).reshape(6, 4) % 4)
    return Frame("patient0007", "2CH", "ED", image, mask)


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


@pytest.mark.parametrize(
    ("text", "info"),
    [
        (INFO, READ),
        (INFO.replace(": ", ":").replace("\n", "\r\n"), READ),
        (INFO.replace(": ", " : ") + "\n", READ),
        (INFO.replace("EF", "LVedv: 94.0\nLVesv: 43.3\nLVef"), READ),
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


# split_patients

names = st.sets(st.integers(1, 9999), min_size=3, max_size=200).map(
    lambda numbers: [f"patient{number:04d}" for number in numbers]
)
weights = st.tuples(*[st.integers(1, 20)] * 3)


@given(names=names, weights=weights, seed=st.integers(0, 2**32), data=st.data())
def test_a_split_is_a_partition_that_ignores_the_order(
    names: list[str], weights: tuple[int, int, int], seed: int, data: st.DataObject
) -> None:
    train, validation, test = (weight / sum(weights) for weight in weights)
    fractions = (train, validation, test)
    split = split_patients(names, seed, fractions)
    parts = (split.train, split.validation, split.test)
    assert sorted(sum(parts, ())) == sorted(names)
    assert all(part == tuple(sorted(part)) for part in parts)
    assert min(map(len, parts)) >= 1
    shuffled = data.draw(st.permutations(names))
    assert split_patients(shuffled, seed, fractions) == split
    for part, fraction in zip(parts, fractions, strict=True):
        # Off by less than one patient, or by the patients that empty parts were given.
        assert abs(len(part) - fraction * len(names)) < 1 + (len(names) * min(fractions) < 1) * 2


def test_the_papers_split_of_450_patients_has_exact_sizes() -> None:
    split = split_patients(f"patient{number:04d}" for number in range(1, 451))
    assert (len(split.train), len(split.validation), len(split.test)) == (315, 45, 90)


def test_the_seed_decides_the_split() -> None:
    patients = [f"patient{number:04d}" for number in range(1, 51)]
    assert split_patients(patients, seed=1) == split_patients(patients, seed=1)
    assert split_patients(patients, seed=1) != split_patients(patients, seed=2)


def test_fewer_than_three_patients_are_refused() -> None:
    with pytest.raises(DataError, match="patients has 2 names: expected at least 3"):
        split_patients(["patient0001", "patient0002"])


def test_duplicates_are_refused() -> None:
    with pytest.raises(DataError, match="patient0002 more than once"):
        split_patients(["patient0001", "patient0002", "patient0003", "patient0002"])


@pytest.mark.parametrize("fractions", [(0.7, 0.2, 0.2), (0.8, 0.2, 0.0), (1.2, -0.4, 0.2)])
def test_fractions_that_do_not_fit_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="expected three positive numbers that sum to 1"):
        split_patients(["a", "b", "c", "d"], fractions=fractions)


# CamusDataset


def test_an_item_has_the_promised_shapes_types_and_ranges(phantom: Path) -> None:
    frames = find_frames(phantom)
    dataset = CamusDataset(frames, 48)
    assert len(dataset) == 12
    sample = dataset[2]
    image, masks = sample["image"], sample["masks"]
    assert image.shape == masks.shape == (3, 48, 48)
    assert image.dtype == torch.float32
    assert masks.dtype == torch.uint8
    assert 0 <= image.min() < 20
    assert 100 < image.max() <= 255
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    assert (masks.sum(0) <= 1).all()
    assert (masks.sum((1, 2)) > 0).all()
    assert sample["name"] == "patient0001_4CH_ED"
    attributes = {"patient": "patient0001", "view": "4CH", "phase": "ED"}
    assert attributes.items() <= dict(sample).items()


def test_at_the_files_own_size_nothing_is_resampled(phantom: Path) -> None:
    frame = find_frames(phantom)[0]
    sample = CamusDataset([frame], 64)[0]
    native = frame.read()
    np.testing.assert_array_equal(sample["image"][0].numpy(), native.image)
    for channel, label in enumerate(STRUCTURES):
        np.testing.assert_array_equal(sample["masks"][channel].numpy(), native.labels == label)


def test_items_collate_into_batches(phantom: Path) -> None:
    batch = next(iter(DataLoader(CamusDataset(find_frames(phantom), 32), batch_size=5)))
    assert batch["image"].shape == batch["masks"].shape == (5, 3, 32, 32)
    assert batch["view"] == ["2CH", "2CH", "4CH", "4CH", "2CH"]


def test_later_epochs_do_not_touch_the_disk(release: Path) -> None:
    dataset = CamusDataset(find_frames(release), 32)
    first = [dataset[index] for index in range(len(dataset))]
    shutil.rmtree(release)
    for index, before in enumerate(first):
        after = dataset[index]
        assert torch.equal(after["image"], before["image"])
        assert torch.equal(after["masks"], before["masks"])


def test_changing_an_item_in_place_does_not_change_the_next(phantom: Path) -> None:
    dataset = CamusDataset(find_frames(phantom), 32)
    before = dataset[0]["image"].clone()
    dataset[0]["image"].zero_()
    dataset[0]["masks"].zero_()
    assert torch.equal(dataset[0]["image"], before)
    assert dataset[0]["masks"].sum() > 0


@pytest.mark.parametrize("size", [40, 96, 150])
def test_image_and_masks_stay_aligned_when_resized(frame: Frame, size: int) -> None:
    labels = np.zeros((64, 80), np.uint8)
    labels[20:41, 30:57] = 1
    save(frame.mask, labels)
    save(frame.image, 200 * labels)
    sample = CamusDataset([frame], size)[0]
    grid = torch.arange(size, dtype=torch.float32)
    for axis in (0, 1):
        light = sample["image"][0].sum(1 - axis)
        inside = sample["masks"][0].float().sum(1 - axis)
        offset = (grid * light).sum() / light.sum() - (grid * inside).sum() / inside.sum()
        assert abs(offset) < 0.5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 100.0, 200.0), (0, 100, 200)),
        ((-100.0, 0.0, 100.0), (0, 127.5, 255)),
        ((1000.0, 1500.0, 2000.0), (0, 127.5, 255)),
        ((0.0, 0.5, 1.0), (0, 127.5, 255)),
        ((300.0, 300.0, 300.0), (0, 0, 0)),
        ((0.0, 0.0, 0.0), (0, 0, 0)),
    ],
)
def test_grey_values_outside_the_range_are_scaled(
    frame: Frame, values: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    save(frame.image, np.repeat(np.array([values]), 3, axis=0))
    save(frame.mask, np.zeros((3, 3), np.uint8))
    row = CamusDataset([frame], 3)[0]["image"][0, 1]
    # Kept as whole grey values, so up to half a grey level is lost.
    np.testing.assert_allclose(row.numpy(), expected, atol=0.5)


def test_a_damaged_file_is_named_on_access(release: Path) -> None:
    frames = find_frames(release)
    frames[3].image.write_bytes(b"")
    dataset = CamusDataset(frames, 32)
    with pytest.raises(DataError, match=r"patient0001_4CH_ES\.nii\.gz"):
        dataset[3]


def test_indices_behave_as_in_a_sequence(phantom: Path) -> None:
    dataset = CamusDataset(find_frames(phantom), 32)
    assert dataset[-1]["name"] == dataset[11]["name"]
    with pytest.raises(IndexError):
        dataset[12]


def test_no_frames_and_no_size_are_refused(phantom: Path) -> None:
    with pytest.raises(DataError, match="records is empty"):
        CamusDataset([], 32)
    with pytest.raises(DataError, match="image_size is 0"):
        CamusDataset(find_frames(phantom), 0)


def test_a_record_twice_is_named(phantom: Path) -> None:
    frames = find_frames(phantom)
    with pytest.raises(DataError, match="lists patient0001_2CH_ED more than once"):
        CamusDataset([*frames, frames[0]], 32)


# Native geometry


def test_the_reference_has_the_size_and_spacing_on_disk(frame: Frame) -> None:
    save(frame.image, np.zeros((64, 80), np.uint8), spacing=(0.3, 0.15))
    labels = np.zeros((64, 80), np.uint8)
    labels[20:41, 30:57] = 3
    save(frame.mask, labels)
    masks, spacing = CamusDataset([frame], 32).native_reference(0)
    assert spacing == pytest.approx((0.3, 0.15))
    assert masks.dtype == torch.bool
    np.testing.assert_array_equal(masks.numpy(), np.stack([labels == k for k in (1, 2, 3)]))


@pytest.mark.parametrize("size", [48, 64, 256])
@pytest.mark.parametrize("shape", [(64, 80), (120, 70), (300, 200)])
def test_a_perfect_prediction_is_perfect_at_native_size(
    frame: Frame, size: int, shape: tuple[int, int]
) -> None:
    height, width = shape
    row, column = np.mgrid[0:height, 0:width]
    inside = ((row / height - 0.45) / 0.2) ** 2 + ((column / width - 0.6) / 0.3) ** 2 < 1
    save(frame.image, np.zeros(shape, np.uint8))
    save(frame.mask, inside.astype(np.uint8))
    dataset = CamusDataset([frame], size)
    reference, _ = dataset.native_reference(dataset[0]["index"])
    predicted = to_native(dataset[0]["masks"].float() - 0.5, reference.shape[-2:]) > 0
    assert predicted.shape == (3, height, width)
    overlap = 2 * (predicted & reference)[0].sum() / (predicted[0].sum() + reference[0].sum())
    assert overlap > 0.97
    for axis in (1, 2):
        grid = torch.arange(reference.shape[axis], dtype=torch.float32)
        of_predicted, of_reference = (
            (grid * mask[0].sum(2 - axis)).sum() / mask[0].sum() for mask in (predicted, reference)
        )
        pixel = max(1, reference.shape[axis] / size)
        assert abs(of_predicted - of_reference) < 0.3 * pixel


def test_native_maps_keep_leading_axes_and_values() -> None:
    maps = torch.full((2, 3, 16, 16), 4.0)
    native = to_native(maps, (30, 20))
    assert native.shape == (2, 3, 30, 20)
    torch.testing.assert_close(native, torch.full((2, 3, 30, 20), 4.0))


def test_a_sample_of_a_subset_names_its_place_in_the_whole(phantom: Path) -> None:
    dataset = CamusDataset(find_frames(phantom), 32)
    subset = torch.utils.data.Subset(dataset, [5, 9])
    batch = next(iter(DataLoader(subset, batch_size=2)))
    assert batch["index"].tolist() == [5, 9]
    assert dataset.records[9].name == batch["name"][1]


# Augmentation


def noise(image: torch.Tensor, labels: torch.Tensor, generator: torch.Generator):
    flip = bool(torch.rand((), generator=generator) < 0.5)
    image = image + torch.rand(image.shape, generator=generator)
    return (image.flip(-1), labels.flip(-1)) if flip else (image, labels)


def test_an_augmentation_depends_on_seed_epoch_and_name_only(phantom: Path) -> None:
    frames = find_frames(phantom)
    dataset = CamusDataset(frames, 32, noise, seed=1)
    dataset.set_epoch(3)
    first = [dataset[index] for index in range(4)]
    other = CamusDataset(frames[::-1], 32, noise, seed=1)
    other.set_epoch(2)
    changed = [other[len(frames) - 1 - index] for index in range(4)]
    other.set_epoch(3)
    again = [other[len(frames) - 1 - index] for index in reversed(range(4))][::-1]
    for a, b, c in zip(first, again, changed, strict=True):
        assert a["name"] == b["name"] == c["name"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["masks"], b["masks"])
        assert not torch.equal(a["image"], c["image"])
    reseeded = CamusDataset(frames, 32, noise, seed=2)
    reseeded.set_epoch(3)
    assert not torch.equal(reseeded[0]["image"], first[0]["image"])


def test_an_augmentation_does_not_reach_the_cache_or_the_reference(phantom: Path) -> None:
    frames = find_frames(phantom)[:1]

    def erase(image: torch.Tensor, labels: torch.Tensor, generator: torch.Generator):
        return image.zero_(), labels.clone().zero_()

    dataset = CamusDataset(frames, 32, erase)
    assert dataset[0]["image"].max() == dataset[0]["masks"].max() == 0
    assert dataset.native_reference(0)[0].any()
    dataset.augmentation = None
    assert dataset[0]["image"].max() > 100
    assert dataset[0]["masks"].any()


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
