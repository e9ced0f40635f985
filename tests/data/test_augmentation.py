"""Tests of the augmentation: what it does to image and labels, and what it depends on."""

import math

import pytest
import torch
from torch import Generator, Tensor

from adapterkit.data.augmentation import MedicalAugmentation, SamusAugmentation

SIZE = 64


EACH = pytest.mark.parametrize("kind", [SamusAugmentation, MedicalAugmentation])


def seed(value: int) -> Generator:
    return Generator().manual_seed(value)


def heart() -> tuple[Tensor, Tensor]:
    """A grey image and its label map: an ellipse of label 2, off the centre, and a disc of 1."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    labels[0, ((x - 28) / 9) ** 2 + ((y - 36) / 14) ** 2 < 1] = 2
    labels[0, (x - 40) ** 2 + (y - 22) ** 2 < 36] = 1
    return 60.0 * labels, labels


@EACH
def test_shapes_types_and_ranges_stay(kind: type) -> None:
    augmentation = kind(SIZE)
    for value in range(40):
        image, labels = augmentation(*heart(), seed(value))
        assert type(image) is type(labels) is Tensor
        assert (image.shape, image.dtype) == ((1, SIZE, SIZE), torch.float32)
        assert (labels.shape, labels.dtype) == ((1, SIZE, SIZE), torch.uint8)
        assert image.min() >= 0
        assert image.max() <= 255
        assert set(labels.unique().tolist()) <= {0, 1, 2}


@EACH
def test_a_generator_decides_alone(kind: type) -> None:
    augmentation = kind(SIZE)
    first = [augmentation(*heart(), seed(value)) for value in range(6)]
    torch.manual_seed(99)
    other = kind(SIZE)
    for value in reversed(range(6)):
        for before, after in zip(first[value], other(*heart(), seed(value)), strict=True):
            assert torch.equal(before, after)
    assert len({image.sum().item() for image, _ in first}) > 3


@EACH
def test_probability_zero_changes_nothing(kind: type) -> None:
    augmentation = kind(SIZE, 0)
    for value in range(10):
        image, labels = augmentation(*heart(), seed(value))
        assert torch.equal(image, heart()[0])
        assert torch.equal(labels, heart()[1])


def test_labels_follow_the_image() -> None:
    augmentation = SamusAugmentation(SIZE, 1)
    grid = torch.arange(SIZE, dtype=torch.float32)
    for value in range(20):
        _, before = heart()
        image, labels = augmentation(200 * (before > 0).float(), before, seed(value))
        assert not torch.equal(labels, before)
        inside = (labels > 0).float()
        bright = (image > image.max() / 2).float()
        assert (inside != bright).float().mean() < 0.03
        for axis in (1, 2):
            of_labels, of_image = inside[0].sum(axis - 1), bright[0].sum(axis - 1)
            offset = (grid * of_labels).sum() / inside.sum() - (
                grid * of_image
            ).sum() / bright.sum()
            assert abs(offset) < 0.5


def test_about_half_of_the_images_keep_their_geometry_in_each_change() -> None:
    augmentation = SamusAugmentation(SIZE)
    same = [torch.equal(augmentation(*heart(), seed(v))[1], heart()[1]) for v in range(120)]
    # Neither rotated nor scaled: 0.25 of the images, give or take three standard deviations.
    assert abs(sum(same) / 120 - 0.25) < 0.12


def test_gamma_and_contrast_are_the_published_ones() -> None:
    """On labels of one value no geometry shows, and grey values are pure functions of before."""
    gammas, contrasts = [], []
    augmentation = SamusAugmentation(SIZE)
    ramp = torch.linspace(0, 255, SIZE).expand(1, SIZE, SIZE).contiguous()
    for value in range(150):
        changed, labels = augmentation(ramp, heart()[1], seed(value))
        if not torch.equal(labels, heart()[1]) or torch.equal(changed, ramp):
            continue
        row, before = changed[0, 0].double(), ramp[0, 0].double()
        middle = slice(8, 40)
        gamma = 1 / ((row[middle] / 255).log() / (before[middle] / 255).log())
        if gamma.std() < 1e-3:
            gammas.append(gamma.mean().item())
            continue
        slope = (row[33] - row[30]) / (before[33] - before[30])
        expected = (before.mean() + slope * (before - before.mean())).clamp(0, 255)
        if (row - expected).abs().max() < 0.1:
            contrasts.append(slope.item())
    assert len(gammas) > 3
    assert min(gammas) >= 1
    assert max(gammas) <= 2.5
    assert max(gammas) - min(gammas) > 0.3
    assert len(contrasts) > 3
    assert min(contrasts) >= 0.8
    assert max(contrasts) <= 2
    assert max(contrasts) - min(contrasts) > 0.3


def test_rotation_and_scale_stay_within_the_published_ranges() -> None:
    """Where two far points go gives the similarity that was applied."""
    angles, scales = [], []
    labels = torch.zeros(1, 256, 256, dtype=torch.uint8)
    labels[0, 118:123, 98:103], labels[0, 118:123, 158:163] = 1, 2
    augmentation = SamusAugmentation(256)
    for value in range(80):
        _, moved = augmentation(labels.float(), labels, seed(value))
        ends = [(moved[0] == label).nonzero().double().mean(0) for label in (1, 2)]
        step = ends[1] - ends[0]
        if not step.isfinite().all():
            continue
        angles.append(math.degrees(math.atan2(float(step[0]), float(step[1]))))
        scales.append(float(step.norm()) / 60)
    assert len(scales) > 70
    assert max(map(abs, angles)) < 31
    assert min(angles) < -20
    assert max(angles) > 20
    assert 0.98 < min(scales) < 1.02
    assert 1.2 < max(scales) < 1.32


@pytest.mark.parametrize(("size", "probability"), [(0, 0.5), (64, -0.1), (64, 1.1)])
def test_arguments_out_of_range_are_refused(size: int, probability: float) -> None:
    with pytest.raises(ValueError, match=r"image_size is 0|probability is"):
        SamusAugmentation(size, probability)


def test_colour_is_augmented_alike_in_all_channels() -> None:
    image, labels = heart()
    colour, _ = SamusAugmentation(SIZE)(image.expand(3, -1, -1).clone(), labels, seed(3))
    grey, _ = SamusAugmentation(SIZE)(image, labels, seed(3))
    for channel in colour:
        torch.testing.assert_close(channel, grey[0])


def test_flips_are_made_where_they_are_asked_for() -> None:
    image, labels = heart()
    unflipped = MedicalAugmentation(SIZE, 0)
    assert all(torch.equal(unflipped(image, labels, seed(i))[0], image) for i in range(10))
    flipped = MedicalAugmentation(SIZE, 0, flips=["horizontal"])
    found = [flipped(image, labels, seed(i)) for i in range(20)]
    expected = {False: (image, labels), True: (image.flip(-1), labels.flip(-1))}
    kinds = [bool(torch.equal(each[0], image.flip(-1))) for each in found]
    assert {*kinds} == {True, False}
    for kind, pair in zip(kinds, found, strict=True):
        assert all(map(torch.equal, pair, expected[kind]))


def test_a_flip_along_another_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="expected some of horizontal, vertical"):
        MedicalAugmentation(SIZE, flips=["diagonal"])
