"""What the small Sam is pretrained on: batches of procedural scenes, drawn from a seed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adapterkit.data.synthetic.canvas import Scene
from adapterkit.data.synthetic.recorded_scenes import draw_recorded_scene
from adapterkit.data.synthetic.scenes import draw_scene
from adapterkit.promptable.points import boxes_around

LARGEST_SCENE = 512
"""In pixels."""

WHOLE = 0.5
"""Share of scenes of a smaller size; the others are quarters of scenes twice as large."""

RECORDED = 0.4
"""Share of scenes as instruments record them; the others are photographs."""


@dataclass(frozen=True)
class Stage:
    """A number of optimiser steps on images of one size."""

    steps: int
    image_size: int
    """Side in pixels."""
    batch_size: int
    """Images per step, of all processes together."""
    prompts: int
    """Prompted masks per image."""
    rounds: int
    """Decodings per prompted mask: by its first prompt, then after corrections."""
    learning_rate: float
    """Peak of the stage's schedule."""


class Batches(Dataset[Mapping[str, Tensor]]):
    """One process's share of the batches of a stage, those of the given numbers.

    Each depends on seed, image size, number and process alone. It has "images" (B, 3, S, S) in
    [0, 255], "masks" (B, K, S/4, S/4), K of the masks of each, their "boxes" (B, K, 4) as (x0, y0,
    x1, y1) in pixels, and the "borders" (B, 2, S/4, S/4) of all masks, as `Pretraining` predicts
    them.
    """

    def __init__(
        self,
        stage: Stage,
        numbers: range,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ):
        self.stage, self.numbers, self.seed = stage, numbers, seed
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        size = self.stage.image_size
        number = self.numbers[index] * self.processes + self.rank
        rng = np.random.default_rng((self.seed, size, number))
        images: list[Scene] = []
        while len(images) < self.stage.batch_size // self.processes:
            images += draw_images(rng, size)
        images = images[: self.stage.batch_size // self.processes]
        samples = [self._sample(rng, image) for image in images]
        return {name: torch.stack([each[name] for each in samples]) for name in samples[0]}

    def _sample(self, rng: np.random.Generator, scene: Scene) -> dict[str, Tensor]:
        low_res = scene.masks[:, 2::4, 2::4]
        visible = rng.permutation(np.flatnonzero(low_res.any((1, 2))))
        chosen = np.resize(visible, self.stage.prompts)
        borders = np.zeros((2, *low_res.shape[1:]), np.float32)
        borders[0, :, :-1] = (low_res[:, :, 1:] != low_res[:, :, :-1]).any(0)
        borders[1, :-1] = (low_res[:, 1:] != low_res[:, :-1]).any(0)
        return {
            "images": torch.from_numpy(scene.image.transpose(2, 0, 1).copy()),
            "masks": torch.from_numpy(low_res[chosen]),
            "boxes": boxes_around(torch.from_numpy(scene.masks[chosen])),
            "borders": torch.from_numpy(borders),
        }


def draw_images(rng: np.random.Generator, size: int) -> list[Scene]:
    """A scene of `size`, whose things are whole, or the quarters of one twice as large, whose
    textures are those of larger scenes."""
    draw = draw_recorded_scene if rng.random() < RECORDED else draw_scene
    if size == LARGEST_SCENE or rng.random() < WHOLE:
        return [draw(rng, size)]
    scene = draw(rng, 2 * size)
    quarters = [
        np.s_[row : row + size, column : column + size] for row in (0, size) for column in (0, size)
    ]
    quarters = [quarters[each] for each in rng.permutation(4)]
    return [Scene(scene.image[each], scene.masks[:, *each]) for each in quarters]
