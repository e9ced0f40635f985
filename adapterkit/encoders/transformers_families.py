"""What the modules of transformers' vision encoders are called."""

from functools import partial
from typing import Any

import torch
from torch import nn

from adapterkit.encoders.described import BlockNames, Description, any_size
from adapterkit.encoders.registry import register_family, view_by_class
from adapterkit.encoders.views import Changes, Geometry, ViT, square_side


def _split(attention: str) -> dict[str, str]:
    return {target: f"{attention}.{target}_proj" for target in "qkv"}


Layer = partial(
    BlockNames, attn_in="layernorm_before", attn_out="attention", layers=_split("attention")
)
DinoLayer = partial(BlockNames, attn_out="attention", layers=_split("attention"))
ClipLayer = partial(
    BlockNames, attn_in="layer_norm1", attn_out="self_attn", layers=_split("self_attn")
)


def _checks_of_size(encoder: Any, changes: Changes, to: Geometry) -> None:
    """Two modules check the size of images."""
    for checks in (encoder.embeddings, encoder.embeddings.patch_embeddings):
        changes.set(checks, "image_size", (to.image_size, to.image_size))


def _position_ids(encoder: Any, changes: Changes, to: Geometry) -> None:
    """Positions are looked up, of all rows of their table."""
    embeddings = encoder.embeddings
    changes.set(embeddings, "image_size", to.image_size)
    prefix = hasattr(embeddings, "class_embedding")
    number = to.grid[0] * to.grid[1] + prefix
    changes.set(embeddings, "position_ids", torch.arange(number, device="cpu")[None])


FAMILIES: dict[str, Description] = {
    "vit.modeling_vit.ViTModel": Description(
        "transformers_vit",
        "embeddings.patch_embeddings",
        (Layer(r"layers\.\d+"),),
        pos_embed="embeddings.position_embeddings",
        prefix_tokens=1,
        resizer=_checks_of_size,
    ),
    "dinov2.modeling_dinov2.Dinov2Model": Description(
        "transformers_dinov2",
        "embeddings.patch_embeddings",
        (DinoLayer(r"encoder\.layer\.\d+"),),
        pos_embed="embeddings.position_embeddings",
        prefix_tokens=1,
        resizer=any_size,
    ),
    "dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel": Description(
        "transformers_dinov3",
        "embeddings.patch_embeddings",
        (DinoLayer(r"model\.layer\.\d+"),),
        prefix_tokens=lambda encoder: 1 + encoder.config.num_register_tokens,
        resizer=any_size,
    ),
    "siglip.modeling_siglip.SiglipVisionModel": Description(
        "transformers_siglip",
        "embeddings.patch_embedding",
        (ClipLayer(r"encoder\.layers\.\d+"),),
        pos_embed="embeddings.position_embedding.weight",
        resizer=_position_ids,
    ),
    "clip.modeling_clip.CLIPVisionModel": Description(
        "transformers_clip",
        "embeddings.patch_embedding",
        (ClipLayer(r"encoder\.layers\.\d+"),),
        pos_embed="embeddings.position_embedding.weight",
        prefix_tokens=1,
        resizer=_position_ids,
    ),
    "swin.modeling_swin.SwinModel": Description(
        "transformers_swin",
        "embeddings.patch_embeddings",
        (Layer(r"encoder\.layers\.\d+\.blocks\.\d+"),),
    ),
    "segformer.modeling_segformer.SegformerModel": Description(
        "transformers_segformer",
        "stages.0.patch_embeddings",
        (Layer(r"stages\.\d+\.blocks\.\d+"),),
        resizer=any_size,
    ),
    "beit.modeling_beit.BeitModel": Description(
        "transformers_beit",
        "embeddings.patch_embeddings",
        (Layer(r"layers\.\d+"),),
        pos_embed="embeddings.position_embeddings",
        prefix_tokens=1,
    ),
}
"""By the module of transformers' models and the class in it."""


@register_family
def transformers_described(model: nn.Module) -> ViT | None:
    """Those of `FAMILIES`."""
    return view_by_class(model, FAMILIES, "transformers.models", _image_size)


def _image_size(model: Any) -> int:
    """Side of the images that a model was configured for, in pixels."""
    return square_side(model.config.image_size, type(model).__name__)
