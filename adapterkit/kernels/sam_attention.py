"""SAM's attention, with decomposed relative positions, within windows or over the whole grid."""

from typing import Any

import torch
from jaxtyping import Float
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor

from adapterkit.attach.overlay import plain_class
from adapterkit.kernels.linear import FastLinear
from adapterkit.kernels.relative_attention import relative_attention


def attend(
    attention: Any, x: Float[Tensor, "b h w c"], window_size: int, num_heads: int
) -> Float[Tensor, "b h w c"]:
    """What SAM's attention, a module with `qkv`, `proj`, `use_rel_pos`, `rel_pos_h` and
    `rel_pos_w`, makes of a grid of tokens within windows; of the whole grid where the size is 0."""
    qkv = attention.qkv(x)
    filling = torch.zeros_like(qkv[0, 0, 0])
    if window_size:
        filling = _of_zeros(attention.qkv, x[0, 0, 0]).to(qkv.dtype)
    rows, columns = (window_size or side for side in x.shape[1:3])
    if attention.use_rel_pos:
        of_rows = get_rel_pos(rows, rows, attention.rel_pos_h)
        of_columns = get_rel_pos(columns, columns, attention.rel_pos_w)
    else:
        channels = x.shape[-1] // num_heads
        of_rows = x.new_zeros(rows, rows, channels)
        of_columns = x.new_zeros(columns, columns, channels)
    return attention.proj(relative_attention(qkv, filling, of_rows, of_columns, num_heads))


def _of_zeros(projection: Any, token: Float[Tensor, "c"]) -> Float[Tensor, "d"]:
    """What it makes of a token of zeros: its bias, but for what is injected."""
    has_hooks = projection._forward_hooks or projection._forward_pre_hooks
    if plain_class(projection) is FastLinear and not has_hooks and projection.bias is not None:
        return projection.bias
    return projection(torch.zeros_like(token))
