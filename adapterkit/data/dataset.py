"""Images with reference masks as square samples for training, and as they are for evaluation."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypedDict, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset

from adapterkit.data.decoded import DecodedImages
from adapterkit.data.image_file import DataError, Spacing
from adapterkit.system.random import seeded_generator

CACHE = 4 * 10**9
"""Bytes for decoded images, where nothing else is asked for."""


@dataclass(frozen=True)
class LabelledImage:
    """An image and its label map, as they are on disk."""

    image: Real[np.ndarray, "H W *rgb"]
    """Grey (H, W) or colour (H, W, 3), in the file's own values."""
    labels: UInt8[np.ndarray, "H W"]
    """0 is background."""
    spacing: Spacing | None
    """Pixel size in mm, (row, column), or None where it is not known."""


class Record(Protocol):
    """What a data set is a list of: an image with reference masks, on disk."""

    @property
    def name(self) -> str:
        """No two records of a data set share it."""
        ...

    @property
    def structures(self) -> Mapping[int, str]:
        """The labels to segment, in the order of the masks, and what they stand for."""
        ...

    @property
    def attributes(self) -> Mapping[str, str]:
        """What else is known, for example the view; the samples carry it along."""
        ...

    def read(self) -> LabelledImage:
        """Raises `DataError`, naming the file, where one cannot be read or does not fit."""
        ...


def is_labelled(record: Record) -> bool:
    """Whether a record has reference masks: all have, but some frames of sequences."""
    return getattr(record, "labelled", True)


R = TypeVar("R", bound=Record)

Augmentation = Callable[
    [Float[Tensor, "c S S"], UInt8[Tensor, "1 S S"], Generator],
    tuple[Float[Tensor, "c S S"], UInt8[Tensor, "1 S S"]],
]
"""Image in [0, 255], label map and source of randomness -> the two, changed alike."""


class Sample(TypedDict):
    """One item of a `SegmentationDataset`, with S the image size and K structures.

    It also has the record's attributes, strings; for CAMUS "patient", "view" and "phase".
    """

    image: Float[Tensor, "3 S S"]
    """float32 in [0, 255]; a grey image is the same in the three channels."""
    masks: UInt8[Tensor, "K S S"]
    """1 inside the structure, 0 outside, in the order of `SegmentationDataset.structures`."""
    labelled: bool
    """Whether the masks are known; else they are 0."""
    name: str
    index: int
    """The position in the data set, which `native_reference` takes. It stays the same in a
    `torch.utils.data.Subset` and in whatever order a loader draws."""


