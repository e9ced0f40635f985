"""The vision encoders of transformers' `SamModel` and `SamHQModel`."""

import copy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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

IMAGENET = (
    torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
    torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
)
"""Mean and standard deviation by which published Segment Anything models normalise, up to SAM 2."""

_FAMILIES = {"transformers_sam": ("sam", "Sam"), "transformers_sam_hq": ("sam_hq", "SamHQ")}


names_in_sam(
    "transformers_sam",
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    # Of three layers, which all of SAM's heads have.
    (r"(_mlps\.\d+|_head)\.layers\.0\.", r"\1.layers.1."),
    (r"\.proj_in\.", ".layers.0."),
    (r"\.proj_out\.", ".layers.2."),
    (
        r"^(prompt_encoder\.shared|shared_image)_embedding\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
)


@register_family
def transformers_sam(model: nn.Module) -> ViT | None:
    """`SamModel`, `SamVisionModel` and `SamVisionEncoder`, and the same of `SamHQModel`."""
    whole: Any = model
    for name, (module, prefix) in _FAMILIES.items():
        # A model of transformers can be here only if its module has been imported.
        sam = sys.modules.get(f"transformers.models.{module}.modeling_{module}")
        if sam is None:
            continue
        around = (getattr(sam, f"{prefix}Model"), getattr(sam, f"{prefix}VisionModel"))
        encoder: Any = unwrapped(whole.vision_encoder) if isinstance(model, around) else model
        if isinstance(encoder, getattr(sam, f"{prefix}VisionEncoder")):
            return _view(name, model, encoder, hq=name == "transformers_sam_hq")
    return None


def _view(family: str, model: Any, encoder: Any, hq: bool) -> ViT:
    components = {"image_encoder": encoder, "neck": encoder.neck, **prompted(model)}
    whole = len(components) == 4

    def resize(changes: Changes, to: Geometry) -> None:
        changes.set(encoder, "image_size", to.image_size)
        changes.set(encoder.patch_embed, "image_size", (to.image_size, to.image_size))
        changes.set(encoder.patch_embed, "num_patches", to.grid[0] * to.grid[1])
        if whole:
            prompts: Any = components["prompt_encoder"]
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
    out, heads = "attn.proj", "num_attention_heads"
    stage = sam_stage(encoder.layers, width, grid, "layer_norm1", out, heads)
    decoder = None
    if whole and hq:
        # What refines masks reads the features that the others are made of.
        decoder = prompt_decoder(model, None, partial(_early_tokens, grid=grid, width=width))
    elif whole:
        decoder = prompt_decoder(model, model.mask_decoder.activation)
    return ViT(
        family=family,
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
        decoder=decoder,
        embedding_of=_last_hidden_state,
        normalisation=normalisation(model) if whole else None,
    )


def _last_hidden_state(output: Any) -> Tensor:
    return output.last_hidden_state


Zeros = Callable[..., Tensor]
"""Makes a tensor of zeros like the model's."""


def _early_tokens(zeros: Zeros, grid: tuple[int, int], width: int) -> Mapping[str, Any]:
    return {"hq_token_only": False, "intermediate_embeddings": [zeros(1, *grid, width)]}


def normalisation(
    model: nn.Module, published: tuple[Tensor, Tensor] = IMAGENET
) -> tuple[Tensor, Tensor]:
    """That which came with the model's weights, or that of all published ones."""
    mean, std = (getattr(model, f"pixel_{name}", None) for name in ("mean", "std"))
    return published if mean is None or std is None else (mean, std)


def prompted(model: nn.Module) -> dict[str, nn.Module]:
    """The prompt encoder and the mask decoder, by name, of a whole model."""
    names = ("prompt_encoder", "mask_decoder")
    return {name: unwrapped(getattr(model, name)) for name in names if hasattr(model, name)}


def prompt_decoder(
    model: Any,
    mask_features: nn.Module | None,
    more: Callable[[Zeros], Mapping[str, Any]] = lambda zeros: {},
) -> PromptDecoder:
    """The sites of a Segment Anything model of transformers.

    Args:
        model: a whole one.
        mask_features: as in `PromptDecoder`.
        more: what its mask decoder takes beside embeddings and prompts.
    """
    prompts: Any = unwrapped(model.prompt_encoder)
    decoder: Any = unwrapped(model.mask_decoder)
    rows, columns = prompts.image_embedding_size

    def try_out() -> None:
        weight = prompts.no_mask_embed.weight
        zeros = partial(torch.zeros, dtype=weight.dtype, device=weight.device)
        sparse, dense = prompts(
            input_points=zeros(1, 1, 1, 2),
            input_labels=torch.ones(1, 1, 1, dtype=torch.int64, device=weight.device),
            input_boxes=zeros(1, 1, 4),
            input_masks=zeros(1, 1, 4 * rows, 4 * columns),
        )
        decoder(
            image_embeddings=torch.zeros_like(dense),
            image_positional_embeddings=torch.zeros_like(dense),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            **more(zeros),
        )

    return PromptDecoder(
        width=decoder.hidden_size,
        grid=(rows, columns),
        prompt_encoder=prompts,
        mask_prompt=prompts.mask_embed,
        mask_features=mask_features,
        mask_channels=decoder.hidden_size // 8,
        mask_weights=tuple(decoder.output_hypernetworks_mlps),
        token_head=decoder.iou_prediction_head,
        try_out=try_out,
    )
