"""The US30K layout of the published SAMUS.

Each listed pair of class and image is one record of one structure:

    MainPatient/class.json        {"Breast-BUSI": 2, ...}: the classes of a data set, background too
    MainPatient/train.txt         lines "1/Breast-BUSI/benign0001": class, data set, image
    MainPatient/test.txt          or "Breast-BUSI/benign0001", which stands for all its classes
    Breast-BUSI/img/benign0001.png
    Breast-BUSI/label/benign0001.png

Source: X. Lin et al., "SAMUS", arXiv 2309.06824, 2023, and its code.
"""

import json
from pathlib import Path

from adapterkit.data.collections.collection import (
    Collection,
    check_one_name_each,
    collection_format,
)
from adapterkit.data.collections.folders import Pair
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split


def find_us30k(root: Path, split: str) -> list[Pair]:
    """The pairs of class and image that `root/MainPatient/<split>.txt` lists, in its order.

    A record has one structure, "foreground", the name "class/data set/image", and "dataset" and
    "class" as attributes. Where a data set has two classes, its masks are binary.

    Args:
        root: the folder that holds MainPatient and the data sets.
        split: "train", "val", "test", or another list such as "train-Breast-BUSI".

    Raises:
        DataError: a file is missing or cannot be read, or a line is not as above, names a data set
            or a class that class.json does not have, or an image or label that is not there.
    """
    root = Path(root)
    classes = _read_classes(root / "MainPatient" / "class.json")
    listing = root / "MainPatient" / f"{split}.txt"
    pairs = []
    for number, line in enumerate(_read_text(listing).splitlines(), start=1):
        if not line.strip():
            continue
        where = f'{listing}, line {number} ("{line.strip()}")'
        words = line.strip().split("/")
        if len(words) not in (2, 3) or (len(words) == 3 and not words[0].isdecimal()):
            raise DataError(f'{where}: expected "class/data set/image" or "data set/image".')
        dataset, image = words[-2:]
        if dataset not in classes:
            raise DataError(f"{where}: class.json has no {dataset}, but {', '.join(classes)}.")
        labels = tuple(range(1, classes[dataset]))
        chosen = labels if len(words) == 2 else (int(words[0]),)
        if chosen[0] not in labels:
            raise DataError(
                f"{where}: {dataset} has the classes {', '.join(map(str, labels))}, by class.json."
            )
        files = [root / dataset / kind / f"{image}.png" for kind in ("img", "label")]
        for file in files:
            if not file.is_file():
                raise DataError(f"{where}: there is no {file}.")
        pairs += [
            Pair(
                name=f"{label}/{dataset}/{image}",
                image=files[0],
                masks=(files[1],),
                structures={label: "foreground"},
                labels=None if len(labels) == 1 else {each: each for each in labels},
                attributes={"dataset": dataset, "class": str(label)},
            )
            for label in chosen
        ]
    if not pairs:
        raise DataError(f'{listing} is empty: expected lines "class/data set/image".')
    return pairs


def _read_classes(path: Path) -> dict[str, int]:
    try:
        classes = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
    if not isinstance(classes, dict) or not all(
        isinstance(count, int) and 2 <= count <= 256 for count in classes.values()
    ):
        raise DataError(
            f'{path} holds {classes}: expected numbers of classes from 2 to 256, as {{"BUSI": 2}}.'
        )
    return classes


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): expected MainPatient with class.json and lists of "
            "images in the folder of a data set in the US30K layout."
        ) from error


@collection_format("us30k", recognises=lambda path: (path / "MainPatient" / "class.json").is_file())
def open_us30k(path: Path) -> Collection:
    """The data sets that MainPatient lists, with their own split; each image is its own group.

    Raises:
        DataError: as `find_us30k`.
    """
    parts = {part: find_us30k(path, part) for part in ("train", "val", "test")}
    pairs = [pair for found in parts.values() for pair in found]
    check_one_name_each([pair.name for pair in pairs], path / "MainPatient")
    groups = {part: sorted({_image(pair) for pair in found}) for part, found in parts.items()}
    return Collection(
        name=path.resolve().name,
        format="us30k",
        records=tuple(pairs),
        groups=tuple(_image(pair) for pair in pairs),
        split=Split(*(tuple(names) for names in groups.values())),
        reported=("dataset",),
    )


def _image(pair: Pair) -> str:
    """Without the class: masks of one image stay together."""
    return pair.name.partition("/")[2]
