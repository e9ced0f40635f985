"""Frames of sequences as records, whatever kind of file the sequence lies in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Real, UInt8

from adapterkit.data.dataset import LabelledImage
from adapterkit.data.image_file import DataError, Spacing


@dataclass(frozen=True)
class Film:
    """What a sequence shows.

    Attributes:
        images: its frames, in the order of time and in the file's own values.
        labels: their label maps; of frames that are not labelled, anything.
        spacing: pixel size in mm, (row, column), or None where it is not known.
    """

    images: Real[np.ndarray, "T H W *rgb"]
    labels: UInt8[np.ndarray, "T H W"]
    spacing: Spacing | None


class Cine(Protocol):
    """A sequence on disk."""

    @property
    def name(self) -> str:
        """No two of a data set share it."""
        ...

    @property
    def image(self) -> Path:
        """The file or folder that it lies in."""
        ...

    @property
    def structures(self) -> Mapping[int, str]:
        """The labels to segment, and what they stand for."""
        ...

    @property
    def attributes(self) -> Mapping[str, str]:
        """What else is known of it."""
        ...

    def read(self) -> Film:
        """Raises `DataError`, naming the file, where one cannot be read or does not fit."""
        ...


@dataclass(frozen=True)
class SequenceFrame:
    """One frame of a sequence: a record."""

    cine: Cine
    index: int
    """Its place in time, from 0."""
    labelled: bool
    """Whether it has a reference mask. Another is shown beside those that have, and not scored."""

    @property
    def name(self) -> str:
        """For example "patient0001_2CH/007"."""
        return f"{self.cine.name}/{self.index:03d}"

    @property
    def image(self) -> Path:
        """The file or folder, which all frames of a sequence share."""
        return self.cine.image

    @property
    def structures(self) -> Mapping[int, str]:
        return self.cine.structures

    @property
    def attributes(self) -> Mapping[str, str]:
        return {**self.cine.attributes, "sequence": self.cine.name, "frame": str(self.index)}

    def read(self) -> LabelledImage:
        """The frame, its label map, which is all background where it is not labelled, and spacing.

        Raises `DataError` as `Cine.read` does, or where the sequence is shorter than was said.
        """
        film = _read(self.cine)
        if self.index >= len(film.images):
            raise DataError(
                f"{self.image} holds {len(film.images)} frames: expected more than {self.index}, "
                "as what is known of it says."
            )
        image, labels = film.images[self.index], film.labels[self.index]
        return LabelledImage(image, labels * np.uint8(self.labelled), film.spacing)


# The frames of a sequence are mostly read one after another; two sequences bound the memory.
@lru_cache(maxsize=2)
def _read(cine: Cine) -> Film:
    return cine.read()


def frames_of(cine: Cine, labelled: Sequence[bool]) -> list[SequenceFrame]:
    """The frames of a sequence, of which some are labelled."""
    return [SequenceFrame(cine, index, each) for index, each in enumerate(labelled)]
