"""MedSAM (Ma & Wang 2023, arXiv 2304.12306), first version: the mask decoder alone is trained."""

from collections.abc import Mapping

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods.checkpoints import trained_components
from adapterkit.methods.registry import Mapped, Schedule, register_method
from adapterkit.parts import Normalise, Resize, Train


def read_checkpoint(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
    if "mask_decoder" not in base.components:
        raise ValueError(
            "medsam trains the mask decoder, which an image encoder alone does not have"
        )
    trained, names = trained_components(base, tensors, "mask_decoder")
    if not trained:
        raise KeyError("mask_decoder")
    return parts(base), names


@register_method(
    "medsam",
    title="MedSAM",
    # bowang-lab/MedSAM, first version: fine-tuning of the mask decoder.
    schedule=Schedule(learning_rate=1e-5, batch_size=8),
    read_checkpoint=read_checkpoint,
)
def parts(view: ViT | None = None, image_size: int | None = None) -> list[Part]:
    """The image and prompt encoders stay frozen.

    Args:
        view: of the encoder; None for a `Sam`.
        image_size: side of the square input, in pixels; None keeps the base's own.
    """
    return [
        *([] if image_size is None else [Resize(image_size)]),
        Normalise(),
        Train("mask_decoder"),
    ]
