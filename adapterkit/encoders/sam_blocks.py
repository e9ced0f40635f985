"""The blocks of SAM's image encoder, which three libraries have under names of their own."""

from typing import Any

from adapterkit.encoders.views import Block


def sam_block(
    index: int, block: Any, norm: str = "norm1", attn_out: str = "attn", heads: str = "num_heads"
) -> Block:
    """A block of SAM, under a library's names."""
    attention = block.attn
    return Block(
        index=index,
        module=block,
        sites={
            "attn_in": block.get_submodule(norm),
            "qkv": attention.qkv,
            "attn_out": block.get_submodule(attn_out),
            "mlp": block.mlp,
            "block_out": block,
        },
        num_heads=getattr(attention, heads),
        attends_globally=block.window_size == 0,
        rel_pos=tuple((attention, f"rel_pos_{axis}") for axis in "hw" if attention.use_rel_pos),
    )
