"""The vision encoder of transformers' `EdgeTamModel`: timm's RepViT, convolutional, and a neck."""

import copy
import sys
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from adapterkit.encoders.described import Description
from adapterkit.encoders.registry import register_family
from adapterkit.encoders.sam2_decoder import object_score, resize_decoder, sam2_decoder
from adapterkit.encoders.timm_families import CONVOLUTIONS
from adapterkit.encoders.transformers_sam import normalisation, prompted
from adapterkit.encoders.views import Changes, Geometry, ViT, square_side
from adapterkit.encoders.wrappers import unwrapped

_REPVIT = "backbone.timm_model."
_STRIDES = 4, 32
"""Of the finest and of the coarsest map, in pixels."""

_DESCRIPTION = Description(
    "transformers_edgetam",
    f"{_REPVIT}stem",
    (CONVOLUTIONS(rf"{_REPVIT}stages_\d+\.blocks\.\d+"),),
)


@register_family
def transformers_edgetam(model: nn.Module) -> ViT | None:
    """`EdgeTamModel` and `EdgeTamVisionModel`."""
    # A model of transformers can be here only if its module has been imported.
    edgetam = sys.modules.get("transformers.models.edgetam.modeling_edgetam")
    if edgetam is None:
        return None
    whole: Any = model if isinstance(model, edgetam.EdgeTamModel) else None
    encoder: Any = model if whole is None else unwrapped(whole.vision_encoder)
    if not isinstance(encoder, edgetam.EdgeTamVisionModel):
        return None
    finest = square_side(encoder.config.backbone_feature_sizes[0], "transformers_edgetam encoder")
    found = replace(
        _DESCRIPTION.view(encoder, _STRIDES[0] * finest),
        resizer=partial(_resize, whole, encoder),
        embedding_of=_coarsest,
    )
    if whole is None:
        return found
    return replace(
        found,
        model=model,
        components={**found.components, **prompted(whole)},
        decoder=sam2_decoder(whole),
        not_trained=(object_score(whole),),
        normalisation=normalisation(whole),
    )


def _resize(model: Any, encoder: Any, changes: Changes, to: Geometry) -> None:
    """The neck adds up maps, each of half the size of the one before."""
    step = _STRIDES[1]
    if to.image_size % step:
        nearest = max(1, round(to.image_size / step)) * step
        raise ValueError(
            f"Resize(image_size={to.image_size}): this transformers_edgetam encoder takes "
            f"multiples of {step} pixels, which its stages divide; the nearest is {nearest}"
        )
    config = copy.deepcopy(encoder.config)
    levels = range(len(config.backbone_feature_sizes))
    config.backbone_feature_sizes = [[to.grid[0] // 2**level] * 2 for level in levels]
    changes.set(encoder, "config", config)
    if model is not None:
        resize_decoder(model, changes, to.image_size, to.grid[0])


def _coarsest(output: Any) -> Tensor:
    return output.fpn_hidden_states[-1]
