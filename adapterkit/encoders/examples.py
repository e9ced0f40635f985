"""A small encoder of each family: what takes which parts is tried out on them, and tested.

The libraries are imported where a model is built.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn


def _segment_anything() -> nn.Module:
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    return ImageEncoderViT(
        img_size=64, embed_dim=32, depth=2, num_heads=2, out_chans=16, use_rel_pos=True,
        window_size=2, global_attn_indexes=(1,),
    )  # fmt: skip


def _timm(name: str, image_size: int | None = 64, **options: Any) -> nn.Module:
    """A model of timm.

    Args:
        name: of the model.
        image_size: None where the class of the model takes none; then that of `input_size`.
        **options: that its class takes, and `input_size`.
    """
    import timm

    side = options.pop("input_size", image_size)
    if image_size is not None:
        options["img_size"] = image_size
    return timm.create_model(
        name, num_classes=3, pretrained_cfg_overlay={"input_size": (3, side, side)}, **options
    )


def _timm_class(name: str, **options: Any) -> nn.Module:
    """A model of a class of timm whose named models cannot be made smaller."""
    module, _, cls = name.partition(".")
    found = import_module(f"timm.models.{module}")
    model = getattr(found, cls)(num_classes=3, **options)
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    return model


def _mvitv2() -> nn.Module:
    from timm.models.mvitv2 import MultiScaleVitCfg

    config = MultiScaleVitCfg(embed_dim=16, depths=(1, 1), num_heads=1)
    return _timm_class("mvitv2.MultiScaleVit", cfg=config, img_size=(64, 64))


def _transformers(model: str, config: str, **options: Any) -> nn.Module:
    import transformers

    options = {"image_size": 64, "attn_implementation": "sdpa", **options}
    return getattr(transformers, model)(getattr(transformers, config)(**options))


def _sam2() -> nn.Module:
    import transformers

    hiera = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1,
        "image_size": [64, 64], "blocks_per_stage": [1, 2, 3, 2],
        "embed_dim_per_stage": [16, 24, 32, 48], "num_attention_heads_per_stage": [1, 2, 2, 4],
        "window_size_per_stage": [4, 2, 6, 2], "global_attention_blocks": [4, 5],
        "window_positional_embedding_background_size": [3, 3],
    }  # fmt: skip
    config = transformers.Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[48, 32, 24, 16], fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    return transformers.Sam2VisionModel(config)


def _sam3() -> nn.Module:
    import transformers

    vit = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
        "window_size": 3, "global_attn_indexes": [1], "pretrain_image_size": 48,
    }  # fmt: skip
    config = transformers.Sam3VisionConfig(
        backbone_config=vit, fpn_hidden_size=16, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]
    )
    return transformers.Sam3VisionModel(config)


def _edgetam() -> nn.Module:
    import transformers

    repvit = {
        "model_type": "timm_wrapper", "architecture": "repvit_m1", "num_classes": 2,
        "model_args": {
            "features_only": True, "out_indices": [0, 1, 2, 3], "embed_dim": [8, 8, 16, 16],
            "depth": [1, 1, 1, 1],
        },
    }  # fmt: skip
    config = transformers.EdgeTamVisionConfig(
        backbone_config=repvit, backbone_channel_list=[16, 16, 8, 8], fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    return transformers.EdgeTamVisionModel(config)


_PLAIN = {"depth": 2, "embed_dim": 32, "num_heads": 2}
_TWO_STAGES = {"depths": (1, 1), "num_heads": (1, 2)}
_CONVOLUTIONS = {"image_size": None, "input_size": 64}
_HIDDEN = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "patch_size": 16,
}  # fmt: skip

EXAMPLES: dict[str, Callable[[], nn.Module]] = {
    "segment_anything ImageEncoderViT": _segment_anything,
    "timm VisionTransformer": partial(_timm, "vit_small_patch16_224", **_PLAIN),
    "timm VisionTransformerSAM": partial(
        _timm, "samvit_base_patch16", global_attn_indexes=(1,), window_size=2, neck_chans=16,
        **_PLAIN,
    ),
    "timm Eva": partial(_timm, "eva02_tiny_patch14_224", patch_size=16, **_PLAIN),
    "timm Beit": partial(_timm, "beit_base_patch16_224", **_PLAIN),
    "timm NaFlexVit": partial(
        _timm, "naflexvit_base_patch16_gap", image_size=None, input_size=64, **_PLAIN
    ),
    "timm VisionTransformerRelPos": partial(_timm, "vit_relpos_small_patch16_224", **_PLAIN),
    "timm Cait": partial(_timm, "cait_xxs24_224", **_PLAIN),
    "timm Xcit": partial(_timm, "xcit_nano_12_p16_224", **_PLAIN),
    "timm TNT": partial(
        _timm, "tnt_s_patch16_224", depth=2, embed_dim=32, inner_dim=8, num_heads_inner=2,
        num_heads_outer=2,
    ),
    "timm VOLO": partial(
        _timm_class, "volo.VOLO", img_size=64, layers=(1, 1), embed_dims=(16, 32), num_heads=(1, 2),
        stem_hidden_dim=8,
    ),
    "timm Hiera": partial(
        _timm, "hiera_tiny_224", embed_dim=16, num_heads=1, stages=(1, 1, 1, 1),
        mask_unit_size=(4, 4),
    ),
    "timm HieraDet (SAM 2)": partial(
        _timm_class, "hieradet_sam2.HieraDet", embed_dim=16, stages=(1, 2), global_att_blocks=(2,),
        q_pool=1, window_spec=(8, 4),
    ),
    "timm SwinTransformer": partial(
        _timm, "swin_tiny_patch4_window7_224", window_size=4, embed_dim=16, **_TWO_STAGES
    ),
    "timm SwinTransformerV2": partial(
        _timm, "swinv2_tiny_window8_256", window_size=4, embed_dim=16, **_TWO_STAGES
    ),
    "timm MultiScaleVit (MViTv2)": _mvitv2,
    "timm TinyVit": partial(
        _timm, "tiny_vit_5m_224", image_size=None, input_size=64, embed_dims=(8, 16, 24),
        depths=(1, 1, 1), num_heads=(1, 2, 2), window_sizes=(4, 4, 4),
    ),
    "timm DaVit": partial(
        _timm, "davit_tiny", image_size=None, input_size=64, embed_dims=(16, 32), window_size=4,
        **_TWO_STAGES,
    ),
    "timm PyramidVisionTransformerV2": partial(
        _timm, "pvt_v2_b0", image_size=None, input_size=64, depths=(1, 1), embed_dims=(16, 32),
        num_heads=(1, 2), sr_ratios=(4, 1), mlp_ratios=(2, 2),
    ),
    "timm Twins (PCPVT)": partial(
        _timm, "twins_pcpvt_small", embed_dims=(16, 32), num_heads=(1, 2), depths=(1, 1),
        mlp_ratios=(2, 2), sr_ratios=(4, 1),
    ),
    "timm Twins (SVT)": partial(
        _timm, "twins_svt_small", embed_dims=(16, 32), num_heads=(1, 2), depths=(2, 2),
        mlp_ratios=(2, 2), sr_ratios=(4, 1), wss=(4, 4),
    ),
    "timm Nest": partial(
        _timm_class, "nest.Nest", img_size=64, num_levels=2, embed_dims=(16, 32),
        num_heads=(1, 2), depths=(1, 1),
    ),
    "timm MaxxVit": partial(
        _timm, "maxvit_tiny_tf_224", embed_dim=(32, 64), depths=(1, 1), stem_width=8,
    ),
    "timm MaxxVit (CoAtNet)": partial(
        _timm, "coatnet_0_224", embed_dim=(16, 32), depths=(1, 1), block_type=("C", "T"),
        stem_width=8,
    ),
    "timm Levit": partial(
        _timm, "levit_128s", embed_dim=(16, 32), key_dim=8, num_heads=(2, 2), depth=(1, 1)
    ),
    "timm Levit (convolutions)": partial(
        _timm, "levit_conv_128s", embed_dim=(16, 32), key_dim=8, num_heads=(2, 2), depth=(1, 1)
    ),
    "timm ConvNeXt": partial(
        _timm, "convnext_atto", dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), **_CONVOLUTIONS
    ),
    "timm RepVit": partial(
        _timm, "repvit_m0_9", embed_dim=(8, 16), depth=(1, 1), **_CONVOLUTIONS
    ),
    "timm FastVit": partial(
        _timm, "fastvit_sa12", layers=(1, 1), embed_dims=(8, 32), mlp_ratios=(2, 2),
        token_mixers=("repmixer", "attention"), downsamples=(False, True),
        pos_embs=(None, None), **_CONVOLUTIONS,
    ),
    "timm EfficientVit": partial(
        _timm, "efficientvit_b0", widths=(8, 8, 16), depths=(1, 1, 1), head_dim=8,
        head_widths=(16, 16), **_CONVOLUTIONS,
    ),
    "timm EfficientVitMsra": partial(
        _timm, "efficientvit_m0", embed_dim=(16, 32), key_dim=(8, 8), depth=(1, 1),
        num_heads=(2, 2), window_size=(4, 4), kernels=(3, 3),
        down_ops=(("", 1), ("subsample", 2)),
    ),
    "transformers SamVisionModel": partial(
        _transformers, "SamVisionModel", "SamVisionConfig", hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, mlp_dim=64, window_size=3, output_channels=16,
        global_attn_indexes=[1], num_pos_feats=8,
    ),
    "transformers SamHQVisionModel": partial(
        _transformers, "SamHQVisionModel", "SamHQVisionConfig", hidden_size=32,
        num_hidden_layers=2, num_attention_heads=2, mlp_dim=64, window_size=3,
        output_channels=16, global_attn_indexes=[1], num_pos_feats=8,
    ),
    "transformers Sam2VisionModel": _sam2,
    "transformers Sam3VisionModel": _sam3,
    "transformers EdgeTamVisionModel": _edgetam,
    "transformers ViTModel": partial(_transformers, "ViTModel", "ViTConfig", **_HIDDEN),
    "transformers Dinov2Model": partial(
        _transformers, "Dinov2Model", "Dinov2Config", **{**_HIDDEN, "mlp_ratio": 2}
    ),
    "transformers DINOv3ViTModel": partial(
        _transformers, "DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2, **_HIDDEN
    ),
    "transformers SiglipVisionModel": partial(
        _transformers, "SiglipVisionModel", "SiglipVisionConfig", **_HIDDEN
    ),
    "transformers CLIPVisionModel": partial(
        _transformers, "CLIPVisionModel", "CLIPVisionConfig", **_HIDDEN
    ),
    "transformers SwinModel": partial(
        _transformers, "SwinModel", "SwinConfig", patch_size=4, embed_dim=16, depths=(1, 1),
        num_heads=(1, 2), window_size=4,
    ),
    "transformers SegformerModel": partial(
        _transformers, "SegformerModel", "SegformerConfig", hidden_sizes=(16, 32), depths=(1, 1),
        num_encoder_blocks=2, sr_ratios=(2, 1), patch_sizes=(7, 3), strides=(4, 2),
        num_attention_heads=(1, 2), mlp_ratios=(2, 2),
    ),
    "transformers BeitModel": partial(
        _transformers, "BeitModel", "BeitConfig", use_relative_position_bias=True, **_HIDDEN
    ),
}  # fmt: skip
"""By the names of library and class."""

PROMPTED = {
    "segment_anything ImageEncoderViT": "Sam",
    "transformers SamVisionModel": "SamModel",
    "transformers SamHQVisionModel": "SamHQModel",
    "transformers Sam2VisionModel": "Sam2Model",
    "transformers Sam3VisionModel": "Sam3TrackerModel",
    "transformers EdgeTamVisionModel": "EdgeTamModel",
}
"""The classes of models that are asked by points, around the encoder of one."""
