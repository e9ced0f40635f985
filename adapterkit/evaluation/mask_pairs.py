"""Predicted masks beside those of an expert, in files, and how far they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from rich.progress import track
from torch import Tensor

from adapterkit.data.files.images import by_name, find_images, is_picture, stem
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.image_file import DataError, ImageFile, Spacing
from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.evaluation.metrics import DISTANCES, segmentation_metrics, with_unit


@dataclass(frozen=True)
class MaskPair:
    """The files of one image's masks.

    Attributes:
        name: what both are called, without their endings, in their folders.
        predicted: a label map, of one frame or several.
        reference: of the same shape.
    """

    name: str
    predicted: Path
    reference: Path


def find_mask_pairs(predicted: Path, reference: Path) -> list[MaskPair]:
    """Two files, or those of two folders that have the same names in the same subfolders.

    Endings may differ: `a/b.png` is the counterpart of `a/b.nii.gz`.

    Raises:
        DataError: a path does not exist, one is a folder and the other is not, a folder holds no
            mask or two of one name, or a mask has no counterpart.
    """
    for path in (predicted, reference):
        if not path.exists():
            raise DataError(f"there is no file or folder at {path}")
    if predicted.is_dir() != reference.is_dir():
        raise DataError(f"{predicted} and {reference}: expected two files, or two folders")
    if not predicted.is_dir():
        return [MaskPair(stem(predicted.name), predicted, reference)]
    ours, theirs = (by_name(folder, find_images(folder)) for folder in (predicted, reference))
    for here, there, folder in ((theirs, ours, predicted), (ours, theirs, reference)):
        missing = sorted(here.keys() - there.keys())
        if missing:
            more = f", and {len(missing) - 1} more have none" if missing[1:] else ""
            raise DataError(
                f"{here[missing[0]]} has no counterpart in {folder}{more}: expected masks of the "
                "same names in both folders"
            )
    return [MaskPair(name, ours[name], theirs[name]) for name in sorted(ours)]


def evaluate_masks(
    pairs: Sequence[MaskPair],
    structures: Mapping[int, str] | None = None,
    binary: bool = False,
    progress: str = "",
) -> Evaluation:
    """The metrics of each frame and structure, as `segmentation_metrics` says.

    Distances are in pixels of the masks ("hausdorff_px", ...) and, if all masks state a spacing, in
    mm too ("hausdorff_mm", ...); else `without_mm` of the evaluation says which does not, and why.
    The evaluation's images have the attribute "frame", from 0.

    Args:
        pairs: at least one.
        structures: what labels stand for; labels of one name are merged. None: those that the
            references hold.
        binary: all labels but 0 are of one structure.
        progress: what to call this in a progress bar; "" shows none.

    Raises:
        DataError: a mask cannot be read, holds other than whole numbers, lies elsewhere or has
            another size or spacing than its counterpart, or holds a label of no structure.
    """
    if binary:
        structures = {1: "foreground"}
    elif structures is None:
        structures = _structures([pair.reference for pair in pairs])
    names: list[str] = []
    attributes: list[dict[str, str]] = []
    in_pixels: list[dict[str, Tensor]] = []
    in_mm: list[dict[str, Tensor] | None] = []
    unknown: list[ImageFile] = []
    for pair in track(pairs, progress, disable=not progress, transient=True):
        predicted, reference = _of_equal_length(
            read_label_map(pair.predicted, binary), read_label_map(pair.reference, binary)
        )
        _check_geometry(predicted, reference)
        ours, theirs = (_channels(each, structures, binary) for each in (predicted, reference))
        spacing = reference.spacing if predicted.spacing is not None else None
        unknown += [each for each in (predicted, reference) if each.spacing is None]
        for frame in range(len(ours)):
            masks = ours[frame : frame + 1], theirs[frame : frame + 1]
            names.append(pair.name)
            attributes.append({"frame": str(frame)})
            in_pixels.append(with_unit(segmentation_metrics(*masks), "px"))
            in_mm.append(None if spacing is None else segmentation_metrics(*masks, spacing))
    values = {metric: torch.cat([each[metric] for each in in_pixels]) for metric in in_pixels[0]}
    known = [each for each in in_mm if each is not None]
    if len(known) == len(in_mm):
        values |= {
            f"{metric}_mm": torch.cat([each[metric] for each in known]) for metric in DISTANCES
        }
    merged = list(dict.fromkeys(structures.values()))
    return Evaluation(merged, names, attributes, values, _without_mm(unknown))


def _without_mm(unknown: Sequence[ImageFile]) -> str:
    """Which masks state no spacing, and why not."""
    if not unknown:
        return ""
    first, *others = unknown
    if first.nifti is not None:
        why = "states 1 x 1, without a unit of length or without a form (sform_code, qform_code)"
    elif first.dicom is not None:
        why = "is a DICOM file without Pixel Spacing"
    elif is_picture(first.path):
        why = "is a picture, which states no size of its pixels"
    else:
        why = "states 1 x 1 mm, which is what is written where no size is known"
    more = f" (as {len(others)} more masks)" if others else ""
    return f"distances are in pixels alone: {first.path} {why}{more}"


def _of_equal_length(*masks: ImageFile) -> list[ImageFile]:
    """A DICOM-SEG that ends before its counterpart goes on without a segment."""
    count = max(len(mask.frames) for mask in masks)
    longer = []
    for mask in masks:
        if mask.dicom is not None:
            rest = count - len(mask.frames)
            mask = replace(mask, frames=np.pad(mask.frames, ((0, rest), (0, 0), (0, 0))))
        longer.append(mask)
    return longer


def _structures(references: Sequence[Path]) -> dict[int, str]:
    found: set[int] = set()
    for path in references:
        found.update(np.unique(read_label_map(path).frames).tolist())
    if found <= {0}:
        raise DataError(f"{references[0]} and all other references hold no label but 0")
    return {label: f"structure {label}" for label in sorted(found - {0})}


def _channels(
    mask: ImageFile, structures: Mapping[int, str], binary: bool
) -> Bool[Tensor, "T K H W"]:
    labels = mask.frames
    if binary:
        return torch.from_numpy(labels != 0)[:, None]
    unknown = np.setdiff1d(labels, [0, *structures])
    if len(unknown):
        known = ", ".join(f"{label} ({name})" for label, name in structures.items())
        raise DataError(
            f"{mask.path} holds the label {unknown[0]}, which is no structure's: known are {known}"
            f"{_binary_instead(labels, structures)}"
        )
    of_each = [
        [label for label, other in structures.items() if other == name]
        for name in dict.fromkeys(structures.values())
    ]
    channels = [np.isin(labels, merged) for merged in of_each]
    return torch.from_numpy(np.stack(channels, axis=1))


def _binary_instead(labels: np.ndarray, structures: Mapping[int, str]) -> str:
    """What to do where masks of one structure have other labels: 0 and 255, say, or 0 and 1."""
    if len(structures) > 1 or len(np.setdiff1d(labels, [0])) > 1:
        return ""
    return "; give --binary (binary=True) where all that is not 0 is one structure"


def _check_geometry(predicted: ImageFile, reference: ImageFile) -> None:
    ours, theirs = predicted.frames.shape, reference.frames.shape
    if ours != theirs:
        raise DataError(
            f"{predicted.path} and {reference.path} differ in size (frames, rows, columns): "
            f"{ours} and {theirs}"
        )
    if is_picture(predicted.path) or is_picture(reference.path):
        return  # It states no geometry.
    if not _close(predicted.spacing, reference.spacing):
        raise DataError(
            f"{predicted.path} and {reference.path} differ in spacing (row, column): "
            f"{_mm(predicted.spacing)} and {_mm(reference.spacing)}"
        )
    if predicted.dicom is not None or reference.dicom is not None:
        return  # Its frames are those of segments one after the other.
    if not np.allclose(predicted.affine, reference.affine, rtol=1e-4, atol=1e-3):
        row = int(np.abs(predicted.affine - reference.affine).sum(axis=1).argmax())
        raise DataError(
            f"{predicted.path} and {reference.path} lie elsewhere in space: row {row} of their "
            f"affines is {predicted.affine[row].tolist()} and {reference.affine[row].tolist()}"
        )


def _close(one: Spacing | None, other: Spacing | None) -> bool:
    return bool(np.allclose(one or (1, 1), other or (1, 1), rtol=1e-4, atol=0))


def _mm(spacing: Spacing | None) -> str:
    return "unknown" if spacing is None else f"{spacing[0]:g} x {spacing[1]:g} mm"
