"""A part, a method and a data format of one's own: a plugin, for `adapterkit --plugin`."""

# --8<-- [start:imports]
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.attach.attachment import Attachment, Part
from adapterkit.data.collections import Collection, collection_format
from adapterkit.data.dataset import LabelledImage
from adapterkit.data.image_file import DataError
from adapterkit.encoders.views import Blocks, ViT
from adapterkit.parts import ClassPrompts, Detail, Resize, Train

# --8<-- [end:imports]


# --8<-- [start:part]
class Affine(nn.Module):
    """x * scale + shift with a number of each for every channel, which start at 0."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


@ak.register_part
@dataclass(frozen=True)
class ScaleShift:
    """Makes x * (1 + scale) + shift of the tokens x at a site; starts as the identity.

    Source: SSF (Lian et al. 2022, arXiv 2210.08823).

    Args:
        at: the site.
        blocks: in which blocks, as `ViT.select` takes them.
    """

    at: Literal["attn_in", "attn_out", "block_out"] = "block_out"
    blocks: Blocks = "all"

    def __post_init__(self) -> None:
        if self.at not in ("attn_in", "attn_out", "block_out"):
            raise ValueError(f"ScaleShift(at={self.at!r}): expected attn_in, attn_out or block_out")

    def attach(self, to: Attachment) -> None:
        for block in to.select(self.blocks, lambda block: self.at in block.sites):
            affine = Affine(to.site(self.at, block).width)
            to.add(f"scale_shift.{self.at}.{block.index}", affine)
            to.add_residual(self.at, affine, block=block)


# --8<-- [end:part]


# --8<-- [start:method]
@ak.register_method("scale_shift", title="Scale and shift")
def scale_shift(
    view: ViT | None = None, image_size: int = 128, structures: Sequence[str] = ()
) -> list[Part]:
    """Scale and shift in the encoder; and, where there is a mask decoder, that of SAMUS+."""
    in_encoder: list[Part] = [Resize(image_size), ScaleShift("attn_in"), ScaleShift("block_out")]
    if view is not None and view.decoder is None:
        return in_encoder
    by_name = [ClassPrompts(tuple(structures))] if structures else []
    return [*in_encoder, *by_name, Detail(classes=len(structures)), Train("mask_decoder")]


# --8<-- [end:method]


# --8<-- [start:format]
@dataclass(frozen=True)
class Frame:
    """One frame of a patient's file: what `data.dataset.Record` asks for."""

    path: Path
    number: int
    structures: Mapping[int, str]
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.path.stem}_{self.number}"

    def read(self) -> LabelledImage:
        with np.load(self.path) as arrays:
            image, labels = (arrays[name][self.number] for name in ("images", "labels"))
        if image.shape != labels.shape:
            raise DataError(f"{self.path}: images of {image.shape}, and labels of {labels.shape}.")
        return LabelledImage(image, labels, spacing=None)


@collection_format("npz", recognises=lambda path: path.is_dir() and any(path.glob("*.npz")))
def open_npz(path: Path) -> Collection:
    """A folder with a NumPy file for each patient: images and labels, (T, H, W), and names."""
    records: list[Frame] = []
    for file in sorted(path.glob("*.npz")):
        with np.load(file) as arrays:
            structures = dict(enumerate(arrays["structures"].tolist(), start=1))
            count = len(arrays["images"])
        records += [Frame(file, number, structures) for number in range(count)]
    groups = tuple(record.path.stem for record in records)
    return Collection(path.name, "npz", tuple(records), groups)


# --8<-- [end:format]
