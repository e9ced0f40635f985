"""The systems that are compared: how each is built, prompted and tested.

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
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.attach.attachment import Part
from adapterkit.methods import find_method
from adapterkit.parts import CNNBranch, Detail, FeatureAdapter, PositionAdapter
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from adapterkit.promptable.strategies import PromptStrategy, TrainingStrategy
from adapterkit.system.files import save_tensors
from adapterkit.training.subjects import Adapted, Subject, trained_numbers
from benchmarks import models
from benchmarks.models.unprompted import Unprompted, resize


class AnySize(ak.Segmenter):
    """A `Segmenter` of square images of any size; points and boxes are in their pixels."""

    def _encode(self, images: Float[Tensor, "b 3 S S"]) -> Embedding:
        embedding = super()._encode(resize(images, self.image_size))
        return replace(embedding, image_size=images.shape[-1])

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        return super()._decode(embedding, prompts.scaled(self.image_size / embedding.image_size))


@dataclass(frozen=True)
class Base:
    """The Sam that is adapted.

    Attributes:
        checkpoint: None for the small one that comes with adapterkit.
        size: side of its input, in pixels.
    """

    checkpoint: Path | None
    size: int

    @property
    def name(self) -> str:
        """In tables."""
        return "adapterkit's small SAM" if self.checkpoint is None else self.checkpoint.name

    @property
    def is_small(self) -> bool:
        return self.checkpoint is None

    def load(self) -> Sam:
        return ak.mini_sam() if self.checkpoint is None else ak.load_sam(self.checkpoint)


@dataclass(frozen=True)
class Prompted:
    """A Sam with a method, asked for one structure at a time.

    Attributes:
        method: its name in adapterkit; None: the base as it comes, not trained.
        variant: what its title says beside the method's.
        without: parts of these kinds are left out.
        trained_with: how its prompts are chosen in training.
        tested_with: and in the tests, of which each is a system of its own in the tables; the first
            is drawn in the figures.
        halved: its input is half the base's where the base is small, so that a CPU can train it;
            else that of the method.
    """

    method: str | None
    variant: str = ""
    without: tuple[type, ...] = ()
    trained_with: TrainingStrategy = "1"
    tested_with: tuple[PromptStrategy, ...] = ("1",)
    halved: bool = False

    @property
    def title(self) -> str:
        """In tables and figures."""
        return ("SAM" if self.method is None else find_method(self.method).title) + self.variant

    def parts(self, base: Base, structures: Sequence[str]) -> list[Part]:
        """What is attached, at the share of the base's input that the method is published at."""
        if self.method is None:
            return []
        method = find_method(self.method)
        options: dict[str, Any] = {}
        if method.image_size is not None:
            options["image_size"] = base.size * method.image_size // 1024
        elif self.halved and base.is_small:
            options["image_size"] = base.size // 2
        if "structures" in method.options:
            options["structures"] = structures
        return [part for part in method.parts(**options) if not isinstance(part, self.without)]

    def subject(self, base: Base, structures: Sequence[str]) -> Subject:
        """What an experiment trains."""
        parts = self.parts(base, structures)
        return Adapted(base.load(), base.name, self.title, parts, AnySize)


@dataclass(frozen=True)
class Network:
    """A network that segments all structures at once, without a prompt, trained as a whole.

    Small and from scratch beside the small base; otherwise at its published size, with its
    pretrained encoder.
    """

    title: str
    trained_with: PromptStrategy = field(default="class", init=False)
    tested_with: tuple[PromptStrategy, ...] = field(default=("class",), init=False)

    def subject(self, base: Base, structures: Sequence[str]) -> Subject:
        """What an experiment trains."""
        return FromScratch(self.title, base, 1 + len(structures))


@dataclass(frozen=True)
class FromScratch:
    """A network as what an experiment trains.

    Attributes:
        title: its key in `models.NETWORKS`.
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
        return "none" if self.beside.is_small else models.NETWORKS[self.title].encoder

    def build(self) -> Unprompted:
        """It, all of it to be trained."""
        architecture, input_size = models.NETWORKS[self.title], self.beside.size // 4
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


System = Prompted | Network


def _samus_with(prompts: PromptStrategy, variant: str) -> Prompted:
    return Prompted("samus", variant, trained_with=prompts, tested_with=(prompts,))


def _samus_plus_without(part: type, variant: str) -> Prompted:
    return Prompted(
        "samus_plus", variant, (part,), trained_with="mixed", tested_with=("class", "1")
    )


SYSTEMS: dict[str, System] = {
    "sam": Prompted(None),
    "samus": Prompted("samus"),
    "medsam": Prompted("medsam"),
    "samed": Prompted("samed"),
    "msa": Prompted("msa", halved=True),
    "unet": Network("U-Net"),
    "ce-net": Network("CE-Net"),
    "swin-unet": Network("Swin-Unet"),
    "transunet": Network("TransUNet"),
    "h2former": Network("H2Former"),
    "samus-plus": Prompted(
        "samus_plus",
        trained_with="mixed",
        tested_with=("class", "1", "3", "5", "box", "class+1"),
    ),
    "samus-plus-class": Prompted(
        "samus_plus", ", trained by class alone", trained_with="class", tested_with=("class",)
    ),
    "samus-plus-no-detail": _samus_plus_without(Detail, ", no detail"),
    "samus-plus-no-adapters": _samus_plus_without(FeatureAdapter, ", no feature adapters"),
    "samus-branch": Prompted(
        "samus", ", CNN branch only", without=(PositionAdapter, FeatureAdapter)
    ),
    "samus-adapters": Prompted("samus", ", adapters only", without=(CNNBranch,)),
    "samus-2-random": _samus_with("2-random", ", 2 random points"),
    "samus-2-entropy": _samus_with("2-entropy", ", second point by entropy"),
    "samus-2-distance": _samus_with("2-max-distance", ", second point by max distance"),
}
"""The names are those of `--methods` and of the runs' folders."""
