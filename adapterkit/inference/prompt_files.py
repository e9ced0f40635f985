"""Prompts as they are written on command lines and in files: CSV and JSON."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterkit.system.pages import see


@dataclass(frozen=True)
class StructurePrompt:
    """What shows one structure, in pixels of the image, as `Predictor.predict` takes it.

    Attributes:
        points: (x, y) of each.
        labels: of each point, 1 inside of the structure, 0 outside.
        box: (x0, y0, x1, y1), or None.
    """

    points: tuple[tuple[float, ...], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, ...] | None = None


ImagePrompts = Mapping[int, StructurePrompt]
"""The prompts of an image's structures, by their labels in the mask, which count from 1."""


def predict_arguments(prompts: ImagePrompts, by_name: int = 0) -> dict[str, Any]:
    """The arguments of `Predictor.predict` for the structures, in the order of their labels.

    Args:
        prompts: of the structures.
        by_name: how many of them, the first ones, the model knows by their names too.
    """
    ordered = [prompts[label] for label in sorted(prompts)]
    return {
        "points": [each.points or None for each in ordered],
        "labels": [each.labels or None for each in ordered],
        "boxes": [each.box for each in ordered],
        "classes": [k - 1 if k <= by_name else None for k in sorted(prompts)] if by_name else None,
    }


def parse_prompts(points: Sequence[Sequence[str]], boxes: Sequence[str]) -> dict[int, Any]:
    """The prompts of structures 1, 2, ... from a command line's text.

    Args:
        points: of each structure, "x,y" or "x,y,label" for each point.
        boxes: of each structure, "x0,y0,x1,y1".

    Raises:
        ValueError: a text is not of that form.
    """
    parsed = [[_numbers(text, (2, 3), "x,y or x,y,label") for text in each] for each in points]
    corners = [_numbers(text, (4,), "x0,y0,x1,y1") for text in boxes]
    return {
        k + 1: StructurePrompt(
            points=tuple(point[:2] for point in parsed[k]) if k < len(parsed) else (),
            labels=tuple(_label(point) for point in parsed[k]) if k < len(parsed) else (),
            box=corners[k] if k < len(corners) else None,
        )
        for k in range(max(len(parsed), len(corners)))
    }


