"""Augmentation of images together with their label maps, through MONAI.

Point prompts need no transform of their own: they are drawn from the masks after it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import RandSpatialCropd
from monai.transforms.intensity.dictionary import (
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityFixedMeand,
)
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd, RandRotated, RandZoomd
from monai.transforms.transform import RandomizableTransform
from torch import Generator, Tensor


class SamusAugmentation:
    """The augmentation of the published SAMUS, for `SegmentationDataset(..., augmentation=...)`.

    In this order, each with probability `probability` and independently of the others:

    - gamma: values v in [0, 255] become 255 (v / 255)^(1 / g), g uniform in [1.0, 2.5], which
      brightens;
    - rotation about the centre by an angle uniform in [-30, 30] degrees, with black corners;
    - scale by a factor uniform in [1, 1.3], and a crop of the original size at a random place;
    - contrast: values v become m + c (v - m), m the image's mean and c uniform in [0.8, 2.0],
      clipped to [0, 255].

    Images are resampled bilinearly, label maps by nearest neighbour. The published code rotates
    images too by nearest neighbour, draws g from 1.0, 1.1, ..., 2.4, and rotates an image before
    it is squashed to a square. A call takes about 9 ms on one CPU core at 256 x 256 pixels. The
    transforms hold random state: one object serves one thread.

    Source: the SAMUS reproduction study, "Published augmentation"; the order and the formulas are
    those of `JointTransform2D` in the code of X. Lin et al., "SAMUS", arXiv 2309.06824, 2023, with
    the probabilities of its training script, in which flip, noise and distortion are off.

    Args:
        image_size: side of the square images, in pixels.
        probability: of each change.

    Raises:
        ValueError: the size is below 1, or the probability outside [0, 1].
    """

    def __init__(self, image_size: int, probability: float = 0.5) -> None:
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}: expected a side in pixels, at least 1.")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}: expected a number from 0 to 1.")
        both = ("image", "labels")
        self._change = Compose(
            [
                _RandGamma(probability, (1.0, 2.5)),
                RandRotated(
                    both,
                    range_x=math.radians(30),
                    prob=probability,
                    mode=("bilinear", "nearest"),
                    padding_mode="zeros",
                ),
                RandZoomd(
                    both,
                    prob=probability,
                    min_zoom=1.0,
                    max_zoom=1.3,
                    mode=("bilinear", "nearest-exact"),
                    keep_size=False,
                ),
                RandSpatialCropd(both, roi_size=(image_size, image_size), random_size=False),
                # MONAI's factor is what is added to 1.
                RandScaleIntensityFixedMeand("image", factors=(0.8 - 1, 2.0 - 1), prob=probability),
            ]
        )

    def __call__(
        self, image: Float[Tensor, "c S S"], labels: UInt8[Tensor, "1 S S"], generator: Generator
    ) -> tuple[Float[Tensor, "c S S"], UInt8[Tensor, "1 S S"]]:
        """Augment an image in [0, 255] and its label map alike; all randomness is `generator`'s."""
        return _changed(self._change, image, labels, generator)


class MedicalAugmentation:
    """Small changes that another machine, another operator or another patient would make.

    In this order, each with probability `probability` and independently of the others:

    - flips along the axes that are asked for, none by default: a flipped heart is no heart;
    - rotation in [-15, 15] degrees, scale in [0.85, 1.15] and shifts of up to a tenth of the side,
      with black beyond the borders;
    - gamma in [0.7, 1.5]: values v in [0, 255] become 255 (v / 255)^(1 / g);
    - contrast about the mean in [0.8, 1.25];
    - Gaussian blur with a standard deviation of 0.5 to 1 pixels;
    - Gaussian noise with a standard deviation of up to 10.

    Images are resampled bilinearly, label maps by nearest neighbour. The transforms hold random
    state: one object serves one thread.

    Args:
        image_size: side of the square images, in pixels.
        probability: of each change.
        flips: "horizontal", "vertical" or both.

    Raises:
        ValueError: the probability is outside [0, 1], or a flip is along another axis.
    """

    def __init__(
        self, image_size: int, probability: float = 0.3, flips: Sequence[str] = ()
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}: expected a number from 0 to 1.")
        if not {*flips} <= {*_FLIPS}:
            raise ValueError(f"flips is {flips}: expected some of {', '.join(_FLIPS)}.")
        both, shift = ("image", "labels"), image_size / 10
        self._change = Compose(
            [
                *(RandFlipd(both, 0.5, spatial_axis=_FLIPS[each]) for each in flips),
                RandAffined(
                    both,
                    prob=probability,
                    rotate_range=math.radians(15),
                    scale_range=0.15,
                    translate_range=shift,
                    mode=("bilinear", "nearest"),
                    padding_mode="zeros",
                ),
                _RandGamma(probability, (0.7, 1.5)),
                # MONAI's factor is what is added to 1.
                RandScaleIntensityFixedMeand("image", factors=(-0.2, 0.25), prob=probability),
                RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=probability),
                RandGaussianNoised("image", prob=probability, std=10.0),
            ]
        )

    def __call__(
        self, image: Float[Tensor, "c S S"], labels: UInt8[Tensor, "1 S S"], generator: Generator
    ) -> tuple[Float[Tensor, "c S S"], UInt8[Tensor, "1 S S"]]:
        """Augment an image in [0, 255] and its label map alike; all randomness is `generator`'s."""
        return _changed(self._change, image, labels, generator)


_FLIPS = {"horizontal": 1, "vertical": 0}
"""The spatial axis that is reversed."""


def _changed(
    change: Compose,
    image: Float[Tensor, "c S S"],
    labels: UInt8[Tensor, "1 S S"],
    generator: Generator,
) -> tuple[Float[Tensor, "c S S"], UInt8[Tensor, "1 S S"]]:
    change.set_random_state(seed=int(torch.randint(2**32, (), generator=generator)))
    changed: Any = change({"image": image, "labels": labels})
    return (
        changed["image"].as_tensor().clamp(0, 255),
        changed["labels"].as_tensor().round().to(torch.uint8),
    )


class _RandGamma(RandomizableTransform):
    """As published; MONAI's RandAdjustContrast is relative to the image's own extremes."""

    def __init__(self, prob: float, gamma: tuple[float, float]) -> None:
        super().__init__(prob)
        self.gamma = gamma

    def __call__(self, data: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.randomize(None)
        if not self._do_transform:
            return data
        gamma = self.R.uniform(*self.gamma)
        return {**data, "image": 255 * (data["image"] / 255) ** (1 / gamma)}
