"""Prompts as a user gives them, in pixels of an image, and as a model takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from adapterkit.inference.fitting import (
    Fit,
    boxes_in_input,
    logits_as_mask_prompt,
    mask_in_input,
)
from adapterkit.promptable.prompts import Prompts

Kind = tuple[tuple[str, torch.Size], ...]


def kind_of(prompts: Prompts) -> Kind:
    """What prompts that are decoded together have in common."""
    return tuple((name, value.shape) for name, value in prompts.given.items())


def read_prompts(
    given: Mapping[str, Any], fit: Fit, low_res: tuple[int, int], named: Sequence[str] = ()
) -> list[Prompts]:
    """For each structure its prompts, (1, 1, ...), in pixels of the model's square input.

    Args:
        given: the arguments of `Predictor.predict`, by name.
        fit: of the image in the model's input.
        low_res: those of the logits that the model takes for a mask.
        named: the names of the model's classes.

    Raises:
        ValueError: as `Predictor.predict`.
    """
    present = {name: entries for name, entries in given.items() if entries is not None}
    counts = {name: _length(name, entries) for name, entries in present.items()}
    if not counts:
        raise ValueError(
            "no prompt: give points with labels, boxes, or masks, or take predict_automatic"
        )
    for name, count in counts.items():
        if count == 0:
            raise ValueError(f"{name} has no entry: expected one for each structure")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"one entry for each structure is expected, but there are: {told}")
    prompts = []
    for k in range(max(counts.values())):
        entry = {name: values[k] for name, values in present.items() if values[k] is not None}
        if not entry:
            raise ValueError(f"structure {k} has no prompt: give points with labels, or a box")
        if ("points" in entry) != ("labels" in entry):
            missing = "points" if "labels" in entry else "labels"
            raise ValueError(
                f"structure {k} lacks {missing}: give both, and for each point the label 1 if it "
                "is inside of the structure, 0 if outside"
            )
        if "classes" in entry:
            entry["classes"] = _class(k, entry["classes"], named)
        prompts.append(_prompt(k, entry, fit, low_res))
    return prompts


def _prompt(k: int, entry: Mapping[str, Any], fit: Fit, low_res: tuple[int, int]) -> Prompts:
    height, width = fit.size
    prompt: dict[str, np.ndarray] = {}
    if "points" in entry:
        points = _numbers(f"points[{k}]", entry["points"], "(n, 2), n points (x, y)", None, 2)
        labels = _numbers(f"labels[{k}]", entry["labels"], f"({len(points)},)", len(points))
        inside = ((points >= -0.5) & (points <= np.array([width, height]) - 0.5)).all(axis=1)
        if not inside.all():
            x, y = points[~inside][0]
            raise ValueError(
                f"points[{k}] has ({x:g}, {y:g}), outside of the image: expected x from 0 to "
                f"{width - 1} and y from 0 to {height - 1}"
            )
        if not np.isin(labels, [0, 1]).all():
            raise ValueError(f"labels[{k}] is {labels.tolist()}: expected 1 inside, 0 outside")
        prompt["points"] = fit.points(points)
        prompt["labels"] = labels.astype(np.int64)
    if "boxes" in entry:
        box = _numbers(f"boxes[{k}]", entry["boxes"], "(4,), x0, y0, x1, y1", 4)
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"boxes[{k}] is {box.tolist()}: expected (x0, y0, x1, y1) with 0 <= x0 < x1 <= "
                f"{width} and 0 <= y0 < y1 <= {height}"
            )
        prompt["boxes"] = boxes_in_input(fit, box)
    if "masks" in entry:
        prompt["masks"] = _mask_prompt(k, entry["masks"], fit, low_res)
    if "classes" in entry:
        prompt["classes"] = np.array(entry["classes"])
    return Prompts(**{name: _tensor(value) for name, value in prompt.items()})


def together(prompts: Sequence[Prompts]) -> Prompts:
    """Prompts of one kind as those of K structures of one image."""
    names = prompts[0].given
    return Prompts(**{name: torch.cat([p.given[name] for p in prompts], dim=1) for name in names})


def _tensor(value: np.ndarray) -> Tensor:
    is_integer = value.dtype.kind == "i"
    return torch.from_numpy(value if is_integer else value.astype(np.float32))[None, None]


def _class(k: int, given: Any, named: Sequence[str]) -> int:
    if not named:
        raise ValueError(
            f"classes[{k}] is {given!r}, but this model knows no structure by its name; give "
            "points or a box"
        )
    if given in named:
        return list(named).index(given)
    is_index = isinstance(given, int | np.integer) and not isinstance(given, bool)
    if not is_index or not 0 <= given < len(named):
        raise ValueError(
            f"classes[{k}] is {given!r}: expected one of {', '.join(named)}, or its position, 0 to "
            f"{len(named) - 1}"
        )
    return int(given)


def _mask_prompt(k: int, mask: Any, fit: Fit, low_res: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    array = np.asarray(mask)
    if array.dtype != bool:
        # With `Detail`, a prediction's are of the input's size.
        side = fit.side, fit.side
        expected = f"{fit.size}, bool, or {low_res}, low_res_logits of a prediction, or {side}"
        size = side if array.shape == side else low_res
        return logits_as_mask_prompt(_numbers(f"masks[{k}]", array, expected, *size), low_res)
    if array.shape != fit.size:
        raise ValueError(
            f"masks[{k}] has the shape {array.shape}: expected {fit.size}, as the image"
        )
    return mask_in_input(fit, array, low_res)


def _length(name: str, entries: Any) -> int:
    try:
        return len(entries)
    except TypeError:
        raise ValueError(f"{name} is {entries!r}: expected an entry for each structure") from None


def _numbers(name: str, value: Any, expected: str, *shape: int | None) -> Float[np.ndarray, "..."]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}: expected numbers, {expected}") from None
    fits = array.ndim == len(shape) and all(
        n in (side, None) for n, side in zip(shape, array.shape, strict=True)
    )
    if not fits or array.size == 0:
        raise ValueError(
            f"{name} has the shape {array.shape}: expected {expected}, for each structure"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are NaN or infinite: expected finite ones")
    return array
