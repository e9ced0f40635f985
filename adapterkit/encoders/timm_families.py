"""What the modules of timm's hierarchical, windowed and convolutional encoders are called."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from adapterkit.encoders.described import BlockNames, Description, any_size
from adapterkit.encoders.registry import register_family, view_by_class
from adapterkit.encoders.views import Changes, Geometry, ViT, square_side

IN_STAGES = r"stages\.\d+\.blocks\.\d+"
Q_KV = {"q": "attn.q", "kv": "attn.kv"}


def _timm_embedding(encoder: Any, changes: Changes, to: Geometry) -> None:
    """timm's patch embedding checks the size of images."""
    changes.set(encoder.patch_embed, "img_size", (to.image_size, to.image_size))
    changes.set(encoder.patch_embed, "grid_size", to.grid)
    changes.set(encoder.patch_embed, "num_patches", to.grid[0] * to.grid[1])


def _whole_windows(encoder: Any, changes: Changes, to: Geometry) -> None:
    """Positions within the first stage's windows are repeated over the grid."""
    window = encoder.window_spec[0]
    if to.grid[0] % window:
        raise ValueError(
            f"Resize: {to.grid[0]} tokens a side are no multiple of this encoder's windows, "
            f"{window}; expected an image size that is a multiple of {window * to.patch_stride}"
        )


def _prefix_tokens(encoder: Any) -> int:
    return encoder.num_prefix_tokens


def _reads_patches(encoder: Any) -> bool:
    return encoder.global_pool != "token"


def _key_key_value(attention: Any) -> Mapping[str, tuple[int, int]]:
    key, value = attention.key_dim, attention.val_dim
    return {"q": (0, key), "k": (key, 2 * key), "v": (2 * key, 2 * key + value)}


CONVOLUTIONS = partial(
    BlockNames, attn_in=None, attn_out=None, mlp=None, layers={}, maps="channels_first"
)
MIXERS = partial(BlockNames, attn_in="norm", attn_out="token_mixer", maps="channels_first")
EFFICIENTVIT = Description(
    "timm_efficientvit", "stem", (CONVOLUTIONS(IN_STAGES),), resizer=any_size
)

