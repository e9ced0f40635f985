"""Tests of the CAMUS reader, on phantoms, on planted faults and, where at hand, on real frames."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from adapterkit.data.camus import (
    STRUCTURES,
    CamusDataset,
    CamusError,
    Frame,
    find_frames,
    read_image,
    read_mask,
    split_patients,
)
from adapterkit.data.phantom import write_phantom

REAL = Path(__file__).parents[2] / "shared/data/camus224"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("camus") / "release", 3, image_size=64)


@pytest.fixture
def release(phantom: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(phantom, tmp_path / "release")


def save(path: Path, rows: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> None:
    """Writes a (row, column) array as CAMUS does, (x, y)."""
    affine = np.diag([spacing[1], spacing[0], 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(rows.swapaxes(0, 1), affine), path)


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


def test_half_sequences_are_left_out_and_a_patient_may_lack_a_view(release: Path) -> None:
    folder = release / "database_nifti/patient0002"
    (folder / "patient0002_2CH_half_sequence.nii.gz").touch()
    for path in folder.glob("patient0002_4CH_*"):
        path.unlink()
    names = [frame.name for frame in find_frames(release) if frame.patient == "patient0002"]
    assert names == ["patient0002_2CH_ED", "patient0002_2CH_ES"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CamusError, match="nowhere is not a folder"):
        find_frames(tmp_path / "nowhere")


def test_a_folder_without_patients_is_told_the_layout(tmp_path: Path) -> None:
    with pytest.raises(CamusError, match="expected database_nifti/patient0001/patient0001_2CH_ED"):
        find_frames(tmp_path)


@pytest.mark.parametrize("missing", ["patient0002_4CH_ES_gt.nii.gz", "patient0002_4CH_ES.nii.gz"])
def test_a_frame_without_mask_or_without_image_is_named(release: Path, missing: str) -> None:
    (release / "database_nifti/patient0002" / missing).unlink()
    with pytest.raises(CamusError, match=f"patient0002_4CH_ES is incomplete.*{missing} is missing"):
        find_frames(release)


def test_a_patient_in_two_folders_is_named_with_both(release: Path) -> None:
    shutil.copytree(release / "database_nifti/patient0003", release / "copy/patient0003")
    with pytest.raises(CamusError, match=r"patient0003 is listed twice, in .*copy and in .*nifti"):
        find_frames(release)


def test_a_patient_without_frames_is_named(release: Path) -> None:
    (release / "database_nifti/patient0009").mkdir()
    with pytest.raises(CamusError, match="patient0009 holds no frame"):
        find_frames(release)


# read_image and read_mask


def test_arrays_are_row_by_column_and_so_is_the_spacing(frame: Frame) -> None:
    image, spacing = read_image(frame)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.arange(24).reshape(6, 4))
    assert spacing == (0.5, 0.75)
    mask = read_mask(frame, (6, 4))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.arange(24).reshape(6, 4) % 4)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float64])
def test_other_types_are_read_as_float32_with_their_values(frame: Frame, dtype: type) -> None:
    save(frame.image, (100 * np.arange(24).reshape(6, 4)).astype(dtype))
    image, _ = read_image(frame)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, 100 * np.arange(24).reshape(6, 4))


def test_a_mask_of_whole_floats_is_read(frame: Frame) -> None:
    save(frame.mask, np.full((6, 4), 3.0))
    assert (read_mask(frame, (6, 4)) == 3).all()


@pytest.mark.parametrize("content", [b"", b"not a NIfTI file", None])
def test_a_damaged_or_truncated_file_is_named(frame: Frame, content: bytes | None) -> None:
    save(frame.image, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    whole = frame.image.read_bytes()
    frame.image.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(CamusError, match=r"patient0007_2CH_ED\.nii\.gz cannot be read"):
        read_image(frame)


def test_a_truncated_mask_is_named(frame: Frame) -> None:
    frame.mask.write_bytes(frame.mask.read_bytes()[:60])
    with pytest.raises(CamusError, match=r"patient0007_2CH_ED_gt\.nii\.gz cannot be read"):
        read_mask(frame, (6, 4))


def test_a_sequence_is_not_a_frame(frame: Frame) -> None:
    save(frame.image, np.zeros((6, 4, 5), np.uint8))
    with pytest.raises(CamusError, match=r"ED\.nii\.gz holds .*\(4, 6, 5\).*expected a 2-D"):
        read_image(frame)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted(frame: Frame, value: float) -> None:
    image = np.zeros((6, 4), np.float32)
    image[2, 1:3] = value
    save(frame.image, image)
    with pytest.raises(CamusError, match=r"ED\.nii\.gz has 2 of 24 values that are NaN"):
        read_image(frame)


def test_a_spacing_that_is_not_a_length_is_refused(frame: Frame) -> None:
    nifti = nibabel.Nifti1Image(np.zeros((4, 6), np.uint8), None)
    nifti.header["pixdim"][2] = np.inf
    nibabel.save(nifti, frame.image)
    with pytest.raises(CamusError, match=r"ED\.nii\.gz states a pixel spacing of inf x 1"):
        read_image(frame)


def test_both_sizes_of_a_mismatch_are_given(frame: Frame) -> None:
    save(frame.mask, np.zeros((4, 6), np.uint8))
    with pytest.raises(CamusError, match=r"_gt\.nii\.gz is 4 x 6 .*ED\.nii\.gz is 6 x 4"):
        read_mask(frame, (6, 4))


@pytest.mark.parametrize(("value", "listed"), [(7, "0, 7"), (0.5, "0, 0.5"), (np.nan, "0, nan")])
def test_unknown_labels_are_listed(frame: Frame, value: float, listed: str) -> None:
    mask = np.zeros((6, 4), np.float32)
    mask[3, 3] = value
    save(frame.mask, mask)
    with pytest.raises(CamusError, match=rf"holds the labels {listed}: expected only 0, 1, 2, 3"):
        read_mask(frame, (6, 4))


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
    with pytest.raises(CamusError, match="patients has 2 names: expected at least 3"):
        split_patients(["patient0001", "patient0002"])


def test_duplicates_are_refused() -> None:
    with pytest.raises(CamusError, match="patient0002 more than once"):
        split_patients(["patient0001", "patient0002", "patient0003", "patient0002"])


@pytest.mark.parametrize("fractions", [(0.7, 0.2, 0.2), (0.8, 0.2, 0.0), (1.2, -0.4, 0.2)])
def test_fractions_that_do_not_fit_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(CamusError, match="expected three positive numbers that sum to 1"):
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
    assert (sample["patient"], sample["view"], sample["phase"]) == ("patient0001", "4CH", "ED")


def test_at_the_files_own_size_nothing_is_resampled(phantom: Path) -> None:
    frame = find_frames(phantom)[0]
    sample = CamusDataset([frame], 64)[0]
    image, _ = read_image(frame)
    np.testing.assert_array_equal(sample["image"][0].numpy(), image)
    labels = read_mask(frame, (64, 64))
    for channel, label in enumerate(STRUCTURES):
        np.testing.assert_array_equal(sample["masks"][channel].numpy(), labels == label)


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
    with pytest.raises(CamusError, match=r"patient0001_4CH_ES\.nii\.gz"):
        dataset[3]


def test_indices_behave_as_in_a_sequence(phantom: Path) -> None:
    dataset = CamusDataset(find_frames(phantom), 32)
    assert dataset[-1]["name"] == dataset[11]["name"]
    with pytest.raises(IndexError):
        dataset[12]


def test_no_frames_and_no_size_are_refused(phantom: Path) -> None:
    with pytest.raises(CamusError, match="frames is empty"):
        CamusDataset([], 32)
    with pytest.raises(CamusError, match="image_size is 0"):
        CamusDataset(find_frames(phantom), 0)


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
        image, _ = read_image(frame)
        height, width = image.shape
        labels = read_mask(frame, (height, width))
        rows = {label: np.argwhere(labels == label)[:, 0].mean() for label in STRUCTURES}
        assert rows[3] > rows[1], f"{frame.name}: the atrium lies below the ventricle"
        corners = image[:10, [0, -1]]
        assert corners.max() < 30, f"{frame.name}: the sector's apex is at the top"


def test_real_frames_load_through_the_dataset(real_frames: list[Frame]) -> None:
    dataset = CamusDataset(real_frames[::300], 256)
    for sample in (dataset[index] for index in range(len(dataset))):
        assert sample["image"].shape == (3, 256, 256)
        assert (sample["masks"].sum((1, 2)) > 100).all()
