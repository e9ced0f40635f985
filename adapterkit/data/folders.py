"""Images with masks in plain folders, and in the US30K layout of the published SAMUS.

images/a.png   masks/a.png      any of PNG, JPEG and TIFF; matched by the name without ending

MainPatient/train.txt           lines "class/dataset/name"; val.txt alike, test.txt "dataset/name"
MainPatient/class.json          {"Breast-BUSI": 2, ...}: classes of each dataset, background too
Breast-BUSI/img/name.png        the image
Breast-BUSI/label/name.png      its label map
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapterkit.data.dataset import LabelledImage


@dataclass(frozen=True)
class Pair:
    """An image file and the file of its label map, a `Record` of `SegmentationDataset`."""

    name: str
    image: Path
    mask: Path
    structures: Mapping[int, str]
    attributes: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> LabelledImage:
        raise NotImplementedError


def find_pairs(root: Path, structures: Mapping[int, str] | None = None) -> list[Pair]:
    """The images in `root/images` with their masks in `root/masks`, sorted by name.

    `structures` are the labels in the masks and what they stand for; None for binary masks, in
    which all that is not 0 is the one structure "foreground".
    """
    raise NotImplementedError


def find_us30k(root: Path, split: str) -> list[Pair]:
    """The image/class pairs that `root/MainPatient/<split>.txt` lists, each of one structure."""
    raise NotImplementedError
