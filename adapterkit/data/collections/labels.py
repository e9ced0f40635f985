"""Labels of masks, and which structure each counts as."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from adapterkit.data.image_file import DataError
from adapterkit.system.pages import see

BINARY = {1: "foreground"}
"""The structure of masks whose labels have no names."""


def named_labels(options: Sequence[str]) -> dict[int, str]:
    """{1: "nodule"} of "1=nodule".

    Raises:
        DataError: one is not written so, names the background, or a label is there twice.
    """
    named: dict[int, str] = {}
    for each in options:
        label, _, name = each.partition("=")
        if not label.isdecimal() or int(label) == 0 or not name:
            raise DataError(
                f"--structures {each}: expected LABEL=NAME, 1=nodule say; 0 is background."
            )
        if int(label) in named:
            raise DataError(f"--structures {each}: {label} is there twice.")
        named[int(label)] = name
    return named


Colour = tuple[int, int, int]
"""Red, green and blue, each from 0 to 255."""


def named_colours(options: Sequence[str]) -> dict[Colour, str]:
    """{(255, 0, 0): "nodule"} of "nodule=255,0,0".

    Raises:
        DataError: one is not written so, or a colour is black or there twice.
    """
    named: dict[Colour, str] = {}
    for each in options:
        name, _, colour = each.rpartition("=")
        parts = colour.split(",")
        if not name or len(parts) != 3 or not all(p.isdecimal() and int(p) < 256 for p in parts):
            raise DataError(
                f"--colours {each}: expected NAME=RED,GREEN,BLUE, each from 0 to 255, as "
                "nodule=255,0,0."
            )
        red, green, blue = map(int, parts)
        if (red, green, blue) in named or not red + green + blue:
            why = "is there twice" if red + green + blue else "is black, which is background"
            raise DataError(f"--colours {each}: {colour} {why}.")
        named[red, green, blue] = name
    return named


def merged(structures: Mapping[int, str]) -> dict[int, str]:
    """Each name once, at the first of its labels."""
    return {label: name for name, label in _first_labels(structures).items()}


def counted_as(structures: Mapping[int, str], leave_out: Sequence[int] = ()) -> dict[int, int]:
    """For each label the first one of its name, and 0 for those that are left out.

    Raises:
        DataError: none is named, or one is not from 1 to 255.
    """
    if not structures or not all(0 < label < 256 for label in (*structures, *leave_out)):
        raise DataError(
            f"structures is {dict(structures)}, and left out are {list(leave_out)}: expected at "
            "least one label, each from 1 to 255."
        )
    first = _first_labels(structures)
    return {label: first[name] for label, name in structures.items()} | dict.fromkeys(leave_out, 0)


def relabelled(
    mask: np.ndarray, counts_as: Mapping[int, int], path: Path
) -> UInt8[np.ndarray, "*shape"]:
    """A label map with each label as what it counts as.

    Raises:
        DataError: it holds another label than those of `counts_as` and 0; the message names `path`.
    """
    found = np.unique(mask)
    if not np.isin(found, [0, *counts_as]).all():
        raise DataError(
            f"{path} holds the labels {listed(found)}: expected only 0 (background), "
            f"{', '.join(map(str, counts_as))}; name the others, or leave them out."
        )
    result = np.zeros(mask.shape, np.uint8)
    for label, other in counts_as.items():
        result[mask == label] = other
    return result


def check_binary(values: Mapping[float, Path]) -> None:
    """Raises `DataError` where masks without names of labels hold several beside 0.

    Args:
        values: those beside 0, with a file that holds each.
    """
    if len(values) > 1:
        named = " ".join(f"{value:g}=NAME" for value in sorted(values)[:3])
        raise DataError(
            f"the masks hold the labels {listed(sorted(values))} ({next(iter(values.values()))}, "
            f"for one), and none has a name: expected --structures {named} ..., with one name for "
            "labels that are to be merged, and --leave-out for others; "
            f"{see('own_data.md', 'folders')}."
        )


def listed(labels: Sequence[float] | np.ndarray) -> str:
    """The first ten."""
    shown = ", ".join(f"{value:g}" for value in labels[:10])
    return f"{shown}, ..." if len(labels) > 10 else shown


def _first_labels(structures: Mapping[int, str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for label, name in structures.items():
        first.setdefault(name, label)
    return first
