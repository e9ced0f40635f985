"""Files of apical views, whose names tell patient, view and phase, and what they measure."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer, UInt8

from adapterkit.data.collections.camus import Frame, read_info
from adapterkit.data.files.images import find_images, stem
from adapterkit.data.image_file import DataError, ImageFile
from adapterkit.evaluation.clinical import (
    ATRIUM,
    VENTRICLE,
    VIEWS,
    LeftHeart,
    Recording,
    View,
    dice_of_frames,
    measure_patient,
    measure_sequence,
    measure_view,
)
from adapterkit.evaluation.clinical.patients import QUANTITIES, Values

NAMES = (
    r"(?:.*/)?(?P<patient>[^/]+?)[_-](?P<view>[24]CH)(?:[_-](?P<phase>ED|ES))?"
    r"(?:[_-](?:half[_-])?sequence)?"
)
"""How files are named: patient, view and, where it is not a sequence, phase; as CAMUS has it."""

_LEFT_HEART = {VENTRICLE: 1, ATRIUM: 3}
_EXPERTS = "_gt"
"""What the names of CAMUS's masks end with."""


@dataclass(frozen=True)
class EchoFile:
    """A label map, or an image, of one apical view.

    Attributes:
        path: of the file.
        patient: by name.
        view: "2CH" or "4CH".
        phase: "ED" or "ES" of a single frame; None of a sequence.
    """

    path: Path
    patient: str
    view: str
    phase: str | None


def find_echo_files(
    folder: Path, names: str = NAMES, images: bool = False
) -> dict[str, list[EchoFile]]:
    """The files of each patient in a folder and its subfolders, by the patients' names, sorted.

    Where some names end with `_gt`, those are the masks and the others the images. Files whose
    names do not match are left out, as a folder of CAMUS has other files too.

    Args:
        folder: where to look.
        names: a regular expression for the whole path within the folder, without ending and `_gt`,
            in any case, with groups named patient, view and, where files are of ED or ES, phase.
        images: find the images, not the masks.

    Raises:
        DataError: there is no such folder, `names` is no such expression, no file matches, or two
            are of the same patient, view and phase.
    """
    expression = _compiled(names)
    paths = find_images(folder)
    experts = [path for path in paths if stem(path.name).endswith(_EXPERTS)]
    if images:
        paths = [path for path in paths if path not in {*experts}]
    elif experts:
        paths = experts
    found: dict[tuple[str, str, str | None], EchoFile] = {}
    for path in paths:
        name = path.relative_to(folder).with_name(stem(path.name).removesuffix(_EXPERTS))
        match = expression.fullmatch(name.as_posix())
        if match is None:
            continue
        phase = match.groupdict().get("phase")
        each = EchoFile(path, match["patient"], match["view"].upper(), phase and phase.upper())
        if each.view not in VIEWS or each.phase not in ("ED", "ES", None):
            raise DataError(
                f"{path} has the view {each.view} and the phase {each.phase}: expected 2CH or 4CH, "
                "and ED, ES or none; correct --names."
            )
        key = each.patient, each.view, each.phase
        if key in found:
            raise DataError(
                f"{found[key].path} and {path} are of one patient, view and phase: expected one; "
                "remove the other, or tell them apart by --names."
            )
        found[key] = each
    if not found:
        raise DataError(
            f"no file in {folder} is named as an apical view is, {paths[0].name} for one: expected "
            "names such as anna_2CH_ED.nii.gz, or anna_4CH.nii.gz of a sequence; give --names, a "
            "regular expression with groups (?P<patient>...), (?P<view>...) and (?P<phase>...)."
        )
    by_patient: dict[str, list[EchoFile]] = {}
    for key in sorted(found, key=lambda key: (*key[:2], key[2] or "")):
        by_patient.setdefault(key[0], []).append(found[key])
    return by_patient


def _compiled(names: str) -> re.Pattern[str]:
    try:
        expression = re.compile(names, re.IGNORECASE)
    except re.error as error:
        raise DataError(f"--names {names} is no regular expression: {error}.") from error
    if missing := {"patient", "view"} - expression.groupindex.keys():
        raise DataError(
            f"--names {names} has no group {' and no group '.join(sorted(missing))}: expected "
            "(?P<patient>...) and (?P<view>...), and (?P<phase>...) for files of ED and ES."
        )
    return expression


Read = Callable[[Path], ImageFile]
"""Gives the label maps of a file, as `read_label_map` does."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What the files of one patient measure.

    Attributes:
        heart: volumes, ejection fraction, and notes.
        recordings: of the views that are sequences.
        ventricles: the left ventricle's mask in the frames of each file, by view and phase.
    """

    heart: LeftHeart
    recordings: Mapping[str, Recording]
    ventricles: Mapping[tuple[str, str | None], Integer[np.ndarray, "T H W"]]

    @property
    def notes(self) -> tuple[str, ...]:
        """Of the sequences, then of the heart; each once."""
        of_sequences = (note for each in self.recordings.values() for note in each.notes)
        return tuple(dict.fromkeys([*of_sequences, *self.heart.notes]))

    def dice(self, reference: "Measured") -> dict[tuple[str, str | None], Float[np.ndarray, "T"]]:
        """Of the left ventricle in each frame, of the files that both have.

        Raises:
            DataError: two files of one view differ in size.
        """
        found = {}
        for key, ours in self.ventricles.items():
            theirs = reference.ventricles.get(key)
            if theirs is None:
                continue
            if ours.shape != theirs.shape:
                raise DataError(
                    f"{self.heart.patient}: masks and reference of {key[0]} {key[1] or 'sequence'} "
                    f"differ in size (frames, rows, columns): {ours.shape} and {theirs.shape}."
                )
            found[key] = dice_of_frames(ours == 1, theirs == 1)
        return found


