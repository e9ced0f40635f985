"""Synthetic apical echocardiography, written in the layout and files of CAMUS.

For tests, tutorials and trials where the real data are not at hand: `write_phantom` draws random
hearts, images them with a simple model of ultrasound and writes a folder that
`adapterkit.data.collections.camus` reads like the real release. No patient data are involved, and
scores on the phantom say nothing about scores on patients.

`heart` draws the hearts, `beat` moves them, and `ultrasound` images them.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator

from adapterkit.data.collections.camus import PHASES, VIEWS
from adapterkit.data.image_file import Spacing
from adapterkit.data.synthetic.beat import Beat, record
from adapterkit.data.synthetic.heart import (
    biplane_volume,
    contract,
    draw_labels,
    random_contraction,
    random_heart,
    random_view,
)
from adapterkit.data.synthetic.ultrasound import (
    QUALITIES,
    draw_image,
    fit_sector,
    random_acoustics,
    random_speckle,
)

_VERSION = 2
_README = """\
Synthetic echocardiography, made by adapterkit (adapterkit.data.synthetic.phantom).

These images are drawn from a model. They show no patient and hold no patient data.
Layout, file names and labels follow the CAMUS data set: 0 background, 1 left ventricle
(endocardium), 2 myocardium, 3 left atrium. phantom.json holds the parameters.
"""


SYNTHETIC = "SYNTHETIC echo made by adapterkit (no data given)"
"""What tables call the images that are used where there are no others."""


def synthetic_echo() -> Path:
    """Those images: 48 patients, made under runs/ at the first call."""
    return write_phantom(Path("runs/phantom_48_patients"), patients=48)


def write_phantom(
    folder: Path,
    patients: int = 24,
    seed: int = 0,
    image_size: int = 256,
    half_sequences: bool = False,
    beat: Beat | None = None,
) -> Path:
    """Writes synthetic patients below `folder/database_nifti` and returns `folder`.

    Each patient has both views at ED and ES with label maps (uint8, image_size x image_size,
    spacing in mm in the header), and `Info_2CH.cfg` and `Info_4CH.cfg`, whose EF is that of the
    model, by the biplane method of discs. With `half_sequences` also the frames from ED to ES with
    theirs, of which the first and the last are the two; they take several times as long to write.
    Patient k depends on `seed`, k and `image_size` only, not on how many patients there are.

    With `beat` the hearts are others: of any ejection fraction, some with walls that do not move
    alike, and seen unsteadily. Each has both views as sequences with label maps in every frame, at
    the same times, the frames of ED and ES as images too, and what is true of it: `Info_*.cfg` also
    says LVedv and LVesv in ml, and `patient0001_volumes.csv` the volume in each frame.

    The folder appears complete or not at all. One that already holds a phantom with the same
    parameters is reused as it is. Raises `FileExistsError` where the folder holds anything else,
    and `ValueError` for patients outside 1 to 9999, a negative seed or an image size below 32.
    """
    folder = Path(folder)
    if not 1 <= patients <= 9999:
        raise ValueError(f"patients is {patients}: expected 1 to 9999.")
    if seed < 0:
        raise ValueError(f"seed is {seed}: expected 0 or more.")
    if image_size < 32:
        raise ValueError(f"image_size is {image_size}: expected a side of at least 32 pixels.")
    parameters = {
        "synthetic": True,
        "version": _VERSION,
        "patients": patients,
        "seed": seed,
        "image_size": image_size,
        "half_sequences": half_sequences,
        **({} if beat is None else {"beat": _as_json(beat)}),
    }
    if _is_written(folder, parameters):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        draft = Path(beside) / folder.name
        for number in range(1, patients + 1):
            rng, folder_of_all = np.random.default_rng([seed, number]), draft / "database_nifti"
            if beat is None:
                _write_patient(folder_of_all, number, rng, image_size, half_sequences)
            else:
                _write_recording(folder_of_all, number, rng, image_size, beat)
        (draft / "README.txt").write_text(_README, encoding="utf-8")
        (draft / "phantom.json").write_text(json.dumps(parameters) + "\n", encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:
            # Another process may have written the same phantom in the meantime.
            if not _is_written(folder, parameters):
                raise
    return folder


def _is_written(folder: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether the phantom is there already; an error if something else is."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: expected a folder or nothing there.")
    if not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / "phantom.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "no readable phantom.json"
    if found != parameters:
        raise FileExistsError(
            f"{folder} holds something else (found {found}, expected {dict(parameters)}): "
            "give another folder, or remove this one."
        )
    return True


def _write_patient(
    database: Path, number: int, rng: Generator, image_size: int, half_sequences: bool
) -> None:
    quality = list(QUALITIES)[rng.choice(3, p=(0.4, 0.4, 0.2))]
    diastole = random_heart(rng)
    contraction = random_contraction(rng)
    sector = fit_sector(rng, diastole, image_size)
    hearts = {view: random_view(rng, diastole, four_chamber=view == "4CH") for view in VIEWS}
    full, empty = (
        biplane_volume(*(contract(heart, contraction, amount) for heart in hearts.values()))
        for amount in (0, 1)
    )
    age, sex, rate = rng.integers(20, 91), "FM"[rng.integers(2)], rng.uniform(40, 80)
    patient = f"patient{number:04d}"
    folder = database / patient
    folder.mkdir(parents=True)
    for view, heart in hearts.items():
        acoustics = random_acoustics(rng, QUALITIES[quality])
        diastolic, systolic = (random_speckle(rng, sector) for _ in PHASES)
        count = int(rng.integers(12, 26))
        times = np.linspace(0, 1, count if half_sequences else 2)
        images, labels = [], []
        for time in times:
            # The ventricle contracts slowly, fast and slowly. Speckle moves on with it: a mixture
            # of two fields whose power stays 1.
            shown = contract(heart, contraction, (1 - math.cos(math.pi * time)) / 2)
            mixed = math.cos(math.pi / 2 * time), math.sin(math.pi / 2 * time)
            speckle = mixed[0] * diastolic + mixed[1] * systolic
            images.append(draw_image(speckle, shown, sector, acoustics))
            labels.append(draw_labels(shown, *sector.pixels()))
        stem = f"{patient}_{view}"
        for phase, index in zip(PHASES, (0, -1), strict=True):
            _write_pair(folder, f"{stem}_{phase}", images[index], labels[index], sector.spacing)
        if half_sequences:
            _write_pair(
                folder, f"{stem}_half_sequence", np.stack(images), np.stack(labels), sector.spacing
            )
        (folder / f"Info_{view}.cfg").write_text(
            f"ED: 1\nES: {count}\nNbFrame: {count}\nSex: {sex}\nAge: {age}\n"
            f"ImageQuality: {quality}\nEF: {100 * (1 - empty / full):.1f}\nFrameRate: {rate:.1f}\n",
            encoding="utf-8",
        )


def _write_recording(
    database: Path, number: int, rng: Generator, image_size: int, beat: Beat
) -> None:
    found = record(rng, beat, VIEWS, image_size)
    age, sex, rate = rng.integers(20, 91), "FM"[rng.integers(2)], rng.uniform(40, 80)
    patient = f"patient{number:04d}"
    folder = database / patient
    folder.mkdir(parents=True)
    kind = "sequence" if beat.whole else "half_sequence"
    for view in VIEWS:
        images, labels, spacing = found.images[view], found.labels[view], found.sector.spacing
        stem = f"{patient}_{view}"
        for phase, index in zip(PHASES, (found.ed, found.es), strict=True):
            _write_pair(folder, f"{stem}_{phase}", images[index], labels[index], spacing)
        _write_pair(folder, f"{stem}_{kind}", images, labels, spacing)
        (folder / f"Info_{view}.cfg").write_text(
            f"ED: {found.ed + 1}\nES: {found.es + 1}\nNbFrame: {len(images)}\nSex: {sex}\n"
            f"Age: {age}\nImageQuality: {found.quality}\nEF: {found.ejection_fraction:.1f}\n"
            f"LVedv: {found.volumes.max():.1f}\nLVesv: {found.volumes.min():.1f}\n"
            f"FrameRate: {rate:.1f}\n",
            encoding="utf-8",
        )
    lines = [f"{frame},{volume:.2f}" for frame, volume in enumerate(found.volumes, start=1)]
    text = "\n".join(["frame,volume_ml", *lines]) + "\n"
    (folder / f"{patient}_volumes.csv").write_text(text, encoding="utf-8")


def _as_json(beat: Beat) -> dict[str, Any]:
    """As it is read again, tuples as lists."""
    return json.loads(json.dumps(asdict(beat)))


def _write_pair(
    folder: Path,
    stem: str,
    image: UInt8[np.ndarray, "*time H W"],
    labels: UInt8[np.ndarray, "*time H W"],
    spacing: Spacing,
) -> None:
    row, column = spacing
    for name, array in ((stem, image), (f"{stem}_gt", labels)):
        nifti = nibabel.Nifti1Image(array.T, np.diag([column, row, 1.0, 1.0]))
        nifti.header.set_xyzt_units("mm")
        nifti.header["descrip"] = b"synthetic echocardiography, adapterkit"
        nibabel.save(nifti, folder / f"{name}.nii.gz")
