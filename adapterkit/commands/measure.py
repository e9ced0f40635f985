"""The command `adapterkit measure`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from adapterkit.system.command_line import console

if TYPE_CHECKING:
    from adapterkit.evaluation.clinical.patients import Values
    from adapterkit.evaluation.echo_files import EchoFile, Measured, Read

_errors = Console(stderr=True)
_PLAIN: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False}
_SHOWN = 10
"""Notes that are printed; all are in the table."""
_IN_FIGURES = ("ef", "edv_ml", "esv_ml")


def measure(
    masks: Positional[Path],
    out: Path,
    reference: Path | None = None,
    structures: Annotated[tuple[str, ...], arg(metavar="LABEL=NAME ...")] = (),
    names: Annotated[str | None, arg(metavar="REGEX")] = None,
    adapter: Path | None = None,
    checkpoint: Path | None = None,
    force: bool = False,
) -> None:
    """Measure echocardiograms: volumes and ejection fraction from masks of apical views.

    By the method of discs, biplane where both views are there. Not for clinical use. Names such as
    anna_2CH_ED and anna_4CH_ES, or anna_2CH of a sequence, say patient, view and phase, as CAMUS's
    do; a sequence tells ED and ES by the ventricle's area.

    Example: adapterkit measure masks --reference experts --out measures

    Args:
        masks: a folder of label maps; with --adapter, of images.
        out: a new folder for tables and figures.
        reference: a folder of an expert's masks, or a CSV file of values by patient. What CAMUS's
            Info_*.cfg state is compared too.
        structures: what labels stand for; by default 1 is the left ventricle, 3 the left atrium.
        names: how files are named; see docs/measuring.md.
        adapter: segment the images with this adapter file first.
        checkpoint: of its base: a file, folder or Hub name; without, the small model.
        force: write into a folder that is there.
    """
    from adapterkit.evaluation.echo_files import NAMES, find_echo_files

    names = names or NAMES
    if checkpoint is not None and adapter is None:
        raise ValueError("--checkpoint is of the base of an --adapter: give both")
    _check_out(out, force)
    files = find_echo_files(masks, names, images=adapter is not None)
    read, labels = _reader(adapter, checkpoint, structures)
    found = _measured(files, read, labels, "patients")
    experts, beside = _references(reference, masks, adapter, names, structures, found, files)
    out.mkdir(parents=True, exist_ok=True)
    _write_tables(out, found, experts, beside)
    _tell_notes(note for each in found.values() for note in each.notes)
    _tell(out, found, beside)


def _check_out(out: Path, force: bool) -> None:
    if out.is_file():
        raise FileExistsError(f"--out {out} is a file: expected a folder, or nothing there")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise FileExistsError(f"--out {out} exists; give --force to write there, or a new folder")


def _reader(
    adapter: Path | None, checkpoint: Path | None, structures: Sequence[str]
) -> "tuple[Read, dict[int, str]]":
    """What gives the label maps of a file, and what the labels stand for."""
    from adapterkit.data.collections.camus import STRUCTURES
    from adapterkit.data.collections.labels import named_labels
    from adapterkit.data.files.label_maps import read_label_map
    from adapterkit.evaluation.clinical import VENTRICLE

    named = named_labels(structures)
    if adapter is None:
        read, labels = read_label_map, named or STRUCTURES
    else:
        read, labels = _segmenting(adapter, checkpoint)
        labels |= named
    if VENTRICLE not in labels.values():
        known = ", ".join(f"{label}={name}" for label, name in labels.items())
        raise ValueError(
            f'no structure is called "{VENTRICLE}": known are {known}; name it with --structures, '
            f'"1={VENTRICLE}" say'
        )
    return read, dict(labels)


def _segmenting(adapter: Path, checkpoint: Path | None) -> "tuple[Read, dict[int, str]]":
    from dataclasses import replace

    import numpy as np

    from adapterkit.data.files.images import read_image
    from adapterkit.data.image_file import ImageFile
    from adapterkit.inference.archive import Model

    predictor = Model(checkpoint, adapter, {}).predictor()
    if not predictor.promptable.structures:
        raise ValueError(
            f"{adapter} does not know structures by name and needs prompts: segment the images "
            "with adapterkit predict --prompts, and measure the masks"
        )

    def read(path: Path) -> ImageFile:
        image = read_image(path)
        maps = [each.label_map() for each in predictor.predict_frames(image)]
        return replace(image, frames=np.stack(maps))

    return read, dict(enumerate(predictor.structures, 1))


def _measured(
    files: "Mapping[str, Sequence[EchoFile]]",
    read: "Read",
    labels: Mapping[int, str],
    progress: str,
) -> "dict[str, Measured]":
    from rich.progress import track

    from adapterkit.evaluation.echo_files import measure_files

    hidden = not _errors.is_terminal
    patients = track(
        files.items(), progress, len(files), console=_errors, transient=True, disable=hidden
    )
    return {patient: measure_files(patient, each, read, labels) for patient, each in patients}


def _references(
    reference: Path | None,
    masks: Path,
    adapter: Path | None,
    names: str,
    structures: Sequence[str],
    found: "Mapping[str, Measured]",
    files: "Mapping[str, Sequence[EchoFile]]",
) -> "tuple[dict[str, Measured], dict[str, Mapping[str, Values]]]":
    """An expert's masks, measured, and all values to compare with, by where they are from."""
    from adapterkit.evaluation.clinical.patients import values_of
    from adapterkit.evaluation.echo_files import find_echo_files, read_values, stated_values

    if reference is None:
        return {}, {}
    if not reference.exists():
        raise FileNotFoundError(f"there is no file or folder at --reference {reference}")
    if not reference.is_dir():
        values = read_values(reference)
        _check_shared(found, values, reference)
        return {}, {"reference": values}
    of_experts = find_echo_files(reference, names)
    _check_shared(found, of_experts, reference)
    of_experts = {patient: each for patient, each in of_experts.items() if patient in found}
    stated = {patient: stated_values(each) for patient, each in of_experts.items()}
    beside: dict[str, Mapping[str, Values]] = {
        "stated": {patient: each for patient, each in stated.items() if each}
    }
    experts: dict[str, Measured] = {}
    # A folder of masks beside itself agrees, and only what is stated tells something.
    if adapter is not None or reference.resolve() != masks.resolve():
        read, labels = _reader(None, None, structures if adapter is None else ())
        experts = _measured(of_experts, read, labels, "reference")
        of_masks = {patient: values_of(each.heart) for patient, each in experts.items()}
        beside = {"reference": of_masks, **beside}
    return experts, {ending: values for ending, values in beside.items() if values}


