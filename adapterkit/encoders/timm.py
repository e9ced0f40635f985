"""Timm's vision transformers: SAM's image encoder, plain ViTs, EVA and BEiT.

timm is imported inside a family's function, so that it is not needed for other libraries' models.
"""

import copy
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.encoders.registry import register_family
from adapterkit.encoders.sam_blocks import GRID, sam_stage
from adapterkit.encoders.sam_names import names_in_sam
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import (
    Block,
    Changes,
    Geometry,
    Projection,
    Site,
    Stage,
    ViT,
    position_embedding,
    projections,
)
from adapterkit.encoders.wrappers import unwrapped

names_in_sam("timm_samvit", (r"\.mlp\.fc(\d)\.", r".mlp.lin\1."))


@register_family
def timm_samvit(model: nn.Module) -> ViT | None:
    """`VisionTransformerSAM`: SAM's image encoder, with relative or rotary positions."""
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    if not isinstance(model, VisionTransformerSAM):
        return None
    encoder: Any = model
    width, grid = encoder.embed_dim, encoder.patch_embed.grid_size
    stage = sam_stage(encoder.blocks, width, grid, in_mlp=TokenLayout("row"))
    return _timm("timm_samvit", encoder, stage, GRID, GRID, rope="rope_global")


@register_family
def timm_vit(model: nn.Module) -> ViT | None:
    """`VisionTransformer` (plain, DeiT, DINOv2, CLIP, SigLIP), `Eva` (EVA02, DINOv3) and `Beit`."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    families = {VisionTransformer: "timm_vit", Eva: "timm_eva", Beit: "timm_beit"}
    kind = next((name for cls, name in families.items() if isinstance(model, cls)), None)
    if kind is None:
        return None
    encoder: Any = model
    in_pos_embed = not getattr(encoder, "no_embed_class", False)
    layout = TokenLayout("row", encoder.num_prefix_tokens)
    width, grid = encoder.embed_dim, encoder.patch_embed.grid_size
    site = partial(Site, width=width, grid=grid, layout=layout)
    blocks = tuple(_timm_block(i, unwrapped(block), site) for i, block in enumerate(encoder.blocks))
    return _timm(
        kind,
        encoder,
        Stage(blocks, width, grid),
        layout,
        TokenLayout("row", in_pos_embed * encoder.num_prefix_tokens),
        rope="rope",
    )


def _timm(
    family: str,
    encoder: Any,
    stage: Stage,
    layout: TokenLayout,
    pos_embed_layout: TokenLayout,
    rope: str,
) -> ViT:
    """What timm's encoders have in common. `rope` names the rotary positions on the grid."""
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.layers.patch_embed import PatchEmbed

    patch_embed = encoder.patch_embed
    if not isinstance(patch_embed, PatchEmbed | HybridEmbed):
        raise ValueError(
            f"the patch embedding of this {family} encoder is a {type(patch_embed).__name__}; "
            "adapterkit takes encoders with a PatchEmbed or a HybridEmbed of timm"
        )
    height, width = cast("tuple[int, int]", patch_embed.img_size)
    patch_size = cast("tuple[int, int]", patch_embed.patch_size)
    if height != width or len(set(patch_size)) > 1:
        raise ValueError(
            f"this {family} encoder takes images of {height}x{width} pixels in patches of "
            f"{'x'.join(map(str, patch_size))}; adapterkit takes square ones"
        )
    named = {name: getattr(encoder, name, None) for name in ("neck", "norm", "fc_norm", "head")}
    # What a model of this kind has no use for is None or an nn.Identity.
    trainable = {
        k: v for k, v in named.items() if v is not None and next(v.parameters(), None) is not None
    }

    def resize(changes: Changes, to: Geometry) -> None:
        changes.set(patch_embed, "img_size", (to.image_size, to.image_size))
        changes.set(patch_embed, "grid_size", to.grid)
        changes.set(patch_embed, "num_patches", to.grid[0] * to.grid[1])
        if isinstance(patch_embed, PatchEmbed):
            # timm divides by the patch size to get the grid, which overlapping patches outnumber.
            changes.set(patch_embed, "patch_size", (to.patch_stride, to.patch_stride))
        else:
            changes.set(patch_embed, "feature_size", tuple(patch_size[0] * n for n in to.grid))
        rotary = getattr(encoder, rope, None)
        # Without a shape of its own, it is built for the patch embedding's grid at every forward.
        if getattr(rotary, "feat_shape", None) is not None:
            _resize_rope(changes, rotary, to.grid)
        biased = [getattr(encoder, "rel_pos_bias", None)]
        biased += [getattr(block.module, "attn", None) for block in stage.blocks]
        biased = [m for m in biased if getattr(m, "relative_position_bias_table", None) is not None]
        if biased:
            _resize_biases(changes, biased, to.grid)

    width, grid = stage.width, stage.grid
    # Prefix tokens come after the embedding of the patches.
    embedded = TokenLayout("row" if patch_embed.flatten else "grid")
    return ViT(
        family=family,
        model=encoder,
        encoder=encoder,
        components={"image_encoder": encoder, **trainable},
        patch_embed=patch_embed,
        patch_projection=[m for m in patch_embed.modules() if isinstance(m, nn.Conv2d)][-1],
        tokens=Site((patch_embed,), width, grid, embedded),
        pos_embed=position_embedding(encoder, width, grid, pos_embed_layout),
        stages=(stage,),
        output=Site((stage.blocks[-1].module,), width, grid, layout),
        image_size=height,
        patch_size=cast("int", patch_embed.feat_ratio()),
        resizer=resize,
        drops_patches=getattr(getattr(encoder, "patch_drop", None), "prob", 0) > 0,
        reads_patches=getattr(encoder, "global_pool", "") != "token",
    )


