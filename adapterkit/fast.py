"""A forward for `segment_anything`'s blocks that does less, of the same numbers up to rounding.

`fast` gives a model's blocks, attentions and channel norms other forwards, which

- attend by PyTorch's fused attention, which holds no matrix of all queries by all keys. Its
  decomposed relative positions, q R_h + q R_w, are a product of queries and keys too: q is followed
  by its products with the tables of its own row and column, k by the indicators of its row and
  column;
- project the tokens that are there, not the zeros that fill up the windows. 32 x 32 tokens in
  windows of 14 would be 42 x 42. What a zero is projected to is found once;
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
        batch, height, width, _ = x.shape
        qkv = self.qkv(x)
        if window_size:
            qkv = _pad(qkv, self.qkv(torch.zeros_like(x[:1, :1, :1])), window_size)
        rows, columns = qkv.shape[1:3]
        side = (window_size or rows, window_size or columns)
        down, across = rows // side[0], columns // side[1]
        # (b, down, side, across, side, 3, heads, d) -> (3, b * windows, heads, side, side, d)
        windows = qkv.view(batch, down, side[0], across, side[1], 3, self.num_heads, -1)
        windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3)
        attended = self._attend(*windows.unbind(0))
        merged = attended.unflatten(0, (batch, down, across)).permute(0, 1, 4, 2, 5, 3, 6)
        merged = merged.reshape(batch, rows, columns, -1)[:, :height, :width]
        return self.proj(merged)

    def _attend(
        self,
        q: Float[Tensor, "n heads h w d"],
        k: Float[Tensor, "n heads h w d"],
        v: Float[Tensor, "n heads h w d"],
    ) -> Float[Tensor, "n heads h w d"]:
        size, channels = q.shape[2:4], q.shape[-1]
        if self.use_rel_pos:
            height, width = size
            # The tables count unscaled, the products of queries and keys are scaled.
            of_rows = get_rel_pos(height, height, self.rel_pos_h).mT / self.scale
            of_columns = get_rel_pos(width, width, self.rel_pos_w).mT / self.scale
            by_row = q @ of_rows
            by_column = (q.transpose(2, 3) @ of_columns).transpose(2, 3)
            q = torch.cat((q, by_row, by_column), dim=-1)
            row = torch.eye(height, dtype=k.dtype, device=k.device)[:, None]
            column = torch.eye(width, dtype=k.dtype, device=k.device)[None]
            row = row.expand(*k.shape[:2], -1, width, -1)
            column = column.expand(*k.shape[:2], height, -1, -1)
            k = torch.cat((k, row, column), dim=-1)
            # Fused attention takes values as wide as keys.
            v = F.pad(v, (0, height + width))
        q, k, v = (each.flatten(2, 3) for each in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return attended[..., :channels].unflatten(2, tuple(size))


def _pad(
    tokens: Float[Tensor, "b h w c"], value: Float[Tensor, "1 1 1 c"], window_size: int
) -> Float[Tensor, "b H W c"]:
    """Tokens filled up with `value` at the right and the bottom, to whole windows."""
    batch, height, width, _ = tokens.shape
    right, below = -width % window_size, -height % window_size
    if right:
        tokens = torch.cat((tokens, value.expand(batch, height, right, -1)), dim=2)
    if below:
        tokens = torch.cat((tokens, value.expand(batch, below, width + right, -1)), dim=1)
    return tokens


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
