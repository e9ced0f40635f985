"""The image encoder of `segment_anything`."""

from functools import partial
from typing import Any

import torch
from torch import nn

from adapterkit.encoders.prompt_decoder import PromptDecoder
from adapterkit.encoders.registry import register_family
from adapterkit.encoders.sam_blocks import GRID, sam_stage
from adapterkit.encoders.sam_names import names_in_sam
from adapterkit.encoders.views import (
    Changes,
    Geometry,
    Site,
    ViT,
    position_embedding,
)
from adapterkit.encoders.wrappers import unwrapped

names_in_sam("segment_anything")


@register_family
def segment_anything(model: nn.Module) -> ViT | None:
    """`Sam` and `ImageEncoderViT`."""
    from segment_anything.modeling import Sam
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    encoder = unwrapped(model.image_encoder) if isinstance(model, Sam) else model
    if not isinstance(encoder, ImageEncoderViT):
        return None
    components: dict[str, nn.Module] = {"image_encoder": encoder, "neck": encoder.neck}
    if isinstance(model, Sam):
        components["prompt_encoder"] = unwrapped(model.prompt_encoder)
        components["mask_decoder"] = unwrapped(model.mask_decoder)

    def resize(changes: Changes, to: Geometry) -> None:
        changes.set(encoder, "img_size", to.image_size)
        if isinstance(model, Sam):
            prompts = components["prompt_encoder"]
            changes.set(prompts, "input_image_size", (to.image_size, to.image_size))
            changes.set(prompts, "image_embedding_size", to.grid)
            changes.set(prompts, "mask_input_size", (4 * to.grid[0], 4 * to.grid[1]))

    projection = encoder.patch_embed.proj
    width, side = projection.out_channels, encoder.img_size // projection.stride[0]
    grid = (side, side)
    stage = sam_stage(encoder.blocks, width, grid)
    return ViT(
        family="segment_anything",
        model=model,
        encoder=encoder,
        components=components,
        patch_embed=encoder.patch_embed,
        patch_projection=projection,
        tokens=Site((encoder.patch_embed,), width, grid, GRID),
        pos_embed=position_embedding(encoder, width, grid, GRID),
        stages=(stage,),
        output=Site((stage.blocks[-1].module,), width, grid, GRID),
        image_size=encoder.img_size,
        patch_size=projection.stride[0],
        resizer=resize,
        decoder=_prompt_decoder(model) if isinstance(model, Sam) else None,
        normalisation=(model.get_buffer("pixel_mean"), model.get_buffer("pixel_std"))
        if isinstance(model, Sam)
        else None,
    )


def _prompt_decoder(sam: Any) -> PromptDecoder:
    prompts, decoder = sam.prompt_encoder, sam.mask_decoder

    def try_out() -> None:
        weight = prompts.no_mask_embed.weight
        zeros = partial(torch.zeros, dtype=weight.dtype, device=weight.device)
        ones = torch.ones(1, 1, dtype=torch.int64, device=weight.device)
        mask = zeros(1, 1, *prompts.mask_input_size)
        sparse, dense = prompts((zeros(1, 1, 2), ones), zeros(1, 4), mask)
        decoder(torch.zeros_like(dense), prompts.get_dense_pe(), sparse, dense, True)

    return PromptDecoder(
        width=decoder.transformer_dim,
        grid=prompts.image_embedding_size,
        prompt_encoder=prompts,
        mask_prompt=prompts.mask_downscaling,
        mask_features=decoder.output_upscaling,
        mask_channels=decoder.transformer_dim // 8,
        mask_weights=tuple(decoder.output_hypernetworks_mlps),
        token_head=decoder.iou_prediction_head,
        try_out=try_out,
    )
