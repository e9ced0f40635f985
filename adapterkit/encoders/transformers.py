"""The vision encoder of transformers' `SamModel`."""

import copy
import sys
from typing import Any

from torch import nn

from adapterkit.encoders.sam_blocks import GRID, sam_stage
from adapterkit.encoders.views import (
    Changes,
    Geometry,
    Site,
    ViT,
    family,
    position_embedding,
)
from adapterkit.encoders.wrappers import unwrapped


@family
def transformers_sam(model: nn.Module) -> ViT | None:
    """`SamModel`, `SamVisionModel` and `SamVisionEncoder`."""
    # A model of transformers can be here only if its module has been imported.
    sam = sys.modules.get("transformers.models.sam.modeling_sam")
    if sam is None:
        return None
    around = isinstance(model, sam.SamModel | sam.SamVisionModel)
    encoder: Any = unwrapped(model.get_submodule("vision_encoder")) if around else model
    if not isinstance(encoder, sam.SamVisionEncoder):
        return None
    components = {"image_encoder": encoder, "neck": encoder.neck}
    for name in ("prompt_encoder", "mask_decoder"):
        if hasattr(model, name):
            components[name] = unwrapped(getattr(model, name))

    def resize(changes: Changes, to: Geometry) -> None:
        changes.set(encoder, "image_size", to.image_size)
        changes.set(encoder.patch_embed, "image_size", (to.image_size, to.image_size))
        changes.set(encoder.patch_embed, "num_patches", to.grid[0] * to.grid[1])
        if "prompt_encoder" in components:
            prompts = components["prompt_encoder"]
            changes.set(prompts, "input_image_size", to.image_size)
            changes.set(prompts, "image_embedding_size", to.grid)
            # A copy, since several models may share one configuration.
            config: Any = copy.deepcopy(model.config)
            config.prompt_encoder_config.image_embedding_size = to.grid[0]
            changes.set(model, "config", config)

    projection = encoder.patch_embed.projection
    width, side = projection.out_channels, encoder.image_size // projection.stride[0]
    grid = (side, side)
    # The attention returns a tuple; the output of its last layer is the tensor in it.
    names = {"norm": "layer_norm1", "attn_out": "attn.proj", "heads": "num_attention_heads"}
    stage = sam_stage(encoder.layers, width, grid, **names)
    return ViT(
        family="transformers_sam",
        model=model,
        encoder=encoder,
        components=components,
        patch_embed=encoder.patch_embed,
        patch_projection=projection,
        tokens=Site((encoder.patch_embed,), width, grid, GRID),
        pos_embed=position_embedding(encoder, width, grid, GRID),
        stages=(stage,),
        output=Site((stage.blocks[-1].module,), width, grid, GRID),
        image_size=encoder.image_size,
        patch_size=projection.stride[0],
        resizer=resize,
    )
