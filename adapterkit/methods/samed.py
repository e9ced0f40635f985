"""SAMed (Zhang & Liu 2023, arXiv 2304.13785): LoRA on q and v, and all but the encoder trained."""

from collections.abc import Mapping

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods.checkpoints import trained_components
from adapterkit.methods.registry import Mapped, Schedule, register_method
from adapterkit.parts import LoRA, Normalise, Resize, Train

SCHEDULE = Schedule(
    learning_rate=5e-3,
    batch_size=12,
    optimizer="adamw",
    weight_decay=0.1,
    schedule="polynomial",
    warmup_steps=250,
)
"""Of hitachinsk/SAMed, train.py and trainer.py, with --warmup --AdamW."""


def read_checkpoint(base: ViT, tensors: Mapping[str, Tensor], image_size: int = 512) -> Mapped:
    """The checkpoint does not tell its image size; 512 is that of the published ones."""
    if "sa_a_000" in tensors:
        raise ValueError(
            "it is a checkpoint of SAMed_s, which has LoRA in the mask decoder too; adapterkit "
            "reads those of SAMed"
        )
    names: dict[str, str] = {}
    for block in base.blocks:
        for offset, target in enumerate("qv"):
            number = f"{2 * block.index + offset:03d}"
            names[f"w_a_{number}"] = f"lora.{block.index}.{target}.a"
            names[f"w_b_{number}"] = f"lora.{block.index}.{target}.b"
    rank = len(tensors["w_a_000"])
    trained, trained_names = trained_components(base, tensors, "prompt_encoder", "mask_decoder")
    found = [*_in_the_encoder(rank, image_size), *trained]
    return found, names | trained_names


@register_method(
    "samed",
    title="SAMed",
    schedule=SCHEDULE,
    read_checkpoint=read_checkpoint,
)
def parts(view: ViT | None = None, rank: int = 4, image_size: int = 512) -> list[Part]:
    """To an image encoder alone, which has neither prompt encoder nor mask decoder, without those.

    Args:
        view: of the encoder; None for a `Sam`.
        rank: of the LoRA updates.
        image_size: side of the square input, in pixels.
    """
    trained = [
        Train(what)
        for what in ("prompt_encoder", "mask_decoder")
        if view is None or what in view.components
    ]
    return [*_in_the_encoder(rank, image_size), *trained]


def _in_the_encoder(rank: int, image_size: int) -> list[Part]:
    return [
        Resize(image_size, antialias=False, interpolation="bilinear"),
        Normalise(),
        LoRA(rank, targets=("q", "v")),
    ]
