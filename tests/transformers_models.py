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

VIT_3 = {
    "model_type": "sam3_vit_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "window_size": 3,
    "global_attn_indexes": [1, 3],
    "pretrain_image_size": 48,
}
"""Windows and a position table of 3x3 for a grid of 4x4, which neither divides."""
VISION_3 = {
    "model_type": "sam3_vision_model",
    "backbone_config": VIT_3,
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 32,
    "scale_factors": [4.0, 2.0, 1.0],
}
WORDS = {
    "model_type": "clip_text_model",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "projection_dim": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LAYER = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MEMORY = {
    "num_maskmem": 2,
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 8,
    "mask_downsampler_embed_dim": 32,
    "memory_fuser_num_layers": 1,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
    "image_size": 64,
}
"""Of the models for videos."""
REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "num_classes": 2,
    "model_args": {
        "in_chans": 3,
        "features_only": True,
        "out_indices": [0, 1, 2, 3],
        "embed_dim": [16, 16, 24, 32],
        "depth": [1, 1, 2, 1],
    },
}
VISION_EDGE = {
    "model_type": "edgetam_vision_model",
    "backbone_config": REPVIT,
    "backbone_channel_list": [32, 24, 16, 16],
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


def _config(kind: str, vision: Any) -> Any:
    return getattr(transformers, kind)(
        vision_config=vision,
        prompt_encoder_config=PROMPTS,
        mask_decoder_config=DECODER,
        **(MEMORY if "Video" in kind else {}),
    )


def sam2_config(kind: str = "Sam2Config") -> Any:
    """Of `sam2_model`, or of the model for videos."""
    return _config(kind, VISION_2)


def sam2_model() -> Any:
    """A `Sam2Model`."""
    return _random(transformers.Sam2Model, sam2_config())


def sam3_config(kind: str = "Sam3TrackerConfig", **vision: Any) -> Any:
    """Of `sam3_tracker_model`, or of the model for videos.

    Args:
        kind: the class.
        **vision: other options of the vision encoder.
    """
    return _config(kind, {**VISION_3, **vision})


def sam3_tracker_model(**vision: Any) -> Any:
    """A `Sam3TrackerModel`; see `sam3_config`."""
    return _random(transformers.Sam3TrackerModel, sam3_config(**vision))


def edgetam_config(kind: str = "EdgeTamConfig") -> Any:
    """Of `edgetam_model`, or of the model for videos."""
    return _config(kind, VISION_EDGE)


def sam3_detector_config() -> Any:
    """Of `sam3_detector_model`."""
    return transformers.Sam3Config(
        vision_config={**VISION_3, "scale_factors": [4.0, 2.0, 1.0, 0.5]},
        text_config=WORDS,
        geometry_encoder_config=LAYER,
        detr_encoder_config=LAYER,
        detr_decoder_config={**LAYER, "num_queries": 5},
        mask_decoder_config={
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_upsampling_stages": 2,
        },
    )


def sam3_detector_model() -> Any:
    """A `Sam3Model`, which is asked by words."""
    return _random(transformers.Sam3Model, sam3_detector_config())


def sam3_video_model() -> Any:
    """A `Sam3VideoModel`: detector and tracker, which share the transformer."""
    tracker = sam3_config("Sam3TrackerVideoConfig", scale_factors=[4.0, 2.0, 1.0, 0.5])
    config = transformers.Sam3VideoConfig(
        detector_config=sam3_detector_config().to_dict(), tracker_config=tracker.to_dict()
    )
    return _random(transformers.Sam3VideoModel, config)


def edgetam_model() -> Any:
    """An `EdgeTamModel`."""
    return _random(transformers.EdgeTamModel, edgetam_config())


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


MODELS = {
    "SamModel": sam_model,
    "SamHQModel": sam_hq_model,
    "Sam2Model": sam2_model,
    "Sam3TrackerModel": sam3_tracker_model,
    "EdgeTamModel": edgetam_model,
}
