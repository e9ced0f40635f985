"""Instances in COCO's JSON, as CVAT, Label Studio and others export them.

    data.json, or data/annotations/instances.json, with the images beside it or in data/images:
    {"images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
     "categories": [{"id": 1, "name": "nodule"}],
     "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[x, y, x, y, x, y]]}]}

A segmentation is polygons in pixels, or run lengths, compressed or not; crowds are regions like
others. An image's label map has all regions of a category as one structure, the smaller ones on
top. An image without annotations shows background alone.

Source: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and pycocotools.
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from adapterkit.data.collections.collection import (
    Collection,
    check_one_name_each,
    collection_format,
    group_of,
)
from adapterkit.data.dataset import LabelledImage
from adapterkit.data.files.pictures import read_picture
from adapterkit.data.image_file import DataError
from adapterkit.system.extras import require


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its regions: a record."""

    name: str
    image: Path
    source: Path
    """The JSON file."""
    size: tuple[int, int]
    """As the JSON file states it, (H, W)."""
    regions: tuple[tuple[int, Any], ...]
    """Label and segmentation of each annotation, as the JSON file has it."""
    structures: Mapping[int, str]
    attributes: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> LabelledImage:
        """The image, and the label map of its regions; the spacing is not known.

        Raises `DataError` where the image cannot be read or has another size than the JSON file
        states, or a region is none.
        """
        image = read_picture(self.image)
        if image.shape[:2] != self.size:
            raise DataError(
                f"{self.image} is {image.shape[0]} x {image.shape[1]} (rows x columns), but "
                f"{self.source} states {self.size[0]} x {self.size[1]}: expected the same size."
            )
        masks = [(label, self._decode(region)) for label, region in self.regions]
        labels = np.zeros(self.size, np.uint8)
        for label, mask in sorted(masks, key=lambda each: -int(each[1].sum())):
            labels[mask > 0] = label
        return LabelledImage(image, labels, spacing=None)

    def _decode(self, region: Any) -> np.ndarray:
        # Its types know neither polygons nor lists of regions.
        coco_mask: Any = import_module("pycocotools.mask")
        try:
            # Compressed run lengths are what pycocotools decodes; it makes them of the others.
            compressed = isinstance(region, dict) and isinstance(region["counts"], str)
            encoded = region if compressed else coco_mask.frPyObjects(region, *self.size)
            if isinstance(encoded, list):
                encoded = coco_mask.merge(encoded)
            with warnings.catch_warnings():
                # NumPy 2 warns of how pycocotools 2.0.11 hands its pixels over.
                warnings.filterwarnings("ignore", "__array__ impl", DeprecationWarning)
                mask = coco_mask.decode(encoded)
        except Exception as error:
            raise DataError(
                f"{self.source} has a region of {self.image.name} that is none "
                f"({type(error).__name__}: {error}): expected polygons or run lengths."
            ) from error
        if mask.shape != self.size:
            raise DataError(
                f"{self.source} has a region of {mask.shape[0]} x {mask.shape[1]} for "
                f"{self.image.name}, which is {self.size[0]} x {self.size[1]}."
            )
        return mask


def _annotations(path: Path) -> Path | None:
    """The JSON file of a data set; None where it is not clear which."""
    if path.is_file():
        return path if path.suffix == ".json" else None
    for folder in (path, path / "annotations"):
        found = sorted(folder.glob("*.json"))
        if len(found) == 1 and found[0].name != "dataset.json":
            return found[0]
    return None


def _recognises(path: Path) -> bool:
    # Beside masks, a JSON file is something else: a split, say.
    return not (path / "masks").is_dir() and _annotations(path) is not None


