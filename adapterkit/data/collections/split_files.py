"""Splits that a file states: which image, or which group, is for what.

As CSV, with a column split beside one of the columns name, image, group or patient:

    group,split
    patient1,train
    patient2,test

or as JSON, {"train": ["patient1"], "validation": [...], "test": [...]} or {"patient1": "train"}.
"""

import csv
import json
from pathlib import Path
from typing import Any

from adapterkit.data.collections.collection import Collection
from adapterkit.data.files.images import stem
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split, stated_split

_KEYS = ("name", "image", "group", "patient")


def read_split(path: Path, collection: Collection) -> Split:
    """The split of a collection's groups that a file states.

    Args:
        path: a CSV or JSON file as above, with groups, or with images by their names in the
            collection, with or without an ending. Each group has to be there, by itself or by
            its images.
        collection: what is split.

    Raises:
        DataError: the file cannot be read, names what is not in the collection or for what
            nothing can be, puts a group on two sides, leaves one out, or has none for a part.
    """
    pairs = _read_json(path) if path.suffix.lower() == ".json" else _read_csv(path)
    of_images = {r.name: g for r, g in zip(collection.records, collection.groups, strict=True)}
    groups = {**of_images, **{group: group for group in collection.groups}}
    line = "entry" if path.suffix.lower() == ".json" else "row"
    for number, (name, _) in enumerate(pairs, start=1):
        if name not in groups and stem(name) not in groups:
            raise DataError(
                f"{path}, {line} {number}: {name!r} is no image and no group of "
                f"{collection.name}: expected one, {collection.groups[0]!r} say."
            )
    assigned = [(groups.get(name) or groups[stem(name)], part) for name, part in pairs]
    split = stated_split(assigned, path, line)
    missing = sorted({*collection.groups} - {group for group, _ in assigned})
    if missing:
        raise DataError(
            f"{path} does not say what {missing[0]} is for ({len(missing)} such groups): expected "
            "each in train, validation or test."
        )
    return split


def _read_csv(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--split {path} cannot be read as CSV ({error}).") from error
    heads = list(rows[0]) if rows else []
    key = next((each for each in _KEYS if each in heads), None)
    if key is None or "split" not in heads:
        raise DataError(
            f"--split {path} has the columns {', '.join(map(str, heads)) or 'none'}: expected "
            f"split, and one of {', '.join(_KEYS)}."
        )
    return [(row[key] or "", row["split"] or "") for row in rows]


def _read_json(path: Path) -> list[tuple[str, str]]:
    try:
        stated: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"--split {path} cannot be read as JSON ({error}).") from error
    if isinstance(stated, dict) and all(isinstance(each, str) for each in stated.values()):
        return [(str(name), part) for name, part in stated.items()]
    if isinstance(stated, dict) and all(isinstance(each, list) for each in stated.values()):
        return [(str(name), part) for part, names in stated.items() for name in names]
    raise DataError(
        f'--split {path} is not as expected: {{"train": ["a"], "validation": ["b"], "test": ["c"]}}'
        ' or {"a": "train", ...}.'
    )
