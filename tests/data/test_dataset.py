"""Tests of data sets: items, sizes, native geometry and augmentation."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from adapterkit.data.collections.camus import (
    STRUCTURES,
    CamusDataset,
    Frame,
    find_frames,
)
from adapterkit.data.dataset import to_native
from adapterkit.data.image_file import DataError
from tests.camus_files import save

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
        # Divided by a percentile; a mean of others; whole numbers, stored as others or not.
        ((0.0, 0.55, 1.1), (0, 127.5, 255)),
        ((10.0, 85.25, 160.5), (0, 127.5, 255)),
        ((10.0, 85.0, 160.0), (10, 85, 160)),
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
