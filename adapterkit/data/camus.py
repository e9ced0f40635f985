"""The CAMUS echocardiography data set, read from its NIfTI release as it is unpacked.

CAMUS holds apical two-chamber (2CH) and four-chamber (4CH) views of 500 patients at end-diastole
(ED) and end-systole (ES), each with an expert's label map:

    database_nifti/patient0001/patient0001_2CH_ED.nii.gz        the image
    database_nifti/patient0001/patient0001_2CH_ED_gt.nii.gz     its label map
    database_nifti/patient0001/Info_2CH.cfg                     optional, not read here

The arrays on disk are (x, y); everything here is (row, column). Reading needs nibabel, which
comes with `adapterkit[recipes]`.

Source: S. Leclerc, E. Smistad, J. Pedrosa, A. Ostvik, et al., "Deep Learning for Segmentation
using an Open Large-Scale Dataset in 2D Echocardiography", IEEE Transactions on Medical Imaging
38(9), 2198-2210, 2019, doi 10.1109/TMI.2019.2900516.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Real, UInt8
from nibabel.spatialimages import SpatialImage
from torch import Tensor
from torch.utils.data import Dataset

VIEWS = ("2CH", "4CH")
PHASES = ("ED", "ES")

STRUCTURES: dict[int, str] = {1: "left ventricle", 2: "myocardium", 3: "left atrium"}
"""Label on disk to structure; 0 is background. Label 1 is the left ventricle's endocardium, that
is, the cavity that it encloses; label 2 lies between endocardium and epicardium."""

_PATIENT = "patient[0-9][0-9][0-9][0-9]"
_LAYOUT = "database_nifti/patient0001/patient0001_2CH_ED.nii.gz with patient0001_2CH_ED_gt.nii.gz"


class CamusError(ValueError):
    """The data on disk, or what was asked of them, is not as CAMUS has it."""


@dataclass(frozen=True)
class Frame:
    """One annotated image: where its two files are and what it shows."""

    patient: str
    """As the release names it, "patient0001"."""
    view: str
    """Either "2CH" or "4CH"."""
    phase: str
    """Either "ED" or "ES"."""
    image: Path
    mask: Path

    @property
    def name(self) -> str:
        """The image's file name without its ending, "patient0001_2CH_ED"."""
        return f"{self.patient}_{self.view}_{self.phase}"


def find_frames(root: Path) -> list[Frame]:
    """Every annotated ED and ES frame under `root`, sorted by patient, view and phase.

    `root` is the release's folder, its `database_nifti`, or the folder that contains the release's
    folder. Half sequences are left out, and a patient may lack some of the four frames.

    Raises `CamusError` where `root` is not a folder, no patient is found, a patient is found in
    two folders or has no frame at all, or a frame has an image or a mask but not both.
    """
    root = Path(root)
    if not root.is_dir():
        raise CamusError(
            f"{root} is not a folder: give the folder into which the CAMUS NIfTI release was "
            f"unpacked, which holds {_LAYOUT}."
        )
    return [frame for folder in _patient_folders(root) for frame in _patient_frames(folder)]


def _patient_folders(root: Path) -> list[Path]:
    folders: dict[str, Path] = {}
    for above in ("", "*/", "*/database_nifti/"):
        for folder in sorted(root.glob(above + _PATIENT)):
            if not folder.is_dir():
                continue
            if folder.name in folders:
                raise CamusError(
                    f"{folder.name} is listed twice, in {folders[folder.name].parent} and in "
                    f"{folder.parent}: give the one release to read, or remove one copy."
                )
            folders[folder.name] = folder
    if not folders:
        raise CamusError(
            f"{root} holds no CAMUS patient: expected {_LAYOUT} there, or one folder further down."
        )
    return [folders[name] for name in sorted(folders)]


def _patient_frames(folder: Path) -> list[Frame]:
    frames = []
    for view in VIEWS:
        for phase in PHASES:
            stem = f"{folder.name}_{view}_{phase}"
            image, mask = folder / f"{stem}.nii.gz", folder / f"{stem}_gt.nii.gz"
            if image.is_file() != mask.is_file():
                missing, there = (mask, image) if image.is_file() else (image, mask)
                raise CamusError(
                    f"{stem} is incomplete: {there.name} is there but {missing} is missing; "
                    "unpack the release again, or remove the frame."
                )
            if image.is_file():
                frames.append(Frame(folder.name, view, phase, image, mask))
    if not frames:
        raise CamusError(
            f"{folder} holds no frame: expected NIfTI files such as {folder.name}_2CH_ED.nii.gz "
            "(the older .mhd release is not read); unpack the release again, or remove the folder."
        )
    return frames