def read_prompts(path: str | Path, structures: Sequence[str] = ()) -> dict[str, dict[int, Any]]:
    """The prompts of images, by their names in the file.

    A CSV file has the columns `image` and `structure`, and in each row a point, in `x`, `y` and, if
    there is such a column, `label`, or a box, in `x0`, `y0`, `x1`, `y1`. Rows of the same image and
    structure belong together. A JSON file says the same as

        {"a/b.png": {"1": {"points": [[120, 80], [60, 40]], "labels": [1, 0]},
                     "2": {"box": [10, 20, 90, 80]}}}

    Args:
        path: `.csv` or `.json`.
        structures: names that may stand for the numbers 1, 2, ... of the structures.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form; the message names the place.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of prompts at {path}")
    readers = {".csv": _read_csv, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{path}: expected a file of prompts that ends in .csv or .json; "
            + see("segmenting.md", "prompts")
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    found = readers[path.suffix.lower()](path, text, structures)
    if not found:
        raise ValueError(f"{path} holds no prompt")
    return found


def _read_csv(path: Path, text: str, structures: Sequence[str]) -> dict[str, dict[int, Any]]:
    rows = csv.DictReader(text.splitlines())
    columns = set(rows.fieldnames or ())
    if not {"image", "structure"} <= columns or not ({"x", "y"} <= columns or "x0" in columns):
        raise ValueError(
            f"{path} has the columns {', '.join(rows.fieldnames or ()) or '(none)'}: expected "
            "image, structure, and x, y, label for points or x0, y0, x1, y1 for boxes; "
            + see("segmenting.md", "prompts")
        )
    found: dict[str, dict[int, Any]] = {}
    for row in rows:
        place = f"{path}, line {rows.line_num}"
        given = {key: value.strip() for key, value in row.items() if key and value}
        of_image = found.setdefault(_name(given.get("image", ""), place), {})
        label = _structure(given.get("structure", ""), structures, place)
        before = of_image.get(label, StructurePrompt())
        point = [given[key] for key in ("x", "y", "label") if given.get(key)]
        corners = [given[key] for key in ("x0", "y0", "x1", "y1") if given.get(key)]
        if bool(point) == bool(corners) or (point and not ("x" in given and "y" in given)):
            raise ValueError(f"{place}: expected a point, x and y, or a box, x0, y0, x1 and y1")
        if corners:
            if before.box is not None:
                raise ValueError(f"{place}: a second box for the structure; expected one")
            box = _numbers(",".join(corners), (4,), "x0, y0, x1, y1", place)
            of_image[label] = StructurePrompt(before.points, before.labels, box)
        else:
            numbers = _numbers(",".join(point), (2, 3), "x, y and label", place)
            of_image[label] = StructurePrompt(
                (*before.points, numbers[:2]), (*before.labels, _label(numbers, place)), before.box
            )
    return found


def _read_json(path: Path, text: str, structures: Sequence[str]) -> dict[str, dict[int, Any]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    found: dict[str, dict[int, Any]] = {}
    for image, of_image in _object(content, str(path), "images by name").items():
        place = f"{path}, {image}"
        for key, value in _object(of_image, place, "structures by number or name").items():
            here = f"{place}, {key}"
            given = _object(value, here, "points and labels, or a box")
            if not given or not given.keys() <= {"points", "labels", "box"}:
                raise ValueError(f"{here} has {', '.join(given) or 'nothing'}: expected points "
                                 "and labels, or a box")  # fmt: skip
            points = _rows(given.get("points", []), 2, here)
            labels = given.get("labels", [1] * len(points))
            if not isinstance(labels, list) or len(labels) != len(points):
                raise ValueError(f"{here}: expected a label, 1 or 0, for each of its points")
            box = _rows([given["box"]], 4, here)[0] if "box" in given else None
            if not points and box is None:
                raise ValueError(f"{here} has no point: expected points and labels, or a box")
            found.setdefault(_name(image, place), {})[_structure(key, structures, here)] = (
                StructurePrompt(points, tuple(_label((0, 0, label), here) for label in labels), box)
            )
    return found


def _object(value: Any, place: str, expected: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is a {type(value).__name__}: expected an object, {expected}")
    return value


def _rows(rows: Any, length: int, place: str) -> tuple[tuple[float, ...], ...]:
    fits = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == length and all(map(_is_number, row)) for row in rows
    )
    if not fits:
        expected = "x0, y0, x1, y1" if length == 4 else "x, y"
        raise ValueError(f"{place} has {json.dumps(rows)[:80]}: expected numbers, {expected}")
    return tuple(tuple(map(float, row)) for row in rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _name(image: str, place: str) -> str:
    if not image:
        raise ValueError(f"{place} names no image")
    return Path(image).as_posix()


def _structure(text: str, structures: Sequence[str], place: str) -> int:
    if text in structures:
        return structures.index(text) + 1
    if text.isdecimal() and 1 <= int(text) <= 255:
        return int(text)
    known = f" or one of {', '.join(structures)}" if structures else ""
    raise ValueError(f"{place}: the structure is {text!r}; expected a number from 1 to 255{known}")


def _label(point: Sequence[Any], place: str = "a point") -> int:
    label = point[2] if len(point) > 2 else 1
    if label not in (0, 1):
        raise ValueError(
            f"{place} has the label {label:g}: expected 1 inside of the structure, 0 outside"
            if _is_number(label)
            else f"{place} has the label {label!r}: expected 1 or 0"
        )
    return int(label)


def _numbers(text: str, counts: Sequence[int], expected: str, place: str = "") -> tuple[float, ...]:
    try:
        numbers = tuple(float(each) for each in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{place or 'a prompt'} has {text!r}: expected numbers, {expected}")
    return numbers
