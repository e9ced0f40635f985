"""Clips: stretches of consecutive frames of a sequence, of which some are labelled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adapterkit.data.image_file import DataError
from adapterkit.system.random import seeded_generator


def sequences_in(dataset: Any) -> list[list[int]]:
    """The images of each sequence of a data set, in the order of time.

    Args:
        dataset: one that has `sequences`, as `SegmentationDataset` does; of another each image is a
            sequence of its own.
    """
    known = getattr(dataset, "sequences", None)
    return [[i] for i in range(len(dataset))] if known is None else [list(each) for each in known]


@dataclass(frozen=True)
class _Clips:
    """Those of one sequence in an epoch, of which one is drawn around each part of `labelled`."""

    images: Sequence[int]
    labelled: Sequence[Sequence[int]]
    """Positions in `images`, parted evenly."""


class ClipPlan:
    """The clips of each epoch of a training.

    Of a sequence with n labelled frames, ceil(n / frames) clips are drawn, one around each part of
    these, so that an epoch sees about each labelled frame once. Each clip has at least one labelled
    frame, at a random place in it. What is shorter than a clip goes on backwards in time; a single
    image is shown again and again. With clips of one frame, an epoch has each labelled frame once.

    Which frames a clip has depends on the seed, the epoch and which clip it is alone.

    Args:
        dataset: as `sequences_in` takes it; where it has `labelled`, whether each image is.
        frames: of a clip.

    Raises:
        DataError: `frames` is below 1, or no frame is labelled.
    """

    def __init__(self, dataset: Any, frames: int = 1):
        if frames < 1:
            raise DataError(f"clips of {frames} frames: expected at least 1.")
        self.frames = frames
        labelled = getattr(dataset, "labelled", None) or [True] * len(dataset)
        self._clips: list[tuple[_Clips, int]] = []
        for images in sequences_in(dataset):
            there = [place for place, image in enumerate(images) if labelled[image]]
            if not there:
                continue
            parts = np.array_split(there, math.ceil(len(there) / frames))
            clips = _Clips(images, [part.tolist() for part in parts])
            self._clips += [(clips, number) for number in range(len(parts))]
        if not self._clips:
            raise DataError("no frame is labelled: expected some to learn from.")

    def __len__(self) -> int:
        """How many clips an epoch has."""
        return len(self._clips)

    def draw(self, clip: int, seed: int, epoch: int) -> list[int]:
        """The images of a clip, in the order of time; not always the same in another epoch."""
        clips, number = self._clips[clip]
        part, count = clips.labelled[number], len(clips.images)
        if self.frames == 1:
            return [clips.images[part[0]]]
        generator = seeded_generator(seed, f"clip {clip} in epoch {epoch}")

        def below(bound: int) -> int:
            return int(torch.randint(bound, (), generator=generator))

        anchor = part[below(len(part))]
        first = max(0, anchor - self.frames + 1)
        last = max(0, min(anchor, count - self.frames))
        start = first + below(last - first + 1) if last > first else min(first, last)
        return [clips.images[_reflected(start + i, count)] for i in range(self.frames)]


def _reflected(place: int, count: int) -> int:
    """Forwards and backwards in turn, the ends once each."""
    if count == 1:
        return 0
    turn = place % (2 * (count - 1))
    return min(turn, 2 * (count - 1) - turn)


def stretches(
    images: Sequence[int], wanted: Sequence[bool], length: int, reach: int
) -> list[tuple[list[int], list[int]]]:
    """A sequence in pieces that are encoded one at a time, to the same result as in one.

    Args:
        images: of the sequence.
        wanted: which of them.
        length: of a piece, without what it needs around it.
        reach: how many frames before and after it an image's embedding depends on.

    Returns:
        For each piece that has some that are wanted: its images with those around them, and the
        places among these of what is wanted.
    """
    pieces = []
    for start in range(0, len(images), length):
        stop = min(start + length, len(images))
        places = [place for place in range(start, stop) if wanted[place]]
        if places:
            first, last = max(0, start - reach), min(len(images), stop + reach)
            pieces.append((list(images[first:last]), [place - first for place in places]))
    return pieces