def read_image(
    frame: Frame,
) -> tuple[UInt8[np.ndarray, "H W"] | Float[np.ndarray, "H W"], tuple[float, float]]:
    """The frame's image, in the file's own grey values, and its pixel spacing (row, column) in mm.

    A uint8 file gives uint8, any other real type float32. Raises `CamusError`, naming the file,
    where it cannot be read, is not 2-D, has values or a spacing that are not finite, or a
    spacing that is not positive.
    """
    image, spacing = _read_nifti(frame.image)
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise CamusError(
            f"{frame.image} has {count} of {image.size} values that are NaN or infinite: expected "
            "finite grey values; replace the file."
        )
    return image, spacing


def read_mask(frame: Frame, shape: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """The frame's label map: 0 for background, else a key of `STRUCTURES`.

    `shape` is the (H, W) of the frame's image. Raises `CamusError`, naming the file, where it
    cannot be read, is not 2-D, differs in size from the image or holds an unknown label.
    """
    mask, _ = _read_nifti(frame.mask)
    if mask.shape != tuple(shape):
        raise CamusError(
            f"{frame.mask} is {mask.shape[0]} x {mask.shape[1]} (rows x columns) but its image "
            f"{frame.image.name} is {shape[0]} x {shape[1]}: expected the same size; "
            "replace the file that is wrong."
        )
    found, expected = np.unique(mask), [0, *STRUCTURES]
    if not np.isin(found, expected).all():
        listed = ", ".join(f"{value:g}" for value in found[:10])
        raise CamusError(
            f"{frame.mask} holds the labels {listed}{', ...' if len(found) > 10 else ''}: "
            f"expected only {', '.join(map(str, expected))} (0 is background); replace the file."
        )
    return mask.astype(np.uint8)


def _read_nifti(path: Path) -> tuple[Real[np.ndarray, "H W"], tuple[float, float]]:
    try:
        nifti = cast(SpatialImage, nibabel.load(path))
        array = np.asarray(nifti.dataobj)
        zooms = nifti.header.get_zooms()
    # Damaged files make nibabel, gzip and zlib raise exceptions that share no narrower base.
    except Exception as error:
        raise CamusError(
            f"{path} cannot be read as NIfTI ({type(error).__name__}: {error}): the file is "
            "missing, damaged or cut short; unpack it again from the release."
        ) from error
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise CamusError(
            f"{path} holds an array of shape {array.shape} and type {array.dtype}: expected a 2-D "
            "array of real numbers, one ED or ES frame."
        )
    row, column = float(zooms[1]), float(zooms[0])
    if not (0 < row < math.inf and 0 < column < math.inf):
        raise CamusError(
            f"{path} states a pixel spacing of {row} x {column} mm (row x column): expected "
            "finite positive lengths; correct the file's header."
        )
    return array.T, (row, column)


@dataclass(frozen=True)
class Split:
    """Patient names of the three parts, each sorted; no patient is in two parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_patients(
    patients: Iterable[str],
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> Split:
    """Splits the patients at random into train, validation and test.

    The split depends on the set of names and the seed, not on their order. The sizes follow
    `fractions` (three positive numbers that sum to 1) by largest remainders, and each part gets
    at least one patient. Pass each patient once, for example `{frame.patient for frame in frames}`.

    Raises `CamusError` for fewer than three patients, duplicates or fractions that do not fit.
    """
    names = sorted(patients)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise CamusError(
            f"patients lists {twice[0]} more than once ({len(twice)} such names): expected each "
            "patient once; pass a set of names, not one name per frame."
        )
    if len(names) < 3:
        raise CamusError(
            f"patients has {len(names)} names: expected at least 3, one each for train, "
            "validation and test."
        )
    sizes = _part_sizes(len(names), fractions)
    order = np.random.default_rng(seed).permutation(len(names))
    parts = np.split(order, np.cumsum(sizes)[:2])
    return Split(*(tuple(names[index] for index in sorted(part)) for part in parts))


def _part_sizes(count: int, fractions: tuple[float, float, float]) -> list[int]:
    fit = len(fractions) == 3 and min(fractions) > 0 and math.isclose(sum(fractions), 1)
    if not fit:
        raise CamusError(
            f"fractions is {fractions}: expected three positive numbers that sum to 1, for train, "
            "validation and test."
        )
    # Rounded because 0.7 * 10 and its like fall a hair short of the whole number.
    quotas = [round(fraction * count, 6) for fraction in fractions]
    sizes = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(3), key=lambda part: sizes[part] - quotas[part])
    for part in by_remainder[: count - sum(sizes)]:
        sizes[part] += 1
    while min(sizes) == 0:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(0)] += 1
    return sizes


class Sample(TypedDict):
    """One item of `CamusDataset`, with S the image size."""

    image: Float[Tensor, "3 S S"]
    """float32 grey values in [0, 255], the same in the three channels."""
    masks: UInt8[Tensor, "3 S S"]
    """1 inside the structure, 0 outside, in the order of `STRUCTURES`."""
    name: str
    patient: str
    view: str
    phase: str


class CamusDataset(Dataset[Sample]):
    """Frames of CAMUS, squashed to a square and ready for torch's default collation.

    Images are resized bilinearly with antialiasing, label maps by nearest neighbour. Grey values
    within [0, 255] are taken as they are; an image that leaves that range, or stays within [0, 1],
    is scaled from its own minimum and maximum to [0, 255].

    Each file is decoded once, when its frame is first asked for; image and label map are then kept
    in memory as uint8 at the square size (2 * S * S bytes per frame), so later epochs do not touch
    the disk. Workers of a DataLoader would each keep a copy of their own: use `num_workers=0`.

    Raises `CamusError` for no frames or an image size below 1, and on access whatever
    `read_image` and `read_mask` raise.
    """

    def __init__(self, frames: Sequence[Frame], image_size: int) -> None:
        if not frames:
            raise CamusError("frames is empty: expected at least one frame, as find_frames gives.")
        if image_size < 1:
            raise CamusError(f"image_size is {image_size}: expected a side in pixels, at least 1.")
        self.frames = tuple(frames)
        self.image_size = image_size
        self._decoded: dict[int, tuple[UInt8[Tensor, "S S"], UInt8[Tensor, "S S"]]] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        # The range itself maps negative indices and raises IndexError past the end.
        index = range(len(self.frames))[index]
        frame = self.frames[index]
        if index not in self._decoded:
            self._decoded[index] = self._decode(frame)
        image, labels = self._decoded[index]
        return {
            "image": image.float().repeat(3, 1, 1),
            "masks": torch.stack([labels == label for label in STRUCTURES]).to(torch.uint8),
            "name": frame.name,
            "patient": frame.patient,
            "view": frame.view,
            "phase": frame.phase,
        }

    def _decode(self, frame: Frame) -> tuple[UInt8[Tensor, "S S"], UInt8[Tensor, "S S"]]:
        image, _ = read_image(frame)
        height, width = image.shape
        labels = read_mask(frame, (height, width))
        size = (self.image_size, self.image_size)
        grey = torch.from_numpy(_to_grey(image))[None, None]
        grey = F.interpolate(grey, size, mode="bilinear", antialias=True, align_corners=False)
        # "nearest-exact" samples at pixel centres, as bilinear does; "nearest" is half a pixel off.
        label_map = torch.from_numpy(np.ascontiguousarray(labels))[None, None]
        label_map = F.interpolate(label_map, size, mode="nearest-exact")
        return grey[0, 0].round().clamp(0, 255).to(torch.uint8), label_map[0, 0]


def _to_grey(image: Real[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """float32 grey values in [0, 255], by the rule that `CamusDataset` states."""
    grey = np.ascontiguousarray(image, dtype=np.float32)
    low, high = float(grey.min()), float(grey.max())
    if low >= 0 and 1 < high <= 255:
        return grey
    # A constant image has no range to scale; the floor keeps it at zero instead of NaN.
    return (grey - low) * np.float32(255 / max(high - low, 1e-12))