FAMILIES: dict[str, Description] = {
    "hiera.Hiera": Description(
        "timm_hiera",
        "patch_embed",
        (
            BlockNames(
                r"blocks\.\d+",
                in_order=False,  # Windows lie one after another.
                windowed=lambda block: block.attn.use_mask_unit_attn,
            ),
        ),
        pos_embed="pos_embed",
    ),
    "hieradet_sam2.HieraDet": Description(
        "timm_hieradet",
        "patch_embed",
        (BlockNames(r"blocks\.\d+"),),
        maps="grid",
        pos_embed="pos_embed",
        resizer=_whole_windows,
    ),
    "swin_transformer.SwinTransformer": Description(
        "timm_swin", "patch_embed", (BlockNames(r"layers\.\d+\.blocks\.\d+"),), maps="grid"
    ),
    "swin_transformer_v2.SwinTransformerV2": Description(
        "timm_swinv2",
        "patch_embed",
        (BlockNames(r"layers\.\d+\.blocks\.\d+", attn_in="attn"),),
        maps="grid",
    ),
    "mvitv2.MultiScaleVit": Description(
        "timm_mvitv2",
        "patch_embed",
        (
            BlockNames(
                IN_STAGES, layers={"qkv": "attn.qkv", "q": "attn.q", "k": "attn.k", "v": "attn.v"}
            ),
        ),
        prefix_tokens=lambda encoder: int(encoder.cls_token is not None),
        reads_patches=_reads_patches,
    ),
    "tiny_vit.TinyVit": Description(
        "timm_tiny_vit",
        "patch_embed",
        (
            CONVOLUTIONS(r"stages\.0\.blocks\.\d+"),
            BlockNames(
                r"stages\.[1-9]\d*\.blocks\.\d+",
                attn_in="attn.norm",
                rows_of_heads=_key_key_value,
            ),
        ),
    ),
    "cait.Cait": Description(
        "timm_cait",
        "patch_embed",
        (BlockNames(r"blocks\.\d+"),),
        pos_embed="pos_embed",
        resizer=_timm_embedding,
    ),
    "xcit.Xcit": Description(
        "timm_xcit", "patch_embed", (BlockNames(r"blocks\.\d+"),), resizer=any_size
    ),
    "davit.DaVit": Description(
        "timm_davit",
        "stem",
        (BlockNames(IN_STAGES + r"\.(\d+|\w+_block)", maps="channels_first"),),
        resizer=any_size,
    ),
    "pvt_v2.PyramidVisionTransformerV2": Description(
        "timm_pvt_v2",
        "patch_embed",
        (BlockNames(IN_STAGES, layers=Q_KV),),
        maps="grid",
        resizer=any_size,
    ),
    "twins.Twins": Description(
        "timm_twins",
        "patch_embeds.0",
        (
            BlockNames(
                r"blocks\.\d+\.\d+",
                layers={"qkv": "attn.qkv", **Q_KV},
                windowed=lambda block: type(block.attn).__name__ == "LocallyGroupedAttn",
            ),
        ),
    ),
    "vision_transformer_relpos.VisionTransformerRelPos": Description(
        "timm_vit_relpos",
        "patch_embed",
        (BlockNames(r"blocks\.\d+"),),
        prefix_tokens=_prefix_tokens,
        reads_patches=_reads_patches,
    ),
    "tnt.TNT": Description(
        "timm_tnt",
        "pixel_embed",
        (
            BlockNames(
                r"blocks\.\d+",
                attn_in="norm_out",
                attn_out="attn_out",
                layers={"qk": "attn_out.qk", "v": "attn_out.v"},
                items={"block_out": 1},
            ),
        ),
        tokens="norm2_proj",
        pos_embed="patch_pos",
        prefix_tokens=1,
        reads_patches=_reads_patches,
    ),
    "nest.Nest": Description(
        "timm_nest",
        "patch_embed",
        (
            BlockNames(
                r"levels\.\d+\.transformer_encoder\.\d+",
                maps="windows",
            ),
        ),
    ),
    "volo.VOLO": Description(
        "timm_volo",
        "patch_embed",
        (
            BlockNames(
                r"network\.\d+\.\d+",
                layers={"qkv": "attn.qkv", "v": "attn.v"},
                windowed=lambda block: type(block).__name__ == "Outlooker",
            ),
        ),
        pos_embed="pos_embed",
    ),
    "maxxvit.MaxxVit": Description(
        "timm_maxxvit",
        "stem",
        (
            CONVOLUTIONS(IN_STAGES + r"\.conv"),
            BlockNames(IN_STAGES + r"\.attn_block"),
            # It attends to tokens that lie evenly apart over the whole grid.
            BlockNames(IN_STAGES + r"\.attn_grid", windowed=False),
            # Both side by side.
            BlockNames(
                IN_STAGES + r"\.attn",
                attn_out=None,
                layers={},
                windowed=False,
                of="ParallelPartitionAttention",
            ),
            # CoAtNet's.
            CONVOLUTIONS(IN_STAGES, of="MbConvBlock|ConvNeXtBlock"),
            BlockNames(IN_STAGES, maps="channels_first", of="TransformerBlock2d"),
        ),
    ),
    "levit.Levit": Description(
        "timm_levit",
        "stem",
        (
            BlockNames(
                IN_STAGES,
                attn_in="attn",
                layers={"qkv": "attn.qkv.linear"},
                rows_of_heads=_key_key_value,
                maps="channels_first",
            ),
        ),
    ),
    "naflexvit.NaFlexVit": Description(
        "timm_naflexvit",
        "embeds",
        (
            BlockNames(
                r"blocks\.\d+",
                layers={
                    "qkv": "attn.qkv",
                    "q": "attn.q_proj",
                    "k": "attn.k_proj",
                    "v": "attn.v_proj",
                },
            ),
        ),
        pos_embed="embeds.pos_embed",
        prefix_tokens=_prefix_tokens,
        reads_patches=_reads_patches,
    ),
    "convnext.ConvNeXt": Description(
        "timm_convnext", "stem", (CONVOLUTIONS(IN_STAGES),), resizer=any_size
    ),
    "repvit.RepVit": Description(
        "timm_repvit", "stem", (CONVOLUTIONS(IN_STAGES),), resizer=any_size
    ),
    "fastvit.FastVit": Description(
        "timm_fastvit",
        "stem",
        (
            MIXERS(IN_STAGES, attn_in=None, layers={}, windowed=True, of="RepMixerBlock"),
            MIXERS(IN_STAGES, layers={"qkv": "token_mixer.qkv"}, of="AttentionBlock"),
        ),
        resizer=any_size,
    ),
    "efficientvit_mit.EfficientVit": EFFICIENTVIT,
    "efficientvit_mit.EfficientVitLarge": EFFICIENTVIT,
    "efficientvit_msra.EfficientVitMsra": Description(
        "timm_efficientvit_msra", "patch_embed", (CONVOLUTIONS(IN_STAGES),)
    ),
}
"""By the module of timm's models and the class in it."""


@register_family
def timm_described(model: nn.Module) -> ViT | None:
    """Those of `FAMILIES`."""
    return view_by_class(model, FAMILIES, "timm.models", _image_size)


def _image_size(model: Any) -> int:
    """Side of the images that a model was built for, in pixels."""
    name = type(model).__name__
    for embedding in ("patch_embed", "pixel_embed", "embeds"):
        size = getattr(getattr(model, embedding, None), "img_size", None)
        if size is not None:
            return square_side(size, name)
    if name.startswith("Levit"):
        resolution = next(m.resolution for m in model.stages.modules() if hasattr(m, "resolution"))
        stride = 8 if type(model.stem).__name__ == "Stem8" else 16
        return stride * square_side(resolution, name)
    config = getattr(model, "pretrained_cfg", None) or {}
    return square_side(config.get("input_size", (3, 224, 224))[1:], name)
