"""The vision encoder of transformers' SAM 3, of its detector and its tracker: a plain transformer
with rotary positions, and a neck."""

import copy
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapterkit.encoders.described import BlockNames, Description
from adapterkit.encoders.registry import register_family
from adapterkit.encoders.sam2_decoder import object_score, resize_decoder, sam2_decoder
from adapterkit.encoders.transformers_sam import normalisation, prompted
from adapterkit.encoders.views import Changes, Geometry, ViT, square_side
from adapterkit.encoders.wrappers import unwrapped

HALVES = (torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 127.5))
"""Mean and standard deviation by which published SAM 3 models normalise."""


def _description(transformer: str) -> Description:
    """Of the encoder whose transformer has this path in it, with a dot behind.

    Its position table is made for a smaller grid and repeated over whatever grid there is, so it is
    no site.
    """
    return Description(
        "transformers_sam3",
        f"{transformer}embeddings.patch_embeddings",
        (
            BlockNames(
                rf"{transformer}layers\.\d+",
                attn_in="layer_norm1",
                attn_out="attention",
                layers={target: f"attention.{target}_proj" for target in "qkv"},
                windowed=lambda block: block.window_size > 0,
            ),
        ),
    )


@register_family
def transformers_sam3(model: nn.Module) -> ViT | None:
    """`Sam3TrackerModel`, `Sam3VisionModel` and `Sam3ViTModel`, the transformer alone.

    `Sam3Model`, whose head takes words, is a model around a `Sam3VisionModel`.
    """
    # A model of transformers can be here only if its module has been imported.
    sam3 = sys.modules.get("transformers.models.sam3.modeling_sam3")
    if sam3 is None:
        return None
    tracker = sys.modules.get("transformers.models.sam3_tracker.modeling_sam3_tracker")
    is_tracker = tracker is not None and isinstance(model, tracker.Sam3TrackerModel)
    whole: Any = model if is_tracker else None
    encoder: Any = model if whole is None else unwrapped(whole.vision_encoder)
    if not isinstance(encoder, sam3.Sam3VisionModel | sam3.Sam3ViTModel):
        return None
    has_neck = isinstance(encoder, sam3.Sam3VisionModel)
    transformer: Any = unwrapped(encoder.backbone) if has_neck else encoder
    image_size = square_side(transformer.config.image_size, "transformers_sam3 encoder")
    found = _description("backbone." if has_neck else "").view(encoder, image_size)
    neck: Any = encoder if has_neck else None
    found = replace(
        found,
        resizer=partial(_resize, whole, neck, transformer),
        embedding_of=partial(_of_the_grid, neck) if has_neck else found.embedding_of,
    )
    if whole is None:
        return found
    return replace(
        found,
        model=model,
        components={**found.components, **prompted(whole)},
        decoder=sam2_decoder(whole),
        not_trained=(object_score(whole),),
        normalisation=normalisation(whole, HALVES),
    )


def _resize(model: Any, neck: Any, transformer: Any, changes: Changes, to: Geometry) -> None:
    """Positions in global attention are spread over the grid, and those in windows stay."""
    config = copy.deepcopy(transformer.config)
    config.image_size, config.patch_size = to.image_size, to.patch_stride
    changes.set(transformer, "config", config)
    changes.set(transformer.embeddings, "patch_size", to.patch_stride)
    layers: list[Any] = [unwrapped(each) for each in transformer.layers]
    for layer in layers:
        # Values rather than weights, so also where a file's weights are to come on the meta device.
        with layer.position_ids.device:
            places = layer.precompute_positions(config, layer.window_size)
        changes.set(layer, "position_ids", places)
    if neck is not None:
        around = copy.deepcopy(neck.config)
        around.backbone_config = config
        changes.set(neck, "config", around)
    if model is not None:
        resize_decoder(model, changes, to.image_size, 4 * to.grid[0])


def _of_the_grid(neck: Any, output: Any) -> Tensor:
    """The map that is as large as the grid of tokens."""
    return output.fpn_hidden_states[neck.config.scale_factors.index(1)]