def measure_files(
    patient: str, files: Sequence[EchoFile], read: Read, structures: Mapping[int, str]
) -> Measured:
    """Measure one patient.

    A view's frames of ED and ES are those whose names say so; where it lacks them, those of its
    sequence, by the area curve. Sequences are followed in time in any case.

    Args:
        patient: by name.
        files: of the patient.
        read: gives their label maps.
        structures: what the labels stand for; "left ventricle" is one of them.

    Raises:
        DataError: a file cannot be read, has a label that is not in `structures`, or is one frame
            of no phase or several of one.
    """
    phases: dict[str, dict[str, View]] = {"ED": {}, "ES": {}}
    recordings, ventricles = {}, {}
    atrium = _LEFT_HEART[ATRIUM] if ATRIUM in structures.values() else None
    for file in files:
        image = read(file.path)
        labels = _left_heart(image, structures)
        ventricles[file.view, file.phase] = labels
        name = stem(file.path.name).removesuffix(_EXPERTS)
        if file.phase is None:
            if len(labels) == 1:
                raise DataError(
                    f"{file.path} is one frame and its name says neither ED nor ES: expected a "
                    "sequence, or a name such as anna_2CH_ED; give --names with a group phase."
                )
            recordings[file.view] = measure_sequence(labels, image.spacing, name, atrium=atrium)
        elif len(labels) > 1:
            raise DataError(
                f"{file.path} has {len(labels)} frames and its name says {file.phase}: expected "
                "one; give --names without a group phase where files are sequences."
            )
        else:
            view = measure_view(labels[0], image.spacing, name, atrium=atrium)
            phases[file.phase][file.view] = view
    for view, found in recordings.items():
        if not all(view in of for of in phases.values()):
            for of, frame in zip(phases.values(), (found.at_ed, found.at_es), strict=True):
                of.pop(view, None)
                if frame is not None:
                    of[view] = frame
    heart = measure_patient(patient, phases["ED"], phases["ES"])
    return Measured(heart, recordings, ventricles)


def _left_heart(image: ImageFile, structures: Mapping[int, str]) -> UInt8[np.ndarray, "T H W"]:
    """CAMUS's labels of ventricle and atrium, and 0 for all else."""
    labels = image.frames
    unknown = np.setdiff1d(labels, [0, *structures])
    if len(unknown):
        known = ", ".join(f"{label} ({name})" for label, name in structures.items())
        raise DataError(
            f"{image.path} holds the label {unknown[0]}, which is no structure's: known are "
            f"{known}; say what labels stand for with --structures, 1='{VENTRICLE}' and so on."
        )
    found = np.zeros(labels.shape, dtype=np.uint8)
    for label, name in structures.items():
        if name in _LEFT_HEART:
            found[labels == label] = _LEFT_HEART[name]
    return found


# References that are no masks


def stated_values(files: Sequence[EchoFile]) -> dict[str, float]:
    """What CAMUS's `Info_*.cfg` beside a patient's files say; {} where there is none.

    Raises:
        DataError: one cannot be read.
    """
    for file in files:
        info = read_info(Frame(file.patient, file.view, "ED", file.path, file.path))
        if info is not None and info.ejection_fraction is not None:
            stated = {"ef": info.ejection_fraction, "edv_ml": info.edv, "esv_ml": info.esv}
            known = {key: value for key, value in stated.items() if value is not None}
            if known.keys() >= {"edv_ml", "esv_ml"}:
                known["stroke_volume_ml"] = known["edv_ml"] - known["esv_ml"]
            return known
    return {}


def read_values(path: Path) -> dict[str, Values]:
    """A table of measurements by patient: a CSV file with the column patient and some quantities.

    Raises:
        DataError: it cannot be read, lacks them, holds what is no number, or a patient twice.
    """
    try:
        rows = pd.read_csv(path, dtype={"patient": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CSV file: {error}.") from error
    known = [key for key in QUANTITIES if key in rows]
    if "patient" not in rows or not known:
        raise DataError(
            f"{path} has the columns {', '.join(map(str, rows))}: expected patient, and one or "
            f"more of {', '.join(QUANTITIES)}."
        )
    patients = Counter(rows["patient"].tolist())
    if twice := [patient for patient, count in patients.items() if count > 1]:
        raise DataError(f"{path} has the patient {twice[0]} twice: expected one row of each.")
    try:
        return {
            str(row["patient"]): {key: float(row[key]) for key in known}
            for row in rows.to_dict("records")
        }
    except ValueError as error:
        raise DataError(f"{path} holds what is no number: {error}.") from error