def _check_shared(found: Iterable[str], theirs: Iterable[str], reference: Path) -> None:
    ours, theirs = list(found), list(theirs)
    if not {*ours} & {*theirs}:
        raise ValueError(
            f"--reference {reference} has none of the patients: it has {theirs[0]}, and the masks "
            f"{ours[0]}; expected the same names"
        )


def _write_tables(
    out: Path,
    found: "Mapping[str, Measured]",
    experts: "Mapping[str, Measured]",
    beside: "Mapping[str, Mapping[str, Values]]",
) -> None:
    from adapterkit.evaluation.echo_tables import frame_table, patient_table
    from adapterkit.system.files import atomic_write

    tables = {"patients": patient_table(found, beside), "frames": frame_table(found, experts)}
    for name, table in tables.items():
        if len(table):
            with atomic_write(out / f"{name}.csv") as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g")


def _tell_notes(notes: Iterable[str]) -> None:
    notes = list(notes)
    for note in notes[:_SHOWN]:
        _errors.print(f"warning: {note}", **_PLAIN)
    if len(notes) > _SHOWN:
        _errors.print(f"and {len(notes) - _SHOWN} more warnings, in patients.csv", **_PLAIN)


def _tell(
    out: Path,
    found: "Mapping[str, Measured]",
    beside: "Mapping[str, Mapping[str, Values]]",
) -> None:
    """Print tables of agreement, and draw them; raises OSError where one cannot be written."""
    from adapterkit.evaluation.agreement_figure import agreement_figure
    from adapterkit.evaluation.clinical.patients import (
        HEADS,
        agreement_rows,
        compare,
        measurement_rows,
        values_of,
    )
    from adapterkit.evaluation.tables import markdown

    values = {patient: values_of(each.heart) for patient, each in found.items()}
    heads, rows = measurement_rows(values)
    console.print(markdown(heads, rows), **_PLAIN)
    for ending, theirs in beside.items():
        compared = compare(values, theirs)
        if not compared:
            _errors.print(f"warning: nothing is known in both the masks and the {ending}", **_PLAIN)
            continue
        said = "as stated" if ending == "stated" else "against the reference"
        console.print(f"\n{said}, with 95 % confidence intervals over patients:\n", **_PLAIN)
        console.print(markdown(HEADS, agreement_rows([*compared.values()])), **_PLAIN)
        drawn = [compared[key] for key in _IN_FIGURES if key in compared]
        if drawn:
            name = "agreement" if ending == "reference" else f"agreement_{ending}"
            agreement_figure(drawn, out / f"{name}.png")
    console.print(f"\n{len(found)} patients, in {out}; not for clinical use", **_PLAIN)
