"""What an experiment trains of each system that is compared.

Every system sees the same square images and clicks, and resizes them to the input that it is made
for, so that augmentation, prompts and metrics are the same for all.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

import adapterkit as ak
from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods import find_method
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from adapterkit.system.files import save_tensors
from adapterkit.training.subjects import Adapted, Subject, trained_numbers
from benchmarks.compare.systems import Base, Prompted, System
from benchmarks.models.networks import NETWORKS
from benchmarks.models.unprompted import Unprompted, resize


def subject_of(system: System, base: Base, structures: Sequence[str]) -> Subject:
    """What an experiment trains."""
    if isinstance(system, Prompted):
        sam = base.load()
        parts = parts_of(system, base, structures, ak.view(sam))
        return Adapted(sam, base.name, system.title, parts, AnySize)
    return FromScratch(system.title, base, 1 + len(structures))


def parts_of(
    system: Prompted, base: Base, structures: Sequence[str], view: ViT | None = None
) -> list[Part]:
    """What is attached, at the share of the base's input that the method is published at.

    Args:
        system: with its method.
        base: what it is attached to.
        structures: their names.
        view: of the base; None for a `Sam`.
    """
    if system.method is None:
        return []
    method = find_method(system.method)
    options = dict(system.options)
    if method.image_size is not None:
        options["image_size"] = base.size * method.image_size // 1024
    elif system.halved and base.is_small:
        options["image_size"] = base.size // 2
    if "structures" in method.options:
        options["structures"] = structures
    parts = method.parts(view, **options)
    return system.change(parts)


class AnySize(ak.Segmenter):
    """A `Segmenter` of square images of any size; points and boxes are in their pixels."""

    def _encode(self, images: Float[Tensor, "b 3 S S"]) -> Embedding:
        embedding = super()._encode(resize(images, self.image_size))
        return replace(embedding, image_size=images.shape[-1])

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        return super()._decode(embedding, prompts.scaled(self.image_size / embedding.image_size))


@dataclass(frozen=True)
class FromScratch:
    """A network as what an experiment trains.

    Attributes:
        title: its key in `NETWORKS`.
        beside: the base that it is compared with.
        classes: background and structures.
    """

    title: str
    beside: Base
    classes: int
    file: str = field(default="network.safetensors", init=False)

    @property
    def base(self) -> str:
        """What it starts from."""
        return "none" if self.beside.is_small else NETWORKS[self.title].encoder

    def build(self) -> Unprompted:
        """It, all of it to be trained."""
        architecture, input_size = NETWORKS[self.title], self.beside.size // 4
        if self.beside.is_small:
            network = architecture.small(self.classes, input_size)
        else:
            network = architecture.published(self.classes, input_size, pretrained=True)
        return Unprompted(network, input_size)

    def save(
        self,
        model: Promptable,
        path: Path,
        structures: Sequence[str],
        notes: Mapping[str, Any],
    ) -> None:
        """Write its weights."""
        noted = {name: json.dumps(value) for name, value in notes.items()}
        save_tensors(path, model.model.state_dict(), noted)

    def load(self, model: Promptable, path: Path) -> None:
        """Read them."""
        model.model.load_state_dict(load_file(path))

    def untrained(self) -> AbstractContextManager[None]:
        """There is nothing of it before its training."""
        raise ValueError(f"{self.title} starts from no base that could be measured")

    def describe(self, model: Promptable) -> str:
        """Its size."""
        return f"{self.title}, {trained_numbers(model):,} trained parameters"
