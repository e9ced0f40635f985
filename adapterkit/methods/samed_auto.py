"""SAMed as published: no prompt, and a mask for each class and the background.

Zhang & Liu 2023, arXiv 2304.13785. The method `samed` has the same in the encoder, and keeps SAM's
decoder, which clicks and boxes ask.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods import samed
from adapterkit.methods.registry import Mapped, register_method
from adapterkit.parts import ClassMasks, Train
from adapterkit.parts.class_masks import published_names


def read_checkpoint(
    base: ViT,
    tensors: Mapping[str, Tensor],
    image_size: int = 512,
    structures: Sequence[str] = (),
) -> Mapped:
    """The checkpoint tells neither its image size, 512 in the published ones, nor what its classes
    are called: "class 1", "class 2" and so on, unless `structures` names them."""
    found, names = samed.read_checkpoint(base, tensors, image_size)
    if "mask_decoder" not in base.components:
        raise ValueError(
            "samed_auto has a mask for each class, for which an image encoder alone has no place"
        )
    classes = len(tensors["mask_decoder.mask_tokens.weight"]) - 1
    structures = structures or [f"class {k + 1}" for k in range(classes)]
    if len(structures) != classes:
        raise ValueError(
            f"structures has {len(structures)} names, and its mask decoder has masks for {classes} "
            "classes and the background"
        )
    own = published_names("mask_decoder", tensors)
    left = {theirs: ours for theirs, ours in names.items() if not _is_replaced(theirs)}
    return _with_class_masks(found, structures), left | own


def _is_replaced(key: str) -> bool:
    return key.startswith("mask_decoder.output_hypernetworks_mlps.")


@register_method(
    "samed_auto",
    title="SAMed, automatic",
    schedule=samed.SCHEDULE,
    read_checkpoint=read_checkpoint,
)
def parts(
    view: ViT | None = None,
    rank: int = 4,
    image_size: int = 512,
    structures: Sequence[str] = ("foreground",),
) -> list[Part]:
    """To an image encoder alone, without all that is beside it.

    Args:
        view: of the encoder; None for a `Sam`.
        rank: of the LoRA updates.
        image_size: side of the square input, in pixels.
        structures: names of the classes but the background.
    """
    found = samed.parts(view, rank, image_size)
    if view is not None and "mask_decoder" not in view.components:
        return found
    return _with_class_masks(found, structures)


def _with_class_masks(parts: Sequence[Part], structures: Sequence[str]) -> list[Part]:
    """Before what trains the rest of the decoder."""
    rest = [each for each in parts if isinstance(each, Train)]
    in_encoder = [each for each in parts if each not in rest]
    return [*in_encoder, ClassMasks(tuple(structures)), *rest]
