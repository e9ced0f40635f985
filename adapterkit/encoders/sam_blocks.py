"""The blocks of SAM's image encoder, which three libraries have under names of their own."""

from functools import partial
from typing import Any

from torch import nn

from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import Block, Site, Stage, projections
from adapterkit.encoders.wrappers import unwrapped

GRID = TokenLayout()
"""SAM's tokens lie in grids, but within the attention of blocks with windows."""


def sam_stage(
    blocks: nn.Module,
    width: int,
    grid: tuple[int, int],
    norm: str = "norm1",
    attn_out: str = "attn",
    heads: str = "num_heads",
    in_mlp: TokenLayout = GRID,
) -> Stage:
    """The one stage of SAM's image encoder, under a library's names for the modules of a block.

    Args:
        blocks: the list of them.
        width: channels of a token.
        grid: rows and columns of tokens.
        norm: before the attention.
        attn_out: what gives the attention's output.
        heads: the attention's number of them.
        in_mlp: how tokens lie in the MLP.
    """
    site = partial(Site, width=width, grid=grid, layout=GRID)
    found = tuple(
        _block(index, unwrapped(block), site, norm, attn_out, heads, in_mlp)
        for index, block in enumerate(blocks.children())
    )
    return Stage(found, width, grid)


def _block(
    index: int,
    block: Any,
    site: partial[Site],
    norm: str,
    out: str,
    heads: str,
    in_mlp: TokenLayout,
) -> Block:
    attention = block.attn
    attended = GRID if block.window_size == 0 else TokenLayout("windows")
    return Block(
        index=index,
        module=block,
        sites={
            "attn_in": site((block.get_submodule(norm),)),
            "attn_out": site((block.get_submodule(out),), layout=attended),
            "mlp": site((block.mlp,), kind="parallel", layout=in_mlp),
            "block_out": site((block,)),
        },
        projections=projections(qkv=attention.qkv),
        num_heads=getattr(attention, heads),
        attends_globally=block.window_size == 0,
        rel_pos=tuple((attention, f"rel_pos_{axis}") for axis in "hw" if attention.use_rel_pos),
    )
