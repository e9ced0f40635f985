"""The images of a folder that are annotated one after another, and the masks beside them.

    FOLDER/structures.json         what labels stand for
    FOLDER/images/NAME.png         the images; or in FOLDER itself
    FOLDER/masks/NAME.png, .nii.gz the masks that were accepted
    FOLDER/masks/NAME.json         who accepted it, when, with which adapter and clicks
    FOLDER/.adapterkit/            drafts, masks found in the background, trainings, adapters

`adapterkit train FOLDER` takes such a folder as it is (`data.collections.annotated`).
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from adapterkit.data.collections.annotated import (
    MASKS,
    STRUCTURES,
    AnnotatedImage,
    Structure,
    find_annotated,
)
from adapterkit.data.files.images import is_picture, read_image, stem
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.files.masks import write_masks
from adapterkit.data.image_file import DataError, ImageFile
from adapterkit.system.files import atomic_write, remove_half_written
from adapterkit.web.structures import Structures

OWN = ".adapterkit"
"""The folder of what is no image and no mask."""

_KEPT = 4
"""Images whose pixels are kept."""


@dataclass(frozen=True)
class Acceptance:
    """What is written beside an accepted mask.

    Attributes:
        annotator: who accepted it.
        time: when, as ISO 8601 in UTC.
        adapter: in use then; None for the base alone.
        adapter_digest: of its file.
        clicks: in all frames.
        prompts: by frame and structure.
    """

    annotator: str
    time: str
    adapter: str | None
    adapter_digest: str
    clicks: int
    prompts: Mapping[str, Any]


class WorkList:
    """The images and masks of a folder.

    Args:
        folder: exists; its folder .adapterkit is made.
        empty: whether it may hold no image yet.

    Raises:
        DataError: it holds no image, two share a name, or a mask has no image.

    Attributes:
        folder: as given.
        structures: what the labels stand for.
        images: by name, in order.
    """

    def __init__(self, folder: Path, empty: bool = False) -> None:
        self.folder = folder
        for each in (self.own, self.own / "drafts"):
            each.mkdir(parents=True, exist_ok=True)
        (folder / MASKS).mkdir(exist_ok=True)
        for each in (folder, folder / MASKS, self.own):
            remove_half_written(each)
        for each in [*(self.own / "drafts").rglob(".*.part-*")]:
            remove_half_written(each.parent)
        self.structures = Structures(folder / STRUCTURES)
        self.images: dict[str, AnnotatedImage] = {}
        self._read: OrderedDict[str, ImageFile] = OrderedDict()
        self._frames: dict[str, int] = {}
        self._reading = threading.Lock()
        if not empty:
            self.images = {each.name: each for each in find_annotated(folder)}
            if not (folder / STRUCTURES).is_file():
                self._name_labels()

    @property
    def own(self) -> Path:
        """The folder of drafts and the like."""
        return self.folder / OWN

    def draft_file(self, name: str) -> Path:
        """Of an image's draft."""
        return self.own / "drafts" / f"{name}.json"

    def stamp(self, name: str) -> str:
        """Another one where the file of an image has been replaced."""
        state = self.images[name].image.stat()
        return f"{state.st_mtime_ns:x}-{state.st_size:x}"

    def read(self, name: str) -> ImageFile:
        """An image with all its frames.

        Raises:
            DataError: it cannot be read.
        """
        with self._reading:
            if name not in self._read:
                image = read_image(self.images[name].image)
                # The pixels of a NIfTI file can otherwise stay on disk.
                self._read[name] = replace(image, frames=np.array(image.frames))
                self._frames[name] = len(image.frames)
                while len(self._read) > _KEPT:
                    self._read.popitem(last=False)
            self._read.move_to_end(name)
            return self._read[name]

    def count_frames(self, name: str) -> int | None:
        """Of an image that has been read; None of another."""
        return self._frames.get(name)

    def frames_of(self, name: str) -> int:
        """How many frames an image has; read if it has not been. 1 where it cannot be read."""
        try:
            return self._frames.get(name) or len(self.read(name).frames)
        except (ValueError, OSError):
            return 1

    def add(self, path: Path) -> str:
        """Take a file of the folder images into the list, and give its name."""
        plain = name = stem(path.name)
        number = 1
        while name in self.images:
            number += 1
            name = f"{plain} ({number})"
        self.images[name] = AnnotatedImage(name, path, None)
        return name

    def remove(self, name: str) -> None:
        """Delete an image with its mask and draft."""
        removed = self.images.pop(name)
        self._read.pop(name, None)
        for file in (removed.image, removed.mask, self.draft_file(name), self._beside(name)):
            if file is not None:
                file.unlink(missing_ok=True)

    # Masks

    def read_mask(self, name: str) -> UInt8[np.ndarray, "T H W"]:
        """The label maps of an image's frames.

        Raises:
            DataError: the file cannot be read, or is not of the image's size.
        """
        path, image = self.images[name].mask, self.read(name)
        assert path is not None
        labels = read_label_map(path).frames
        if labels.shape != image.frames.shape[:3]:
            raise DataError(
                f"{path} has the shape {labels.shape}: expected {image.frames.shape[:3]} (frames, "
                "rows, columns), as its image."
            )
        if labels.max(initial=0) > 255:
            raise DataError(f"{path} has labels above 255: expected 0 to 255.")
        return labels.astype(np.uint8)

    def accept(self, name: str, labels: UInt8[np.ndarray, "T H W"], acceptance: Acceptance) -> Path:
        """Write an image's mask, and beside it who accepted it.

        Raises:
            OSError: one cannot be written; what was there before is as it was.
        """
        each, image = self.images[name], self.read(name)
        single = len(image.frames) == 1 and is_picture(each.image)
        path = self.folder / MASKS / f"{name}{'.png' if single else '.nii.gz'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        top = int(labels.max(initial=0))
        write_masks(path, labels, image, [f"label {label}" for label in range(1, top + 1)])
        known = self.structures.names
        counts = np.bincount(labels.ravel(), minlength=256)
        said = {
            "image": each.image.relative_to(self.folder).as_posix(),
            "mask": path.relative_to(self.folder).as_posix(),
            **vars(acceptance),
            "structures": {str(label): known[label] for label in known},
            "pixels": {str(label): int(counts[label]) for label in known},
        }
        with atomic_write(self._beside(name)) as temporary:
            temporary.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        if each.mask is not None and each.mask != path:
            kept = self.own / "replaced" / each.mask.relative_to(self.folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            each.mask.rename(kept)
        self.images[name] = replace(each, mask=path)
        return path

    def _beside(self, name: str) -> Path:
        return self.folder / MASKS / f"{name}.json"

    def _name_labels(self) -> None:
        """Take the labels of the masks that are there for structures, to be renamed."""
        labels: set[int] = set()
        for name, each in self.images.items():
            if each.mask is not None:
                labels |= {int(label) for label in np.unique(self.read_mask(name))}
        only = len(labels - {0}) == 1
        found = [Structure(k, "foreground" if only else f"label {k}") for k in sorted(labels - {0})]
        if found:
            self.structures.add_all(found)
