"""nnU-Net's raw data sets: pictures, and volumes as slices.

    dataset.json                    {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz",
                                     "labels": {"background": 0, "tumour": 1}}
    imagesTr/case_001_0000.nii.gz   the image of case_001, channel 0
    labelsTr/case_001.nii.gz        its label map

The first version of nnU-Net has labels as {"0": "background", "1": "tumour"}.

Source: F. Isensee et al., "nnU-Net", Nature Methods 18, 203-211, 2021, and its documentation.
"""

import json
from pathlib import Path
from typing import Any

from adapterkit.data.collections.collection import Collection, collection_format, group_of
from adapterkit.data.collections.volumes import Volume, slices
from adapterkit.data.image_file import DataError


@collection_format("nnunet", recognises=lambda path: (path / "dataset.json").is_file())
def open_nnunet(
    path: Path, axis: int = 0, channel: int = 0, group: str | None = None
) -> Collection:
    """The labelled cases of a raw data set, slice by slice; a case is a group.

    Args:
        path: the folder that holds dataset.json.
        axis: along which volumes are cut: 0 the order of frames, 1 rows, 2 columns.
        channel: of those that a case has files of.
        group: a regular expression of what cases that belong together share in their names.

    Raises:
        DataError: dataset.json is not as above, a case has no image of the channel or no label map,
            or a file cannot be read or does not fit.
    """
    source = path / "dataset.json"
    try:
        stated = json.loads(source.read_text(encoding="utf-8-sig"))
        ending = str(stated.get("file_ending", ".nii.gz"))
        structures = _structures(stated["labels"], source)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{source} is not as nnU-Net has it ({type(error).__name__}: {error}): expected "
            "labels and file_ending."
        ) from error
    masks = {each.name.removesuffix(ending): each for each in _files(path / "labelsTr", ending)}
    suffix = f"_{channel:04d}"
    images = {
        each.name.removesuffix(ending).removesuffix(suffix): each
        for each in _files(path / "imagesTr", ending)
        if each.name.endswith(suffix + ending)
    }
    unmatched = sorted(images.keys() ^ masks.keys())
    if unmatched:
        case = unmatched[0]
        what = f"label map, labelsTr/{case}{ending}"
        if case in masks:
            what = f"image, imagesTr/{case}{suffix}{ending}"
        raise DataError(f"{path}: {case} has no {what} ({len(unmatched)} such cases).")
    known = {label: label for label in structures}
    volumes = [Volume(c, images[c], masks[c], structures, known) for c in sorted(images)]
    records = slices(volumes, axis)
    return Collection(
        name=path.resolve().name,
        format="nnunet",
        records=tuple(records),
        groups=tuple(group_of(record.volume.name, group) for record in records),
    )


def _structures(labels: dict[str, Any], source: Path) -> dict[int, str]:
    pairs = [
        (int(name), str(value)) if name.isdecimal() else (value, name)
        for name, value in labels.items()
    ]
    for label, name in pairs:
        if not isinstance(label, int) or not 0 <= label < 256 or name == "ignore":
            raise DataError(
                f"{source} has the label {name!r} of {label}: expected one number from 0 to 255 "
                "for each; regions of several labels and labels to ignore are not read."
            )
    return {label: name for label, name in sorted(pairs) if label != 0}


def _files(folder: Path, ending: str) -> list[Path]:
    found = sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []
    if not found:
        raise DataError(f"{folder} holds no file that ends in {ending}: expected some.")
    return found
