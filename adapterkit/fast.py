"""A forward for `segment_anything`'s blocks that does less, of the same numbers up to rounding.

`fast` gives a model's blocks, attentions and channel norms other forwards, which

- attend without a matrix of all queries by all keys in memory, neither in the forward pass nor for
  the gradient (`relative_attention`);
- project the tokens that are there, not the zeros that fill up the windows, and ask nothing for
  these. 32 x 32 tokens in windows of 14 would be 42 x 42;
- normalise channels in the memory layout that the convolutions give.

Parameters, their names, hooks and adapters stay as they are, on a model with or without them.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos
from segment_anything.modeling.transformer import Attention as TwoWayAttention
from torch import Tensor, nn

from adapterkit.overlay import plain_class, set_class
from adapterkit.relative_attention import relative_attention

Model = TypeVar("Model", bound=nn.Module)


def fast(model: Model) -> Model:
    """Let `model` compute the same faster, in place; `stock` undoes it.

    Args:
        model: a `Sam` of `segment_anything`, or its image encoder, with or without adapters, which
            can be injected, switched and ejected before and after.

    Returns:
        The same model.

    Raises:
        TypeError: it has no block of `segment_anything`; it is as before.
    """
    if not any(plain_class(module) in (Block, FastBlock) for module in model.modules()):
        raise TypeError(
            f"fast: this {type(model).__qualname__} has no block of segment_anything; expected a "
            "Sam or its image encoder"
        )
    _change_classes(model, _FAST)
    return model


def stock(model: Model) -> Model:
    """Let `model` compute as `segment_anything` does again, in place."""
    _change_classes(model, {fast: stock for stock, fast in _FAST.items()})
    return model


class FastBlock(Block):
    """A block that leaves windows to its attention."""

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.attn(self.norm1(x), self.window_size)
        return x + self.mlp(self.norm2(x))


class FastAttention(Attention):
    """Attention with decomposed relative positions, within windows or over the whole grid."""

    def forward(
        self, x: Float[Tensor, "b h w c"], window_size: int = 0
    ) -> Float[Tensor, "b h w c"]:
        qkv = self.qkv(x)
        filling = torch.zeros_like(qkv[0, 0, 0])
        if window_size:
            filling = self.qkv(torch.zeros_like(x[0, 0, 0]))
        rows, columns = (window_size or side for side in x.shape[1:3])
        if self.use_rel_pos:
            of_rows = get_rel_pos(rows, rows, self.rel_pos_h)
            of_columns = get_rel_pos(columns, columns, self.rel_pos_w)
        else:
            channels = x.shape[-1] // self.num_heads
            of_rows = x.new_zeros(rows, rows, channels)
            of_columns = x.new_zeros(columns, columns, channels)
        return self.proj(relative_attention(qkv, filling, of_rows, of_columns, self.num_heads))


class FastTwoWayAttention(TwoWayAttention):
    """The mask decoder's attention, fused."""

    def forward(
        self, q: Float[Tensor, "b n c"], k: Float[Tensor, "b m c"], v: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        attended = F.scaled_dot_product_attention(
            self._separate_heads(self.q_proj(q), self.num_heads),
            self._separate_heads(self.k_proj(k), self.num_heads),
            self._separate_heads(self.v_proj(v), self.num_heads),
        )
        return self.out_proj(self._recombine_heads(attended))


class FastLayerNorm2d(LayerNorm2d):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    Block: FastBlock,
    Attention: FastAttention,
    TwoWayAttention: FastTwoWayAttention,
    LayerNorm2d: FastLayerNorm2d,
}


def _change_classes(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        wanted = classes.get(plain_class(module))
        if wanted is not None:
            set_class(module, wanted)
