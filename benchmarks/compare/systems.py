"""The systems that are compared: what each is, and how it is prompted and tested."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import adapterkit as ak
from adapterkit.promptable.strategies import PromptStrategy, TrainingStrategy

if TYPE_CHECKING:
    from torch import nn

    from adapterkit.attach.attachment import Part

Change = Callable[[Sequence["Part"]], list["Part"]]


@dataclass(frozen=True)
class Base:
    """The Segment Anything model that is adapted.

    Attributes:
        checkpoint: as `ak.load` takes it; None for the small one that comes with adapterkit.
        size: side of its input, in pixels.
    """

    checkpoint: Path | None
    size: int

    @property
    def name(self) -> str:
        """In tables."""
        if self.checkpoint is None:
            return "adapterkit's small SAM"
        exists = self.checkpoint.exists()
        return self.checkpoint.name if exists else self.checkpoint.as_posix()

    @property
    def is_small(self) -> bool:
        return self.checkpoint is None

    def load(self) -> "nn.Module":
        return ak.mini_sam() if self.checkpoint is None else ak.load(self.checkpoint)


@dataclass(frozen=True)
class Prompted:
    """A Sam with a method, asked for one structure at a time.

    Attributes:
        method: its name in adapterkit; None: the base as it comes, not trained.
        variant: what its title says beside the method's.
        change: what a variant makes of the method's parts.
        options: of the method.
        settings: of its training, beside those of the schedule.
        trained_with: how its prompts are chosen in training.
        tested_with: and in the tests, of which each is a system of its own in the tables; the first
            is drawn in the figures.
        augmented: the training images are augmented even where the comparison's are not.
        halved: its input is half the base's where the base is small, so that a CPU can train it;
            else that of the method.
    """

    method: str | None
    variant: str = ""
    change: Change = list
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained_with: TrainingStrategy = "1"
    tested_with: tuple[PromptStrategy, ...] = ("1",)
    augmented: bool = False
    halved: bool = False

    @property
    def title(self) -> str:
        """In tables and figures."""
        from adapterkit.methods import find_method

        return ("SAM" if self.method is None else find_method(self.method).title) + self.variant


@dataclass(frozen=True)
class Network:
    """A network that segments all structures at once, without a prompt, trained as a whole.

    Small and from scratch beside the small base; otherwise at its published size, with its
    pretrained encoder.
    """

    title: str
    trained_with: PromptStrategy = field(default="class", init=False)
    tested_with: tuple[PromptStrategy, ...] = field(default=("class",), init=False)


System = Prompted | Network
ScheduleName = Literal["common", "published"]
"""See `schedules`."""
Precision = Literal["no", "fp16", "bf16"]
"""Of a training."""


def _samus_with(prompts: PromptStrategy, variant: str) -> Prompted:
    return Prompted("samus", variant, trained_with=prompts, tested_with=(prompts,))


def _samus_plus(variant: str, change: Change = list, **others: Any) -> Prompted:
    return Prompted(
        "samus_plus", variant, change, trained_with="mixed", tested_with=("class", "1"), **others
    )


def _without(*kinds: str) -> Change:
    return lambda parts: [part for part in parts if type(part).__name__ not in kinds]


def _with_branch(stem_channels: int) -> Change:
    """SAMUS's CNN branch in place of `Detail`, starting as the identity."""

    def change(parts: "Sequence[Part]") -> "list[Part]":
        branch = ak.parts.CNNBranch("global", stem_channels, output_scale=0.5, zero_init=True)
        return [branch if isinstance(part, ak.parts.Detail) else part for part in parts]

    return change


def _with(kind: str, **values: Any) -> Change:
    """The parts of a kind with other values."""

    def changed(part: Any) -> Any:
        return replace(part, **values) if type(part).__name__ == kind else part

    return lambda parts: [changed(part) for part in parts]


SYSTEMS: dict[str, System] = {
    "sam": Prompted(None),
    "samus": Prompted("samus"),
    "medsam": Prompted("medsam"),
    "samed": Prompted("samed"),
    "msa": Prompted("msa", halved=True),
    "autosamus": Prompted("autosamus", trained_with="class", tested_with=("class",)),
    "samed-auto": Prompted("samed_auto", trained_with="class", tested_with=("class",)),
    "unet": Network("U-Net"),
    "ce-net": Network("CE-Net"),
    "swin-unet": Network("Swin-Unet"),
    "transunet": Network("TransUNet"),
    "h2former": Network("H2Former"),
    "dynunet": Network("DynUNet"),
    "samus-plus": Prompted(
        "samus_plus",
        trained_with="mixed",
        tested_with=(
            "class",
            "1",
            "2-random",
            "2-entropy",
            "2-max-distance",
            "2-uncertain",
            "2-disagreement",
            "2-prior",
            "3",
            "5",
            "box",
            "class+1",
        ),
    ),
    "samus-plus-class": Prompted(
        "samus_plus", ", trained by class alone", trained_with="class", tested_with=("class",)
    ),
    "samus-plus-no-detail": _samus_plus(", no detail", _without("Detail")),
    "samus-plus-branch": _samus_plus(", CNN branch for detail", _with_branch(64)),
    "samus-plus-thin-branch": _samus_plus(", thin CNN branch for detail", _with_branch(16)),
    "samus-plus-no-adapters": _samus_plus(", no feature adapters", _without("FeatureAdapter")),
    "samus-plus-global-blocks": _samus_plus(
        ", feature adapters in global blocks", _with("FeatureAdapter", blocks="global")
    ),
    "samus-plus-lora": _samus_plus(", LoRA too", lambda parts: [*parts, ak.parts.LoRA(4)]),
    "samus-plus-neck": _samus_plus(", neck too", lambda parts: [*parts, ak.parts.Train("neck")]),
    "samus-plus-frozen-base": _samus_plus(", base frozen", _without("Train")),
    "samus-plus-one-token": _samus_plus(", 1 token per class", _with("ClassPrompts", tokens=1)),
    "samus-plus-stride-8": _samus_plus(", patch stride 8", options={"patch_stride": 8}),
    "samus-plus-ema": _samus_plus(", EMA of weights", settings={"ema": 0.97}),
    "samus-plus-constant": _samus_plus(", constant rate", settings={"schedule": "constant"}),
    "samus-plus-augmented": _samus_plus(", augmented images", augmented=True),
    "samus-plus-dice-ce": _samus_plus(", Dice and cross-entropy", settings={"loss": "dice-ce"}),
    "samus-branch": Prompted(
        "samus", ", CNN branch only", _without("PositionAdapter", "FeatureAdapter")
    ),
    "samus-adapters": Prompted("samus", ", adapters only", _without("CNNBranch")),
    "samus-2-random": _samus_with("2-random", ", 2 random points"),
    "samus-2-entropy": _samus_with("2-entropy", ", second point by entropy"),
    "samus-2-distance": _samus_with("2-max-distance", ", second point by max distance"),
    "samus-2-disagreement": _samus_with("2-disagreement", ", second point by disagreement"),
}
"""The names are those of `--methods` and of the runs' folders."""
