"""The vision encoder of transformers' `Sam2Model`: a hierarchical transformer and its neck."""

import copy
import math
import sys
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn

from adapterkit.encoders.registry import register_family
from adapterkit.encoders.sam2_decoder import object_score, resize_decoder, sam2_decoder
from adapterkit.encoders.sam_blocks import GRID
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.transformers_sam import normalisation, prompted
from adapterkit.encoders.views import (
    Block,
    Changes,
    Geometry,
    Site,
    Stage,
    ViT,
    projections,
    square_side,
)
from adapterkit.encoders.wrappers import unwrapped


@register_family
def transformers_sam2(model: nn.Module) -> ViT | None:
    """`Sam2Model` and `Sam2VisionModel`, and `Sam2HieraDetModel`, the transformer alone.

    It has no site for its position: two tables, one stretched over the image and one repeated in
    each window, are added up for whatever grid there is.
    """
    # A model of transformers can be here only if its module has been imported.
    sam2 = sys.modules.get("transformers.models.sam2.modeling_sam2")
    if sam2 is None:
        return None
    whole: Any = model if isinstance(model, sam2.Sam2Model) else None
    encoder: Any = model if whole is None else unwrapped(whole.vision_encoder)
    if not isinstance(encoder, sam2.Sam2VisionModel | sam2.Sam2HieraDetModel):
        return None
    has_neck = isinstance(encoder, sam2.Sam2VisionModel)
    hiera: Any = unwrapped(encoder.backbone) if has_neck else encoder
    neck: dict[str, nn.Module] = {"neck": encoder.neck} if has_neck else {}
    image_size = square_side(hiera.config.image_size, "transformers_sam2 encoder")
    stride = hiera.patch_embed.projection.stride[0]
    first = hiera.patch_embed.projection.out_channels
    stages = _stages(hiera, first, (image_size // stride,) * 2)
    output = stages[-1]
    return ViT(
        family="transformers_sam2",
        model=model,
        encoder=encoder,
        components={"image_encoder": encoder, **neck, **prompted(model)},
        patch_embed=hiera.patch_embed,
        patch_projection=hiera.patch_embed.projection,
        tokens=Site((hiera.patch_embed,), first, stages[0].grid, GRID),
        pos_embed=None,
        stages=stages,
        output=Site((output.blocks[-1].module,), output.width, output.grid, GRID),
        image_size=image_size,
        patch_size=stride,
        resizer=partial(_resize, whole, hiera),
        decoder=None if whole is None else sam2_decoder(whole),
        embedding_of=_coarsest if has_neck else _last_tokens,
        not_trained=() if whole is None else (object_score(whole),),
        normalisation=None if whole is None else normalisation(whole),
    )


def _stages(hiera: Any, width: int, grid: tuple[int, int]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    for first, end in pairwise(accumulate(hiera.config.blocks_per_stage, initial=0)):
        found: list[Block] = []
        for index in range(first, end):
            block = unwrapped(hiera.blocks[index])
            found.append(_block(index, block, width, grid))
            width = found[-1].sites["block_out"].width
            grid = found[-1].sites["block_out"].grid
        stages.append(Stage(tuple(found), width, grid))
    return tuple(stages)


def _block(index: int, block: Any, width: int, grid: tuple[int, int]) -> Block:
    """A block that reads tokens of this width and grid; the first of a stage gives others.

    There its norm is read by the shortcut too, and the queries are pooled.
    """
    pooled = block.query_stride or (1, 1)
    attended = GRID if block.window_size == 0 else TokenLayout("windows")
    before = partial(Site, width=width, grid=grid, layout=GRID)
    after = partial(
        Site,
        width=block.dim_out,
        grid=(grid[0] // pooled[0], grid[1] // pooled[1]),
        layout=GRID,
    )
    return Block(
        index=index,
        module=block,
        sites={
            "attn_in": before((block.layer_norm1,)),
            "attn_out": after((block.attn,), layout=attended),
            "mlp": after((block.mlp,), kind="parallel"),
            "block_out": after((block,)),
        },
        projections=projections(qkv=block.attn.qkv),
        num_heads=block.attn.num_attention_heads,
        attends_globally=block.window_size == 0,
        rel_pos=(),
    )


def _resize(model: Any, hiera: Any, changes: Changes, to: Geometry) -> None:
    """The transformer takes any grid that its windows and its pooling divide."""
    config = copy.deepcopy(hiera.config)
    halvings = sum(each.query_stride is not None for each in hiera.blocks)
    pooled = config.query_stride[0] ** halvings
    step = to.patch_stride * math.lcm(config.window_size_per_stage[0], pooled)
    if to.image_size % step:
        nearest = max(1, round(to.image_size / step)) * step
        raise ValueError(
            f"Resize(image_size={to.image_size}): this transformers_sam2 encoder takes multiples "
            f"of {step} pixels, which its windows and its pooling divide; the nearest is {nearest}"
        )
    config.image_size = [to.image_size, to.image_size]
    changes.set(hiera, "config", config)
    if model is not None:
        resize_decoder(model, changes, to.image_size, to.grid[0])


def _coarsest(output: Any) -> Tensor:
    return output.fpn_hidden_states[-1]


def _last_tokens(output: Any) -> Tensor:
    return output.last_hidden_state.permute(0, 3, 1, 2)