@collection_format("coco", recognises=_recognises)
def open_coco(path: Path, images: Path | None = None, group: str | None = None) -> Collection:
    """The images that a COCO file lists. Labels are 1, 2, ... in the order of categories' ids.

    Args:
        path: the JSON file, or the folder that holds it.
        images: where the images are; None: beside the file, or in a folder images.
        group: a regular expression, as of plain folders.

    Raises:
        DataError: the file is not as above, lists an image or a category that is not there, or has
            a region without segmentation or outside its image.
    """
    require("train", "pycocotools")
    source = _annotations(path)
    if source is None:
        raise DataError(f"{path} holds no JSON file, or several: expected one of COCO instances.")
    found = _read(source)
    try:
        labels, structures = _categories(found, source)
        regions = _regions(found, labels, source)
        records = [_record(each, source, images, regions, structures) for each in found["images"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{source} is not as COCO has it ({type(error).__name__}: {error}): expected images, "
            "categories and annotations with their ids."
        ) from error
    listed = {each["id"] for each in found["images"]}
    lost = [each for each in regions if each not in listed]
    if lost:
        raise DataError(f"{source} annotates the image {lost[0]}, which it does not list.")
    check_one_name_each([record.name for record in records], source)
    return Collection(
        name=(path if path.is_dir() else path.with_suffix("")).resolve().name,
        format="coco",
        records=tuple(records),
        groups=tuple(group_of(record.name, group) for record in records),
    )


def _read(source: Path) -> dict[str, Any]:
    try:
        found = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{source} cannot be read as JSON ({error}).") from error
    missing = [key for key in ("images", "categories", "annotations")
               if not isinstance(found, dict) or not isinstance(found.get(key), list)]  # fmt: skip
    if missing:
        raise DataError(f"{source} has no list of {missing[0]}: expected COCO instances.")
    for key in ("images", "annotations"):
        if not found[key]:
            raise DataError(f"{source} lists no {key}: expected some.")
    return found


def _categories(found: Mapping[str, Any], source: Path) -> tuple[dict[int, int], dict[int, str]]:
    ids = sorted(each["id"] for each in found["categories"])
    if len(set(ids)) < len(ids) or not 1 <= len(ids) <= 255:
        raise DataError(
            f"{source} has {len(set(ids))} different categories in {len(ids)}: expected 1 to 255, "
            "each once."
        )
    labels = {each: label for label, each in enumerate(ids, start=1)}
    names = {each["id"]: str(each["name"]) for each in found["categories"]}
    return labels, {labels[each]: names[each] for each in ids}


def _regions(
    found: Mapping[str, Any], labels: Mapping[int, int], source: Path
) -> dict[int, list[tuple[int, Any]]]:
    sizes = {each["id"]: (each["height"], each["width"]) for each in found["images"]}
    regions: dict[int, list[tuple[int, Any]]] = defaultdict(list)
    for number, each in enumerate(found["annotations"], start=1):
        where = f"{source}, annotation {each.get('id', number)}"
        if each["category_id"] not in labels:
            raise DataError(f"{where}: there is no category {each['category_id']}.")
        region = each.get("segmentation")
        if not region:
            raise DataError(f"{where} has no segmentation: expected polygons or run lengths.")
        if isinstance(region, list) and each["image_id"] in sizes:
            _check_polygons(region, sizes[each["image_id"]], where)
        regions[each["image_id"]].append((labels[each["category_id"]], region))
    return regions


def _check_polygons(polygons: list[list[float]], size: tuple[int, int], where: str) -> None:
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"{where} has a polygon of {len(polygon)} numbers: expected x, y of at "
                            "least three points.")  # fmt: skip
        points = np.asarray(polygon, dtype=float).reshape(-1, 2)
        # Tools round to the pixel, so that a border may be one outside.
        if not ((points >= -1) & (points <= np.array(size[::-1]) + 1)).all():
            raise DataError(
                f"{where} has a polygon outside of its image of {size[0]} x {size[1]} (rows x "
                "columns): expected x, y in pixels."
            )


def _record(
    image: Mapping[str, Any],
    source: Path,
    images: Path | None,
    regions: Mapping[int, list[tuple[int, Any]]],
    structures: Mapping[int, str],
) -> AnnotatedImage:
    name = str(image["file_name"])
    beside = [source.parent, source.parent / "images", source.parent.parent / "images"]
    folders = [images] if images is not None else beside
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        raise DataError(f"{source} lists {name}, which is not in {folders[-1]}: give --images.")
    return AnnotatedImage(
        Path(name).with_suffix("").as_posix(),
        file,
        source,
        (int(image["height"]), int(image["width"])),
        tuple(regions.get(image["id"], ())),
        structures,
    )
