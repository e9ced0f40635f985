"""The sequences of CAMUS, or made ones, every frame a record; see `camus` for how they lie.

Half sequences have a label map in every frame. The older release's sequences have none of their
own: their frames of ED and ES have those of the two annotated images, and the others are not
labelled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from adapterkit.data.collections.camus import (
    STRUCTURES,
    Frame,
    Info,
    Sequence,
    find_frames,
    find_sequences,
    read_info,
    read_split,
)
from adapterkit.data.collections.collection import Collection, collection_format
from adapterkit.data.collections.frames import Film, SequenceFrame, frames_of
from adapterkit.data.image_file import DataError


@dataclass(frozen=True)
class CamusCine:
    """A sequence, with the masks of its ED and ES where it has none of its own."""

    sequence: Sequence
    ends: tuple[tuple[int, Frame], ...] = ()
    """Frames, from 0, of which another file holds the label map."""

    @property
    def name(self) -> str:
        return self.sequence.name

    @property
    def image(self) -> Path:
        return self.sequence.image

    @property
    def structures(self) -> Mapping[int, str]:
        return STRUCTURES

    @property
    def attributes(self) -> Mapping[str, str]:
        return {"patient": self.sequence.patient, "view": self.sequence.view}

    def read(self) -> Film:
        """Raises `DataError` as `Frame.read` does, or where a mask has another size."""
        images, labels, spacing = self.sequence.read()
        if labels is None:
            labels = np.zeros(images.shape, np.uint8)
            for index, end in self.ends:
                own = end.read().labels
                if index >= len(labels) or own.shape != labels.shape[1:]:
                    raise DataError(
                        f"{end.mask} does not fit {self.image}: expected a mask of frame "
                        f"{index + 1} of {len(images)}, of {images.shape[1]} x {images.shape[2]}."
                    )
                labels[index] = own
        return Film(images, labels, spacing)


@collection_format("camus_sequences", recognises=lambda path: False)
def open_camus_sequences(path: Path, labelled: Literal["all", "ed-es"] = "all") -> Collection:
    """Every frame of every sequence, in groups by patient, with the release's split if it has one.

    Args:
        path: the release's folder, as `camus.find_frames` takes it.
        labelled: "ed-es" to take no label maps but those of ED and ES, as the older release has.

    Raises:
        DataError: as `camus.find_sequences`; there is no sequence; or one whose ED and ES are
            asked for has no `Info_*.cfg` that says which they are.
    """
    sequences = find_sequences(path)
    if not sequences:
        raise DataError(
            f"{path} holds no sequence: expected files such as "
            "patient0001_2CH_half_sequence.nii.gz and patient0001_2CH_half_sequence_gt.nii.gz."
        )
    annotated = {frame.name: frame for frame in find_frames(path)}
    records = [
        frame
        for sequence in sequences
        for frame in _frames(sequence, annotated, all_of_them=labelled == "all")
    ]
    patients = {sequence.patient for sequence in sequences}
    split = read_split(path)
    return Collection(
        name="CAMUS sequences",
        format="camus_sequences",
        records=tuple(records),
        groups=tuple(record.attributes["patient"] for record in records),
        split=None if split is None else split.among(patients),
        reported=("view",),
    )


def _frames(
    sequence: Sequence, annotated: Mapping[str, Frame], all_of_them: bool
) -> list[SequenceFrame]:
    info = read_info(sequence)
    count = info.frame_count if info is not None else None
    count = len(sequence.read()[0]) if count is None else count
    if sequence.mask is not None and all_of_them:
        return frames_of(CamusCine(sequence), [True] * count)
    numbers = _ends(sequence, info)
    ends = [
        (number - 1, annotated[name])
        for phase, number in numbers.items()
        if (name := f"{sequence.name}_{phase}") in annotated
    ]
    cine = CamusCine(sequence, () if sequence.mask is not None else tuple(ends))
    there = {number - 1 for number in numbers.values()} if sequence.mask else {i for i, _ in ends}
    return frames_of(cine, [index in there for index in range(count)])


def _ends(sequence: Sequence, info: Info | None) -> dict[str, int]:
    """The numbers of ED and ES, from 1."""
    if info is None or info.ed is None or info.es is None:
        raise DataError(
            f"{sequence.image} has no Info_{sequence.view}.cfg beside it that says which frames "
            "are ED and ES: expected lines ED: and ES: with their numbers, from 1."
        )
    return {"ED": info.ed, "ES": info.es}
