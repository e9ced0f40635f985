"""Small Segment Anything models of transformers, with random weights and images of 64x64 pixels."""

from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam

from adapterkit.encoders.sam_names import as_in_sam
from adapterkit.promptable.stock_sam import SamConfig

transformers = pytest.importorskip("transformers")

PROMPTS = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 8}
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_dim": 32,
    "image_size": 64,
    "patch_size": 16,
    "window_size": 3,
    "output_channels": 32,
    "global_attn_indexes": [1, 2],
    "num_pos_feats": 16,
}
HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 16,
    "num_attention_heads": 1,
    "image_size": [64, 64],
    "blocks_per_stage": [1, 2, 3, 2],
    "embed_dim_per_stage": [16, 24, 32, 48],
    "num_attention_heads_per_stage": [1, 2, 2, 4],
    "window_size_per_stage": [4, 2, 6, 2],
    "global_attention_blocks": [4, 5],
    "window_positional_embedding_background_size": [3, 3],
}
"""Stages as in SAM 2: of three blocks in the third, one attends within windows and two globally."""
VISION_2 = {
    "backbone_config": HIERA,
    "backbone_channel_list": [48, 32, 24, 16],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 32,
}


def sam_model() -> Any:
    """A `SamModel`."""
    config = transformers.SamConfig(
        vision_config=VISION, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER
    )
    return _random(transformers.SamModel, config)


def sam_hq_model() -> Any:
    """A `SamHQModel`."""
    config = transformers.SamHQConfig(
        vision_config=VISION,
        prompt_encoder_config=PROMPTS,
        mask_decoder_config={**DECODER, "vit_dim": 16},
    )
    return _random(transformers.SamHQModel, config)


def sam2_config(kind: str = "Sam2Config") -> Any:
    """Of `sam2_model`, or of the model for videos."""
    return getattr(transformers, kind)(
        vision_config=VISION_2, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER
    )


def sam2_model() -> Any:
    """A `Sam2Model`."""
    return _random(transformers.Sam2Model, sam2_config())


def as_transformers(sam: Sam, config: SamConfig) -> Any:
    """A `SamModel` with the weights of segment_anything's `Sam` of this configuration."""
    grid = config.image_size // config.patch_size
    width = config.prompt_width
    vision = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_dim": 4 * config.width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "window_size": config.window_size,
        "global_attn_indexes": list(config.global_blocks),
        "output_channels": width,
        "num_pos_feats": width // 2,
    }
    prompts = {"hidden_size": width, "image_size": config.image_size}
    prompts |= {"patch_size": config.patch_size, "image_embedding_size": grid}
    prompts |= {"mask_input_channels": config.mask_prompt_width}
    decoder = {"hidden_size": width, "mlp_dim": config.decoder_mlp_width}
    decoder |= {"num_attention_heads": config.decoder_num_heads}
    decoder |= {"iou_head_hidden_dim": config.iou_head_width}
    model = transformers.SamModel(
        transformers.SamConfig(
            vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
        )
    )
    theirs = sam.state_dict()
    weights = {name: theirs[as_in_sam("transformers_sam", name)] for name in model.state_dict()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _random(kind: Any, config: Any) -> Any:
    """With values everywhere, where transformers leaves tables at zero for a checkpoint to fill."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MODELS = {"SamModel": sam_model, "SamHQModel": sam_hq_model, "Sam2Model": sam2_model}