class SegmentationDataset(Dataset[Sample], Generic[R]):
    """Records, squashed to a square and ready for torch's default collation.

    Images are resized bilinearly with antialiasing, label maps by nearest neighbour. Whole numbers
    within [0, 255] are taken as they are. An image with other numbers, or with none above 1, is
    scaled from its own minimum and maximum to [0, 255]. One of which fewer than 16 grey levels
    remain is named in a warning.

    Each file is decoded when its record is first asked for; image and label map are then kept in
    memory as uint8 at the square size (2 * S * S bytes per grey image), so later epochs do not
    touch the disk, as far as the budget goes. Workers of a DataLoader share what is kept.

    With an augmentation, what a sample looks like depends on `seed`, the epoch given to
    `set_epoch` and the sample's name only: not on the order, on other samples or on how often it
    was asked for. So a resumed run sees what an uninterrupted one would have seen. Frames of a
    sequence, which have the attribute "sequence", are changed alike.

    Args:
        records: what to serve, for example the frames that `camus.find_frames` found.
        image_size: S, in pixels.
        augmentation: changes image and label map at the square size; None serves them as they are.
        seed: of the augmentation.
        cache: bytes for decoded images; those beyond are read anew each time.

    Raises:
        DataError: no records, an image size below 1, a name twice, or records of different
            structures; on access whatever `Record.read` raises.
    """

    def __init__(
        self,
        records: Sequence[R],
        image_size: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache: int = CACHE,
    ) -> None:
        if not records:
            raise DataError("records is empty: expected at least one, as find_frames gives.")
        if image_size < 1:
            raise DataError(f"image_size is {image_size}: expected a side in pixels, at least 1.")
        names: set[str] = set()
        for record in records:
            if record.name in names:
                raise DataError(f"records lists {record.name} more than once: expected it once.")
            names.add(record.name)
            if list(record.structures.values()) != list(records[0].structures.values()):
                raise DataError(
                    f"{records[0].name} has the structures {list(records[0].structures.values())} "
                    f"and {record.name} has {list(record.structures.values())}: expected the same "
                    "in all records."
                )
        self.records = tuple(records)
        self.image_size = image_size
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0
        self._decoded = DecodedImages(len(records), image_size, cache)

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of the masks, in their order."""
        return tuple(self.records[0].structures.values())

    @property
    def labelled(self) -> list[bool]:
        """Whether each image has reference masks."""
        return [is_labelled(record) for record in self.records]

    @property
    def sequences(self) -> list[list[int]]:
        """The images of each sequence, in the order of time; other images are each on their own."""
        found: dict[str, list[int]] = {}
        for index, record in enumerate(self.records):
            found.setdefault(_sequence_of(record), []).append(index)
        return list(found.values())

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the augmentation draws for, as torch's `DistributedSampler.set_epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        # The range itself maps negative indices and raises IndexError past the end.
        index = range(len(self.records))[index]
        record = self.records[index]
        decoded = self._decoded.get(index)
        if decoded is None:
            decoded = self._decode(record)
            self._decoded.put(index, *decoded)
        stored, labels = decoded
        image = stored.float()
        if self.augmentation is not None:
            generator = seeded_generator(self.seed, f"epoch {self.epoch}, {_sequence_of(record)}")
            image, labels = self.augmentation(image, labels, generator)
        sample = {
            "image": image.expand(3, -1, -1).clone(),
            "masks": torch.cat([labels == label for label in record.structures]).to(torch.uint8),
            "labelled": is_labelled(record),
            "name": record.name,
            "index": index,
            **record.attributes,
        }
        return cast(Sample, sample)

    def native_reference(self, index: int) -> tuple[Bool[Tensor, "K H W"], Spacing | None]:
        """The reference masks of sample `index` at the size that they have on disk, unaugmented.

        With them, their pixel spacing in mm, (row, column), or None where it is not known. Read
        anew at each call. `to_native(maps, masks.shape[-2:])` brings a prediction to their size.
        """
        record = self.records[index]
        native = record.read()
        labels = torch.from_numpy(np.ascontiguousarray(native.labels))
        return torch.stack([labels == label for label in record.structures]), native.spacing

    def _decode(self, record: R) -> tuple[UInt8[Tensor, "c S S"], UInt8[Tensor, "1 S S"]]:
        native = record.read()
        warn_of_few_levels(native.image, getattr(record, "image", record.name))
        size = (self.image_size, self.image_size)
        # "nearest-exact" samples at pixel centres, as bilinear does; "nearest" is half a pixel off.
        labels = torch.from_numpy(np.ascontiguousarray(native.labels))[None, None]
        labels = F.interpolate(labels, size, mode="nearest-exact")
        return to_square(native.image, self.image_size), labels[0]


def _sequence_of(record: Record) -> str:
    return record.attributes.get("sequence", record.name)


def to_square(image: Real[np.ndarray, "H W *rgb"], size: int) -> UInt8[Tensor, "c S S"]:
    """An image as `SegmentationDataset` squashes it, grey (1, S, S) or colour (3, S, S).

    Args:
        image: in whatever values; scaled to [0, 255] by the rule that `SegmentationDataset` states.
        size: S, in pixels.
    """
    pixels = torch.from_numpy(to_grey_values(image))
    channels = pixels.movedim(-1, 0) if pixels.ndim == 3 else pixels[None]
    resized = F.interpolate(
        channels[None], (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def to_native(
    maps: Float[Tensor, "*batch S S"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, "*batch H W"]:
    """Logits or probabilities on the model's square, bilinearly at an image's own (H, W).

    The inverse of `to_square`. Threshold afterwards, so that
    borders are smooth at the native size.
    """
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    # Antialiasing acts only along an axis that shrinks, as when a narrow image was widened.
    native = F.interpolate(flat, tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return native.reshape(*maps.shape[:-2], *size)


def to_label_map(maps: Real[Tensor, "K H W"]) -> UInt8[np.ndarray, "H W"]:
    """Of each pixel the structure of the highest value, 1 for the first; 0 where none is above 0.

    Args:
        maps: logits, or masks of 0 and 1, of each structure.
    """
    return torch.cat([torch.zeros_like(maps[:1]), maps]).argmax(dim=0).to(torch.uint8).numpy()


def to_grey_values(image: Real[np.ndarray, "H W *rgb"]) -> Float[np.ndarray, "H W *rgb"]:
    """float32 in [0, 255], by the rule that `SegmentationDataset` states."""
    grey = np.ascontiguousarray(image, dtype=np.float32)
    low, high = float(grey.min()), float(grey.max())
    # Fractions tell that these are no grey values, whatever their range.
    if low >= 0 and 1 < high <= 255 and (image.dtype.kind in "iu" or (grey == grey.round()).all()):
        return grey
    # A constant image has no range to scale; the floor keeps it at zero instead of NaN.
    return (grey - low) * np.float32(255 / max(high - low, 1e-12))


def doubt_of_levels(image: Real[np.ndarray, "H W *rgb"], file: object) -> str:
    """What to say of an image of which few grey levels remain though it has more; else "".

    Few are less than 16. An image that is nearly black counts as one that had more; a drawing, of
    few values from black to white, does not, nor does one of a single value.
    """
    grey = to_grey_values(image).round().astype(np.uint8)
    levels = int(np.count_nonzero(np.bincount(grey.ravel(), minlength=256)))
    if not 1 < levels < 16 or (grey.max() >= 32 and levels == len(np.unique(image))):
        return ""
    return (
        f"{file} has values from {image.min():g} to {image.max():g}, of which {levels} grey levels "
        "remain: expected at least 16; scale what it shows to 0 to 255, and cut off values far "
        "from the others."
    )


def warn_of_few_levels(image: Real[np.ndarray, "H W *rgb"], file: object) -> None:
    """Warn of what `doubt_of_levels` says."""
    doubt = doubt_of_levels(image, file)
    if doubt:
        warnings.warn(doubt, stacklevel=2)
