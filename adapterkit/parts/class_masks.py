"""A mask decoder that gives a mask for each class at once, without a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from adapterkit.attach.attachment import Attachment
from adapterkit.parts.registry import register_part
from adapterkit.parts.structures import checked_names


@register_part
@dataclass(frozen=True)
class ClassMasks:
    """Gives `segment_anything`'s mask decoder a mask for each structure and one for the background.

    Instead of the decoder's four mask tokens, the layers that make weights of them, and the last
    layer of its estimate of IoU, it has trained ones of its own, for one class more than there are
    structures. With no prompt but the prompt encoder's default embedding, the softmax over its
    masks says what each pixel is. Clicks and boxes are refused. A `Train("mask_decoder")` after it
    trains the rest of the decoder.

    Args:
        structures: the names of the classes but the background, each once.
    """

    structures: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "structures", checked_names(self, self.structures))

    def attach(self, to: Attachment) -> None:
        from segment_anything.modeling import MaskDecoder
        from segment_anything.modeling.mask_decoder import MLP

        decoder: Any = to.view.components.get("mask_decoder")
        if not isinstance(decoder, MaskDecoder):
            raise ValueError(
                "ClassMasks: this model has no mask decoder of segment_anything's; expected a Sam"
            )
        width, classes = decoder.transformer_dim, len(self.structures) + 1
        head: Any = decoder.iou_prediction_head.layers[-1]
        quality = nn.Linear(head.in_features, classes)
        to.replace_parameters(
            "class_masks.tokens", decoder.mask_tokens, nn.Embedding(classes, width)
        )
        to.replace_parameters("class_masks.quality", head, quality)
        weights = nn.ModuleList(MLP(width, width, width // 8, 3) for _ in range(classes))
        to.add("class_masks.weights", weights)
        to.stand_in(decoder, "output_hypernetworks_mlps", weights)
        to.set(decoder, "num_mask_tokens", classes)
        to.set(decoder, "num_multimask_outputs", classes - 1)


def published_names(decoder: str, keys: Mapping[str, Any]) -> dict[str, str]:
    """For each key of a mask decoder's checkpoint that stands for this part, the adapter's key.

    Args:
        decoder: the decoder's prefix.
        keys: those of the checkpoint.
    """
    layer = next(
        (
            key.removesuffix(".bias")
            for key in sorted(keys, reverse=True)
            if key.startswith(f"{decoder}.iou_prediction_head.layers.") and key.endswith(".bias")
        ),
        "",
    )
    names = {
        f"{decoder}.mask_tokens.weight": "class_masks.tokens.weight.value",
        f"{layer}.weight": "class_masks.quality.weight.value",
        f"{layer}.bias": "class_masks.quality.bias.value",
    }
    weights = f"{decoder}.output_hypernetworks_mlps."
    for key in keys:
        if key.startswith(weights):
            names[key] = f"class_masks.weights.{key.removeprefix(weights)}"
    return names