def _timm_block(index: int, block: Any, site: partial[Site]) -> Block:
    from timm.models.eva import EvaBlockPostNorm
    from timm.models.vision_transformer import (
        DiffParallelScalingBlock,
        ParallelScalingBlock,
        ParallelThingsBlock,
        ResPostBlock,
    )

    sites = {"block_out": site((block,))}
    projecting: dict[str, Projection] = {}
    if isinstance(block, ParallelThingsBlock):
        # Several attentions and MLPs side by side, each after a norm of its own.
        attention: Any = block.attns[0].attn  # pyright: ignore[reportAttributeAccessIssue]
        sites["attn_in"] = site(tuple(each.attn for each in block.attns), kind="input")  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(block, ParallelScalingBlock | DiffParallelScalingBlock):
        # The block is its attention and its MLP at once; both read the one norm.
        attention = block
        sites["attn_in"] = site((block.in_norm,))
    else:
        attention = block.attn
        norms_after = isinstance(block, ResPostBlock | EvaBlockPostNorm)
        # Where the norms come after, no module gives what the attention reads.
        sites["attn_in"] = site((attention,), kind="input") if norms_after else site((block.norm1,))
        names = {"qkv": "qkv", "q": "q_proj", "k": "k_proj", "v": "v_proj"}
        projecting = projections(
            **{at: getattr(attention, name, None) for at, name in names.items()}
        )
        sites |= {"attn_out": site((attention,)), "mlp": site((block.mlp,), kind="parallel")}
    return Block(
        index=index,
        module=block,
        sites=sites,
        projections=projecting,
        num_heads=attention.num_heads,
        attends_globally=True,
        rel_pos=(),
    )


def _resize_rope(changes: Changes, rope: Any, grid: tuple[int, int]) -> None:
    resized = copy.deepcopy(rope)
    # Values rather than weights, so also where a file's weights are to come on the meta device.
    with next(rope.buffers()).device:
        resized.update_feat_shape(grid)
    changes.set(rope, "feat_shape", grid)
    for name, buffer in resized.named_buffers(recurse=False):
        changes.set(rope, name, buffer)


def _resize_biases(changes: Changes, modules: list[Any], grid: tuple[int, int]) -> None:
    """Fit BEiT's relative-position biases, of one window size in all modules, to a grid."""
    from timm.models.beit import gen_relative_position_index

    (rows, columns), table = grid, modules[0]._parameters["relative_position_bias_table"]
    fit = FitBiasTable(bias_resampling(tuple(modules[0].window_size), grid).to(table.device))
    for module in modules:
        changes.set(module, "window_size", grid)
        for name, value in (
            ("window_area", rows * columns),
            ("num_relative_distance", (2 * rows - 1) * (2 * columns - 1) + 3),
        ):
            if hasattr(module, name):
                changes.set(module, name, value)
        index = gen_relative_position_index(grid, module.relative_position_index.device)
        changes.set(module, "relative_position_index", index)
        changes.overlay(module, "relative_position_bias_table", fit, last=True)


@dataclass(frozen=True)
class FitBiasTable:
    """An overlay that resamples a BEiT relative-position bias table to another grid.

    Args:
        matrix: what `bias_resampling` gives.
    """

    matrix: Float[Tensor, "new old"]

    def __call__(self, table: Float[Tensor, "old heads"]) -> Float[Tensor, "new heads"]:
        return self.matrix.to(table) @ table


def bias_resampling(old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "new old"]:
    """The linear map from a BEiT relative-position bias table to one for another grid.

    It is that of timm's `resize_rel_pos_bias_table`, which samples the old table at geometrically
    spaced distances and keeps the three rows from, to and between class tokens.

    Args:
        old: rows and columns of tokens that the table was made for.
        new: and those that it is read for.
    """
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    sizes = [(2 * rows - 1) * (2 * columns - 1) + 3 for rows, columns in (old, new)]
    # Values rather than weights, so also where a file's weights are to come on the meta device.
    with torch.device("cpu"), warnings.catch_warnings():
        # Of timm's interpolation, about PyTorch's manners of indexing.
        warnings.simplefilter("ignore", UserWarning)
        unit_tables = torch.eye(sizes[0])
        return resize_rel_pos_bias_table(unit_tables, new, (sizes[1], sizes[0]), old)
