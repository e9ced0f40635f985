"""The systems that are compared: how each is built, prompted and trained.

Every system sees the same square images and clicks, and resizes them to the input that it is made
for, so that augmentation, prompts and metrics are the same for all.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.attach.attachment import Part
from adapterkit.methods import find_method, parts_of
from adapterkit.parts import CNNBranch, FeatureAdapter, PositionAdapter
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks
from adapterkit.promptable.strategies import PromptStrategy
from adapterkit.system.files import save_tensors
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
    def is_small(self) -> bool:
        return self.checkpoint is None

    def load(self) -> Sam:
        return ak.mini_sam() if self.checkpoint is None else ak.load_sam(self.checkpoint)


@dataclass(frozen=True)
class Promptable:
    """A Sam with a method, asked for one structure at a time.

    Attributes:
        method: its name in adapterkit; None: the base as it comes, not trained.
        variant: what its title says beside the method's.
        without: parts of these kinds are left out.
        points: how its clicks are chosen, in training and in the test.
    """

    method: str | None
    variant: str = ""
    without: tuple[type, ...] = ()
    points: PromptStrategy = "1"

    @property
    def title(self) -> str:
        """In tables and figures."""
        return ("SAM" if self.method is None else find_method(self.method).title) + self.variant

    @property
    def is_trained(self) -> bool:
        return self.method is not None

    def parts(self, base: Base) -> list[Part]:
        """What is attached, at the share of the base's input that the study compares it at."""
        assert self.method is not None
        size = base.size // _SHARES_OF_INPUT.get(self.method, 2 if base.is_small else 1)
        options: dict[str, Any] = {} if size == base.size else {"image_size": size}
        found = parts_of(self.method, **options)
        return [part for part in found if not isinstance(part, self.without)]

    def build(self, base: Base, structures: int) -> AnySize:
        sam = ak.fast(base.load())
        if self.is_trained:
            ak.inject(sam, self.parts(base))
        return AnySize(sam)

    def save(self, model: AnySize, path: Path, notes: dict[str, Any]) -> None:
        ak.save_adapter(model.sam, path, training=notes)

    def load(self, model: AnySize, path: Path) -> None:
        ak.load_adapter(ak.eject(model.sam), path)


@dataclass(frozen=True)
class Network:
    """A network that segments all structures at once, without a prompt, trained as a whole.

    Small and from scratch beside the small base; otherwise at its published size, with its
    pretrained encoder.
    """

    title: str
    points: PromptStrategy = field(default="1", init=False)
    is_trained: bool = field(default=True, init=False)

    def build(self, base: Base, structures: int) -> Unprompted:
        system, input_size = models.NETWORKS[self.title], base.size // 4
        if base.is_small:
            network = system.small(1 + structures, input_size)
        else:
            network = system.published(1 + structures, input_size, pretrained=True)
        return Unprompted(network, input_size)

    def save(self, model: Unprompted, path: Path, notes: dict[str, Any]) -> None:
        save_tensors(path, model.network.state_dict(), {})

    def load(self, model: Unprompted, path: Path) -> None:
        model.network.load_state_dict(load_file(path))


System = Promptable | Network


_SHARES_OF_INPUT = {"samus": 4, "samus_plus": 4, "samed": 2, "medsam": 1}
"""Other methods take the base's whole input; half of it where a CPU has to train them."""

SYSTEMS: dict[str, System] = {
    "sam": Promptable(None),
    "samus": Promptable("samus"),
    "medsam": Promptable("medsam"),
    "samed": Promptable("samed"),
    "msa": Promptable("msa"),
    "unet": Network("U-Net"),
    "ce-net": Network("CE-Net"),
    "swin-unet": Network("Swin-Unet"),
    "transunet": Network("TransUNet"),
    "h2former": Network("H2Former"),
    "samus-plus": Promptable("samus_plus"),
    "samus-branch": Promptable(
        "samus", ", CNN branch only", without=(PositionAdapter, FeatureAdapter)
    ),
    "samus-adapters": Promptable("samus", ", adapters only", without=(CNNBranch,)),
    "samus-2-random": Promptable("samus", ", 2 random points", points="2-random"),
    "samus-2-entropy": Promptable("samus", ", second point by entropy", points="2-entropy"),
    "samus-2-distance": Promptable(
        "samus", ", second point by max distance", points="2-max-distance"
    ),
}
"""The names are those of `--methods` and of the runs' folders."""
