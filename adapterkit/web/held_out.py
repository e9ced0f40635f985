"""Which accepted images are trained on and which are held out, and the Dice on those.

What was once held out stays so in all further trainings, and what was once trained on is never held
out, so that an adapter is not measured on what an earlier one has learned.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from scipy import ndimage

from adapterkit.data.collections.collection import group_of
from adapterkit.system.files import atomic_write
from adapterkit.web import rle
from adapterkit.web.drafts import Point
from adapterkit.web.model import Ask, Model
from adapterkit.web.predictions import Predictions
from adapterkit.web.worklist import WorkList

SHARES = {"train": 0.65, "test": 0.2, "validation": 0.15}
"""Of the groups, as nearly as it can be."""


def divide(groups: Sequence[str], before: Mapping[str, str]) -> dict[str, str]:
    """The part of each group: that of before, or where there is none the part that lacks most.

    Args:
        groups: what belongs together, by name.
        before: parts by group.
    """
    parts = {group: before[group] for group in sorted({*groups}) if group in before}
    # In an order that has nothing to do with the names.
    new = sorted({*groups} - {*parts}, key=lambda each: blake2b(each.encode()).digest())
    for group in new:
        counts = {part: sum(each == part for each in parts.values()) for part in SHARES}
        whole = len(parts) + 1
        empty = [part for part in SHARES if not counts[part]]
        lacks = {part: SHARES[part] * whole - counts[part] for part in empty or SHARES}
        parts[group] = max(lacks, key=lambda part: lacks[part])
    return parts


def write_split(worklist: WorkList, accepted: Sequence[str], group: str | None) -> dict[str, str]:
    """Divide the accepted images' groups, and write the split for `adapterkit train --split`.

    Args:
        worklist: whose images.
        accepted: their names.
        group: as `adapterkit train` has it.

    Returns:
        The part of each accepted image.

    Raises:
        ValueError: there are fewer than three groups.
    """
    group_by_name = {name: group_of(name, group) for name in accepted}
    if len({*group_by_name.values()}) < 3:
        raise ValueError(
            f"{len(accepted)} images are accepted, of {len({*group_by_name.values()})} groups: "
            "expected at least 3, one to train on, one to choose the best epoch by and one held out"
        )
    file = split_file(worklist)
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    parts = divide([*group_by_name.values()], before)
    for part in SHARES:
        if part not in parts.values():
            raise ValueError(f"none of the accepted images is for {part}: accept one more")
    # Of groups that have no accepted image now, too, for a later training.
    _write(file, {**before, **parts})
    _write(file.with_name("split_now.json"), parts)
    return {name: parts[group_by_name[name]] for name in accepted}


def split_file(worklist: WorkList) -> Path:
    """Where the parts of all groups so far are kept."""
    return worklist.own / "split.json"


def dice_of(
    worklist: WorkList,
    predictions: Predictions,
    model: Model,
    adapter: str | None,
    names: Sequence[str],
) -> float | None:
    """The mean Dice over images, frames and structures, against the accepted masks.

    A structure that the adapter knows is asked for by its name, another by one click in its middle.
    Where it is in neither mask, it does not count.

    Args:
        worklist: whose images.
        predictions: by names.
        model: which is asked.
        adapter: with which; None: the base alone.
        names: of the images.

    Returns:
        It, in [0, 1]; None where nothing counts.
    """
    known = {each.casefold(): each for each in model.classes(adapter)}
    found = []
    for name in names:
        for frame, labels in enumerate(worklist.read_mask(name)):
            by_name = predictions.get(name, frame, adapter, urgent=False)
            for label, structure in worklist.structures.names.items():
                reference = labels == label
                if structure.casefold() in known:
                    answer = by_name[known[structure.casefold()]]
                elif reference.any():
                    (answer,) = model.ask(
                        predictions.key(name, frame),
                        lambda name=name, frame=frame: (worklist.read(name), frame),
                        adapter,
                        [Ask(points=(middle(reference),))],
                        urgent=False,
                    )
                else:
                    continue
                mask = rle.decode(answer.rle, (labels.shape[0], labels.shape[1]))
                whole = int(mask.sum() + reference.sum())
                if whole:
                    found.append(2 * int((mask & reference).sum()) / whole)
    return float(np.mean(found)) if found else None


def middle(mask: np.ndarray) -> Point:
    """The pixel of a mask, (H, W), that is farthest from its border."""
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), mask.shape)
    return Point(int(x), int(y), True)


def _write(file: Path, parts: Mapping[str, str]) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(dict(parts), indent=1) + "\n", encoding="utf-8")
