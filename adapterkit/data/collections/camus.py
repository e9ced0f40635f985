"""The CAMUS echocardiography data set, read from either of its releases as it is unpacked.

CAMUS holds apical two-chamber (2CH) and four-chamber (4CH) views of 500 patients at end-diastole
(ED) and end-systole (ES), each with an expert's label map, and the frames from ED to ES:

    database_nifti/patient0001/patient0001_2CH_ED.nii.gz        the image
    database_nifti/patient0001/patient0001_2CH_ED_gt.nii.gz     its label map
    database_nifti/patient0001/patient0001_2CH_half_sequence.nii.gz, ..._half_sequence_gt.nii.gz
    database_nifti/patient0001/Info_2CH.cfg                     the patient and the acquisition
    database_split/subgroup_training.txt, subgroup_validation.txt, subgroup_testing.txt

The older release has `training/patient0001/patient0001_2CH_ED.mhd` and `..._ED_gt.mhd` with their
`.raw` files, `..._2CH_sequence.mhd` without label maps, and no split files. Its folder `testing`
numbers other patients from 1 again and has no label maps; it is not read.

Source: S. Leclerc, E. Smistad, J. Pedrosa, A. Ostvik, et al., "Deep Learning for Segmentation
using an Open Large-Scale Dataset in 2D Echocardiography", IEEE Transactions on Medical Imaging
38(9), 2198-2210, 2019, doi 10.1109/TMI.2019.2900516.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from jaxtyping import Real, UInt8

from adapterkit.data.collections.collection import Collection, collection_format
from adapterkit.data.dataset import LabelledImage, SegmentationDataset
from adapterkit.data.files.images import read_frames
from adapterkit.data.image_file import DataError, Spacing
from adapterkit.data.splits import Split

VIEWS = ("2CH", "4CH")
PHASES = ("ED", "ES")

STRUCTURES: dict[int, str] = {1: "left ventricle", 2: "myocardium", 3: "left atrium"}
"""Label on disk to structure; 0 is background. Label 1 is the left ventricle's endocardium, that
is, the cavity that it encloses; label 2 lies between endocardium and epicardium."""

_PATIENT = "patient[0-9][0-9][0-9][0-9]"
_LAYOUT = "database_nifti/patient0001/patient0001_2CH_ED.nii.gz with patient0001_2CH_ED_gt.nii.gz"
_ENDINGS = (".nii.gz", ".nii", ".mhd")


# Frames


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

    @property
    def structures(self) -> Mapping[int, str]:
        return STRUCTURES

    @property
    def attributes(self) -> Mapping[str, str]:
        return {"patient": self.patient, "view": self.view, "phase": self.phase}

    def read(self) -> LabelledImage:
        """Image (grey values as uint8 or float32), label map and spacing.

        Raises `DataError`, naming the file, where one cannot be read as one finite 2-D image, the
        two differ in size, or the label map holds a label that is not in `STRUCTURES`.
        """
        image, labels, spacing = _read_pair(self.image, self.mask)
        for path, frames in ((self.image, image), (self.mask, labels)):
            if len(frames) != 1:
                raise DataError(
                    f"{path} holds {len(frames)} images of {frames.shape[1]} x {frames.shape[2]} "
                    "(rows x columns): expected one, of ED or ES; replace the file."
                )
        return LabelledImage(image[0], labels[0], spacing)


CamusDataset = SegmentationDataset[Frame]
"""Frames as samples: `CamusDataset(find_frames(folder), image_size=256)`."""


def find_frames(root: Path) -> list[Frame]:
    """Every annotated ED and ES frame under `root`, sorted by patient, view and phase.

    `root` is the release's folder, the folder in it that holds the patients, or the folder that
    contains the release's folder. A patient may lack some of the four frames.

    Raises `DataError` where `root` is not a folder, no patient is found, a patient is found in
    two folders or has no frame at all, or a frame has an image or a mask but not both.
    """
    return [frame for folder in _patient_folders(Path(root)) for frame in _patient_frames(folder)]


@collection_format("camus", recognises=lambda path: any(_looks_like_camus(path)))
def open_camus(path: Path) -> Collection:
    """The annotated frames, in groups by patient, with the release's split where it has one.

    Raises:
        DataError: as `find_frames` and `read_split`.
    """
    frames = find_frames(path)
    patients = {frame.patient for frame in frames}
    split = read_split(path)
    return Collection(
        name="CAMUS",
        format="camus",
        records=tuple(frames),
        groups=tuple(frame.patient for frame in frames),
        split=None if split is None else split.among(patients),
        reported=("view", "phase"),
    )


def _looks_like_camus(path: Path) -> Iterator[Path]:
    for above in ("", "*/", "*/database_nifti/", "*/training/"):
        yield from path.glob(above + _PATIENT)


def _patient_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(
            f"{root} is not a folder: give the folder into which the CAMUS release was "
            f"unpacked, which holds {_LAYOUT}."
        )
    folders: dict[str, Path] = {}
    for above in ("", "*/", "*/database_nifti/", "*/training/"):
        for folder in sorted(root.glob(above + _PATIENT)):
            if not folder.is_dir() or (above and folder.parent.name == "testing"):
                continue
            if folder.name in folders:
                raise DataError(
                    f"{folder.name} is listed twice, in {folders[folder.name].parent} and in "
                    f"{folder.parent}: give the one release to read, or remove one copy."
                )
            folders[folder.name] = folder
    if not folders:
        raise DataError(
            f"{root} holds no CAMUS patient: expected {_LAYOUT} there, or one folder further down."
        )
    return [folders[name] for name in sorted(folders)]


def _patient_frames(folder: Path) -> list[Frame]:
    frames = []
    for view in VIEWS:
        for phase in PHASES:
            if pair := _find_pair(folder, f"{folder.name}_{view}_{phase}"):
                frames.append(Frame(folder.name, view, phase, *pair))
    if not frames:
        raise DataError(
            f"{folder} holds no frame: expected files such as {folder.name}_2CH_ED.nii.gz or "
            f"{folder.name}_2CH_ED.mhd; unpack the release again, or remove the folder."
        )
    return frames


def _find_pair(folder: Path, stem: str) -> tuple[Path, Path] | None:
    """The image and its mask, or None where both are missing."""
    image, mask = _find_file(folder, stem), _find_file(folder, f"{stem}_gt")
    if image and mask:
        return image, mask
    if there := image or mask:
        ending = there.name[there.name.index(".") :]
        missing = folder / ((f"{stem}_gt" if image else stem) + ending)
        raise DataError(
            f"{stem} is incomplete: {there.name} is there but {missing} is missing; "
            "unpack the release again, or remove the file."
        )
    return None


def _find_file(folder: Path, stem: str) -> Path | None:
    found = [path for ending in _ENDINGS if (path := folder / (stem + ending)).is_file()]
    if len(found) > 1:
        raise DataError(
            f"{stem} is listed twice, as {found[0]} and as {found[1].name}: expected one of them; "
            "remove the other."
        )
    return found[0] if found else None


def _read_pair(
    image: Path, mask: Path
) -> tuple[Real[np.ndarray, "T H W"], UInt8[np.ndarray, "T H W"], Spacing | None]:
    frames, spacing = read_frames(image)
    labels, _ = read_frames(mask)
    if labels.shape != frames.shape:
        raise DataError(
            f"{mask} is {_size(labels)} but its image {image.name} is {_size(frames)}: expected "
            "the same size; replace the file that is wrong."
        )
    found, expected = np.unique(labels), [0, *STRUCTURES]
    if not np.isin(found, expected).all():
        listed = ", ".join(f"{value:g}" for value in found[:10])
        raise DataError(
            f"{mask} holds the labels {listed}{', ...' if len(found) > 10 else ''}: "
            f"expected only {', '.join(map(str, expected))} (0 is background); replace the file."
        )
    return _grey(frames), labels.astype(np.uint8), spacing


def _grey(frames: Real[np.ndarray, "T H W"]) -> Real[np.ndarray, "T H W"]:
    return frames if frames.dtype == np.uint8 else frames.astype(np.float32)


def _size(frames: Real[np.ndarray, "T H W"]) -> str:
    count, height, width = frames.shape
    size = f"{height} x {width} (rows x columns)"
    return size if count == 1 else f"{count} frames of {size}"


# Sequences


@dataclass(frozen=True)
class Sequence:
    """The frames of one view of one patient, from ED to ES or from ES to ED, or of a whole beat."""

    patient: str
    view: str
    image: Path
    mask: Path | None
    """None in the older release, whose sequences go on to the next ED and are not annotated; made
    ones are."""

    @property
    def name(self) -> str:
        """For example "patient0001_2CH"."""
        return f"{self.patient}_{self.view}"

    def read(
        self,
    ) -> tuple[Real[np.ndarray, "T H W"], UInt8[np.ndarray, "T H W"] | None, Spacing | None]:
        """Frames (uint8 or float32) in the order of time, their label maps, and pixel spacing.

        The label maps are None where `mask` is. Raises `DataError` as `Frame.read` does.
        """
        if self.mask is None:
            frames, spacing = read_frames(self.image)
            return _grey(frames), None, spacing
        return _read_pair(self.image, self.mask)


def find_sequences(root: Path) -> list[Sequence]:
    """Every sequence under `root`, sorted by patient and view; an empty list where there is none.

    Raises `DataError` as `find_frames` does, and where a half sequence lacks its mask.
    """
    found = []
    for folder in _patient_folders(Path(root)):
        for view in VIEWS:
            half = _find_pair(folder, f"{folder.name}_{view}_half_sequence")
            whole = _find_file(folder, f"{folder.name}_{view}_sequence")
            if half:
                found.append(Sequence(folder.name, view, *half))
            elif whole:
                mask = _find_file(folder, f"{folder.name}_{view}_sequence_gt")
                found.append(Sequence(folder.name, view, whole, mask))
    return found


# The acquisition


@dataclass(frozen=True)
class Info:
    """What `Info_2CH.cfg` or `Info_4CH.cfg` says; None where it does not say it."""

    ed: int | None
    """Number of the end-diastolic frame in the sequence, from 1."""
    es: int | None
    """Number of the end-systolic frame in the sequence, from 1."""
    frame_count: int | None
    sex: str | None
    """Either "F" or "M"."""
    age: int | None
    """In years."""
    image_quality: str | None
    """Either "Good", "Medium" or "Poor"."""
    ejection_fraction: float | None
    """Of the left ventricle, in %."""
    frame_rate: float | None
    """In frames per second."""
    edv: float | None = None
    """Volume of the left ventricle at end-diastole, in ml; the older release says it."""
    esv: float | None = None
    """At end-systole."""


def read_info(recording: Frame | Sequence) -> Info | None:
    """What the release says of patient and acquisition; None where it has no `Info_*.cfg`.

    Lines are "key: value", with or without spaces at the colon; the older release says "LVef"
    where the newer one says "EF". Raises `DataError`, naming the file, where it cannot be read, a
    line has no colon or a number is none.
    """
    path = recording.image.parent / f"Info_{recording.view}.cfg"
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}): replace the file.") from error
    values: dict[str, str] = {}
    for line in filter(None, map(str.strip, lines)):
        key, colon, value = line.partition(":")
        if not colon:
            raise DataError(f'{path} has the line "{line}": expected "key: value".')
        values[key.strip()] = value.strip()

    def number(key: str) -> float | None:
        try:
            return float(values[key]) if values.get(key) else None
        except ValueError:
            raise DataError(f'{path} has the {key} "{values[key]}": expected a number.') from None

    def whole(key: str) -> int | None:
        value = number(key)
        return None if value is None else round(value)

    return Info(
        ed=whole("ED"),
        es=whole("ES"),
        frame_count=whole("NbFrame"),
        sex=values.get("Sex") or None,
        age=whole("Age"),
        image_quality=values.get("ImageQuality") or None,
        ejection_fraction=number("EF" if "EF" in values else "LVef"),
        frame_rate=number("FrameRate"),
        edv=number("LVedv"),
        esv=number("LVesv"),
    )


# The release's own split

_SPLIT_FILES = ("subgroup_training.txt", "subgroup_validation.txt", "subgroup_testing.txt")


def read_split(root: Path) -> Split | None:
    """The NIfTI release's own split, from its folder `database_split`; None where there is none.

    `root` is as in `find_frames`. The split may name patients that are not on disk.

    Raises `DataError`, naming the file, where one of the three is missing or cannot be read, lists
    something that is no patient, or a patient is listed twice.
    """
    root = Path(root)
    beside = [root.parent] if root.name == "database_nifti" else []
    folders = [
        folder
        for above in (root, *beside, *(sorted(root.glob("*")) if root.is_dir() else []))
        if (folder := above / "database_split").is_dir()
    ]
    if not folders:
        return None
    if len(folders) > 1:
        raise DataError(
            f"there are two splits, {folders[0]} and {folders[1]}: give the one release to read."
        )
    try:
        return Split(*(_read_names(folders[0] / name) for name in _SPLIT_FILES))
    except DataError as error:
        raise DataError(f"the split in {folders[0]} cannot be used: {error}") from error


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        names = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): expected the names of patients, one per line; "
            "unpack the release again, or remove its folder to split at random."
        ) from error
    for name in names:
        if not fnmatch(name, _PATIENT):
            raise DataError(f'{path} lists "{name}": expected names such as patient0001.')
    return tuple(sorted(names))
